# SPDX-License-Identifier: Apache-2.0
"""CacheManager: the calls of LLM-DataDist on caches of this process. They block, and raise LLMException."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from .. import ops
from . import memory as _memory
from .cache import Cache, allocate, wrap
from .cache_desc import CacheDesc, Placement
from .cache_keys import NO_ID, BlocksCacheKey, CacheKey, checked_key, checked_keys
from .checks import ANY_INT, INT64, UINT32, UINT64, as_int64, check_int, check_kind, check_type
from .config import LLMConfig
from .copy_executor import CopyExecutor
from .log import error_context, logger
from .registry import CacheRegistry, Keys, NewCache
from .status import param_invalid
from .transfer_calls import TransferCalls

_DEFAULT_TIMEOUT_MS = 1000


class CacheManager(TransferCalls):
    """Allocates caches, wraps memory as caches, and copies between caches. For code written for LLM-DataDist.

    Model code calls ``torch.ops.llm_datadist.copy_cache`` and ``copy_cache_batch`` instead, which are asynchronous. All
    methods are thread-safe; copies of one manager run one after the other. The contract is that of LLM-DataDist's pages.
    A method that raises has changed nothing, except after LLM_TIMEOUT and LLM_FAILED. If a signal handler raises in a method that
    copies, the destination range is undefined; one that ends a cache can be called again. All methods raise:

    - TypeError for an argument of the wrong type, ValueError for a number that does not fit its integer type;
    - LLMException with the ``status_code`` LLM_PARAM_INVALID (also a ValueError) for any other invalid argument, and
      LLM_FEATURE_NOT_ENABLED on a chip that is not served;
    - LLM_ENGINE_FINALIZED after ``finalize``, if they allocate, register or copy. Methods that end a cache or remove a key
      do nothing then;
    - LLM_KV_CACHE_NOT_EXIST for a cache that was deallocated or unregistered, if they copy.

    Args:
        config: The settings, read by the constructor: ``sync_kv_timeout``, ``device_id``, and the memory limits in
            ``mem_pool_cfg``, ``host_mem_pool_cfg`` and ``ge_options``.
    """

    def __init__(self, config: LLMConfig | None = None) -> None:
        config = LLMConfig() if config is None else config
        check_type("config", config, LLMConfig)
        self._device_id = int(config.device_id[0]) if isinstance(config.device_id, list | tuple) else config.device_id
        timeout_ms = _DEFAULT_TIMEOUT_MS if config.sync_kv_timeout is None else int(config.sync_kv_timeout)
        super().__init__(CacheRegistry(config.memory_limits()), timeout_ms)
        self._copy_executor = CopyExecutor(timeout_ms)

    def allocate_cache(self, cache_desc: CacheDesc, cache_keys: Sequence[CacheKey] = ()) -> Cache:
        """Allocates a cache as one stacked, uninitialised tensor.

        Placement DEVICE allocates on the NPU, or on the CPU if there is no NPU. Placement HOST allocates on the CPU, in
        pinned memory if there is an NPU.

        Args:
            cache_desc: The description of the cache.
            cache_keys: The keys of the batch entries, in order, at most ``batch_size``. A key without req_id and
                prefix_id skips an entry. The memory stays until the cache is deallocated and all keys are removed.

        Raises:
            LLMException: LLM_OUT_OF_MEMORY beyond the memory limit of the placement, or if the host is out of memory;
                LLM_DEVICE_OUT_OF_MEMORY if the device is.
        """
        return self._add("allocate_cache", lambda: self._allocate(cache_desc, checked_keys(cache_desc, cache_keys)))

    def allocate_blocks_cache(self, cache_desc: CacheDesc, blocks_cache_key: BlocksCacheKey | None = None) -> Cache:
        """Allocates a blocks cache, whose batch entries are the blocks of a paged cache. See ``allocate_cache``.

        Args:
            cache_desc: The description of the cache.
            blocks_cache_key: The key of the cache. Deallocating the cache removes it.
        """
        return self._add(
            "allocate_blocks_cache", lambda: self._allocate(cache_desc, checked_key(blocks_cache_key), blocks=True)
        )

    def register_cache(
        self,
        cache_desc: CacheDesc,
        addrs: Sequence[int] | Sequence[Tensor],
        cache_keys: Sequence[CacheKey] = (),
        remote_accessible: bool | None = None,
    ) -> Cache:
        """Creates a cache over existing memory, without copying it.

        Args:
            cache_desc: The description of the cache.
            addrs: The address of each tensor, which occupies ``cache_desc.size`` bytes. Placement DEVICE takes device
                addresses, or host addresses if there is no NPU. The memory must outlive the cache. Or the tensors
                themselves, which the cache keeps alive.
            cache_keys: As for ``allocate_cache``.
            remote_accessible: Whether linked processes may read and write the cache. None means those of placement DEVICE,
                as in LLM-DataDist.
        """
        return self._add(
            "register_cache",
            lambda: self._register(cache_desc, addrs, checked_keys(cache_desc, cache_keys), remote_accessible),
        )

    def register_blocks_cache(
        self,
        cache_desc: CacheDesc,
        addrs: Sequence[int] | Sequence[Tensor],
        blocks_cache_key: BlocksCacheKey | None = None,
        remote_accessible: bool | None = None,
    ) -> Cache:
        """Creates a blocks cache over existing memory. See ``register_cache``.

        Args:
            cache_desc: The description of the cache.
            addrs: The address of each tensor, or the tensors.
            blocks_cache_key: The key of the cache. Unregistering the cache removes it.
            remote_accessible: As for ``register_cache``.
        """
        return self._add(
            "register_blocks_cache",
            lambda: self._register(cache_desc, addrs, checked_key(blocks_cache_key), remote_accessible, blocks=True),
        )

    def deallocate_cache(self, cache: Cache) -> None:
        """Ends an allocated cache. Its memory stays until its last key is removed.

        Does nothing for a cache that has ended, was registered, or is not of this manager.
        """
        with error_context("deallocate_cache"):
            self._deallocate(cache, is_blocks_cache=False)

    def deallocate_blocks_cache(self, cache: Cache) -> None:
        """Ends an allocated blocks cache and removes its key. Does nothing in the cases of ``deallocate_cache``."""
        with error_context("deallocate_blocks_cache"):
            self._deallocate(cache, is_blocks_cache=True)

    def unregister_cache(self, cache_id: int) -> None:
        """Ends a cache or blocks cache, registered or allocated. Does nothing if there is no cache with this id."""
        with error_context("unregister_cache"):
            self._registry.end(check_int("cache_id", cache_id, INT64))

    def remove_cache_key(self, cache_key: CacheKey) -> None:
        """Removes a key, and with the last key of a deallocated cache its memory. Does nothing for an unknown key."""
        with error_context("remove_cache_key"):
            check_type("cache_key", cache_key, CacheKey)
            self._registry.remove_key(cache_key)

    @staticmethod
    def check_cache_key(cache_key: CacheKey) -> None:
        """Raises LLM_PARAM_INVALID unless a key names either a request or a prefix."""
        with error_context("check_cache_key"):
            check_type("cache_key", cache_key, CacheKey)
            if (cache_key.req_id == NO_ID) == (cache_key.prefix_id == NO_ID):
                raise param_invalid(f"{cache_key} must have either a req_id or a prefix_id below {NO_ID}")

    def finalize(self) -> None:
        """Ends all links, and all caches after the running copy. ``LLMDataDist.finalize`` calls it. May be called again.

        Waits for what peers read or write in caches of this process, at most ``sync_kv_timeout``.
        """
        self._close_links()
        self._copy_executor.close()
        self._registry.close()

    def copy_cache(
        self,
        dst: Cache,
        src: Cache,
        dst_batch_index: int = 0,
        src_batch_index: int = 0,
        offset: int = 0,
        size: int = -1,
        req_id: int | None = None,
    ) -> None:
        """Copies a slice of one row of ``src`` to a row of ``dst``, in every tensor, and waits for completion.

        The arguments are those of ``ops.copy_cache``: ``offset`` and ``size`` are bytes, the same for every tensor.

        Args:
            dst: The cache to write to, not a blocks cache.
            src: The cache to read from, not a blocks cache. It may be ``dst``. It has as many tensors as ``dst``, each of
                the same type as the one in ``dst``.
            dst_batch_index: The row to write to, a uint32.
            src_batch_index: The row to read from, a uint32.
            offset: The start of the slice in each row, in bytes, a uint64.
            size: The length of the slice in bytes, an int64; or -1 for the rest of the source row of each tensor.
            req_id: The request this call belongs to, a uint64, for log lines and errors of the call.

        Raises:
            LLMException: Also LLM_TIMEOUT if the copy is not complete after ``sync_kv_timeout``; the destination range
                is undefined then. LLM_FAILED if the device or the runtime fails; the original error is the cause.
        """
        with error_context("copy_cache", req_id):
            dst_batch_index = check_int("dst_batch_index", dst_batch_index, UINT32)
            src_batch_index = check_int("src_batch_index", src_batch_index, UINT32)
            offset, size = check_int("offset", offset, UINT64), check_int("size", size, INT64)
            if req_id is not None:
                req_id = check_int("req_id", req_id, UINT64)
            for name, cache in (("dst", dst), ("src", src)):
                check_type(name, cache, Cache)
                check_kind(name, cache.is_blocks_cache, blocks=False)
            if offset > INT64[1]:
                raise param_invalid(f"offset ({offset}) must be at most {INT64[1]}: no row is longer")
            bits = None if req_id is None else as_int64(req_id)  # the op reads the bits as a uint64
            numbers = (dst_batch_index, src_batch_index, offset, size, bits)
            self._copy_executor.copy(ops.copy_cache_blocking, ("dst", dst), ("src", src), *numbers)
        request = "" if req_id is None else f" (req_id {req_id})"
        rows = (src.cache_id, src_batch_index, dst.cache_id, dst_batch_index)
        logger.debug(
            "copy_cache: cache %d row %d to cache %d row %d, offset %d, size %d%s", *rows, offset, size, request
        )

    def copy_blocks(self, cache: Cache, copy_block_info: Mapping[int, Sequence[int]]) -> None:
        """Copies blocks within a cache, as if all were read before any is written, and waits for completion.

        Args:
            cache: A blocks cache.
            copy_block_info: For each block to read, the blocks to write. No block may be written from two blocks.

        Raises:
            LLMException: As for ``copy_cache``.
        """
        with error_context("copy_blocks"):
            check_type("cache", cache, Cache)
            check_kind("cache", cache.is_blocks_cache, blocks=True)
            check_type("copy_block_info", copy_block_info, Mapping)
            pairs: list[tuple[int, int]] = []
            for source, targets in copy_block_info.items():
                source = check_int("a block of copy_block_info", source, ANY_INT)
                check_type(f"copy_block_info[{source}]", targets, Sequence)
                pairs += [(target, source) for target in targets]
            self._copy_executor.copy_rows("copy_block_info", ("cache", cache), ("cache", cache), pairs)
        logger.debug("copy_blocks: cache %d, %d blocks", cache.cache_id, len(copy_block_info))

    def swap_blocks(self, src_cache: Cache, dst_cache: Cache, src_to_dst: Mapping[int, int]) -> None:
        """Copies blocks from one cache to another, usually between host and device, and waits for completion.

        Args:
            src_cache: The blocks cache to read from. A cache from ``Cache.create_cpu_cache`` is accepted too.
            dst_cache: The cache to write to, with as many tensors, each of the same type and block size.
            src_to_dst: For each block to read, the block to write.

        Raises:
            LLMException: As for ``copy_cache``.
        """
        with error_context("swap_blocks"):
            for name, cache in (("src_cache", src_cache), ("dst_cache", dst_cache)):
                check_type(name, cache, Cache)
                if cache.cache_id != -1:
                    check_kind(name, cache.is_blocks_cache, blocks=True)
            check_type("src_to_dst", src_to_dst, Mapping)
            pairs = [(target, source) for source, target in src_to_dst.items()]
            self._copy_executor.copy_rows("src_to_dst", ("dst_cache", dst_cache), ("src_cache", src_cache), pairs)
        ids = src_cache.cache_id, dst_cache.cache_id
        logger.debug("swap_blocks: cache %d to cache %d, %d blocks", *ids, len(src_to_dst))

    def _add(self, call: str, make: Callable[[], NewCache]) -> Cache:
        """Adds a new cache. If anything is raised, nothing of the cache remains, because the caller does not get it."""
        new: NewCache | None = None
        try:
            with error_context(call):
                new = make()
                self._registry.add(new)
                logger.info("%s %r", "allocated" if new.allocated else "registered", new.cache)
                return new.cache
        except BaseException:  # of a signal handler too
            if new is not None:
                self._registry.discard(new.cache)
            raise

    def _allocate(self, cache_desc: CacheDesc, keys: Keys, *, blocks: bool = False) -> NewCache:
        check_type("cache_desc", cache_desc, CacheDesc)
        device = _memory.device_of(cache_desc.placement is Placement.DEVICE, self._device_id)
        self._registry.check(cache_desc, keys, allocated=True)  # before memory is used; `_add` checks again
        cache = allocate(cache_desc, device, is_blocks_cache=blocks)
        return NewCache(cache, keys, allocated=True, remote_accessible=True)

    def _register(
        self,
        cache_desc: CacheDesc,
        addrs: Sequence[int] | Sequence[Tensor],
        keys: Keys,
        remote_accessible: bool | None,
        *,
        blocks: bool = False,
    ) -> NewCache:
        check_type("cache_desc", cache_desc, CacheDesc)
        on_device = cache_desc.placement is Placement.DEVICE
        accessible = on_device if remote_accessible is None else remote_accessible
        check_type("remote_accessible", accessible, bool)
        device = _memory.device_of(on_device, self._device_id)
        cache = wrap(cache_desc, addrs, device, is_blocks_cache=blocks)
        return NewCache(cache, keys, allocated=False, remote_accessible=accessible)

    def _deallocate(self, cache: Cache, *, is_blocks_cache: bool) -> None:
        check_type("cache", cache, Cache)
        if cache.cache_id != -1:
            check_kind("cache", cache.is_blocks_cache, blocks=is_blocks_cache)
        self._registry.end_allocated(cache)
