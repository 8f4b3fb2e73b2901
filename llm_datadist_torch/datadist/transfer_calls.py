# SPDX-License-Identifier: Apache-2.0
"""The calls of CacheManager on caches of other processes, with the checks of their arguments."""

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec

from .cache import Cache
from .cache_keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from .checks import INT64, UINT32, check_int, check_kind, check_type
from .link_owner import LinkOwner
from .log import error_context
from .remote_api import Blocks, LayerwiseCall, Row, TransferCall
from .status import param_invalid
from .transfer_types import (
    CacheTask,
    LayerSynchronizer,
    TransferConfig,
    TransferHandle,
    TransferWithCacheKeyConfig,
    checked_layers,
    cluster_of,
)
from .unserved import UnservedCall

P = ParamSpec("P")


def _waiting(
    start: Callable[Concatenate["TransferCalls", P], TransferHandle],
) -> Callable[Concatenate["TransferCalls", P], None]:
    """A method that starts a transfer, as one that waits for its end. A signal handler that raises ends the transfer."""

    @functools.wraps(start)
    def method(self: "TransferCalls", /, *args: P.args, **kwargs: P.kwargs) -> None:
        handle = start(self, *args, **kwargs)
        try:
            handle.wait()
        except BaseException:
            handle.cancel()
            raise
        handle.result()

    for name in ("__name__", "__qualname__"):
        setattr(method, name, getattr(start, name).removesuffix("_async"))
    method.__signature__ = inspect.signature(start).replace(return_annotation=None)  # type: ignore[attr-defined]
    return method


class TransferCalls(LinkOwner):
    """Transfers of caches between linked processes. See docs/remote.md.

    Those whose names end in ``_async`` return at once. Several may be in flight on one link, and the destination is undefined
    until a transfer has ended. They raise what their arguments break, and LLM_NOT_YET_LINK without any link; all other errors
    are in the handle. The others wait for the end of the transfer.

    All raise, besides the errors of every call of CacheManager:

    - LLM_NOT_YET_LINK without a link to the cluster that the key names;
    - LLM_KV_CACHE_NOT_EXIST if the key names no cache there;
    - LLM_TIMEOUT after ``sync_kv_timeout``, and LLM_LINK_FAILED if the peer is lost: the link has ended then, and what the
      destination range holds is undefined;
    - LLM_FEATURE_NOT_ENABLED without NIXL;
    - LLM_PARAM_INVALID for a cache whose tensors differ in shape or dtype.
    """

    def pull_cache_async(
        self,
        cache_key: CacheKey | CacheKeyByIdAndIndex,
        cache: Cache,
        batch_index: int = 0,
        size: int = -1,
        *,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
    ) -> TransferHandle:
        """Reads a row of a cache of another process into a row of ``cache``.

        Reading all tensors by a CacheKey with a req_id removes the key there, if the cache was allocated.

        Args:
            cache_key: The row to read.
            cache: The cache to write to, not a blocks cache.
            batch_index: The row to write to, a uint32.
            size: The bytes to read from the start of the row of each tensor, or -1 for as many as a row of ``cache`` has.
            src_layer_range: The layers to read, a range of step 1, or None for all.
            dst_layer_range: The layers to write, as many.
            tensor_num_per_layer: The tensors of a layer.
        """
        with error_context("pull_cache"):
            check_type("cache_key", cache_key, CacheKey, CacheKeyByIdAndIndex)
            _check_cache("cache", cache, blocks=False)
            batch_index = check_int("batch_index", batch_index, UINT32)
            size = check_int("size", size, INT64)
            layers = checked_layers(src_layer_range, dst_layer_range, tensor_num_per_layer, cache.num_tensors)
            return self._start(TransferCall("pull_cache", cache_key, cache, Row(batch_index, size), layers))

    def pull_blocks_async(
        self,
        src_cache_key: CacheKey | CacheKeyByIdAndIndex | BlocksCacheKey,
        dst_cache: Cache,
        src_blocks: Sequence[int] = (),
        dst_blocks: Sequence[int] = (),
        *,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
    ) -> TransferHandle:
        """Reads blocks of a cache of another process into blocks of ``dst_cache``.

        Args:
            src_cache_key: The cache to read from: a blocks cache, or a row of a contiguous one.
            dst_cache: The blocks cache to write to.
            src_blocks: The blocks to read; empty for a contiguous cache, whose row fills the blocks in their order.
            dst_blocks: The blocks to write, as many.
            src_layer_range, dst_layer_range, tensor_num_per_layer: As for ``pull_cache``.
        """
        with error_context("pull_blocks"):
            check_type("src_cache_key", src_cache_key, CacheKey, CacheKeyByIdAndIndex, BlocksCacheKey)
            _check_cache("dst_cache", dst_cache, blocks=True)
            blocks = Blocks(_checked_blocks("src_blocks", src_blocks), _checked_blocks("dst_blocks", dst_blocks))
            if blocks.src or isinstance(src_cache_key, BlocksCacheKey):
                _check_same_length(blocks)
            if not blocks.dst:
                raise param_invalid("dst_blocks must hold at least one block, got an empty list")
            layers = checked_layers(src_layer_range, dst_layer_range, tensor_num_per_layer, dst_cache.num_tensors)
            return self._start(TransferCall("pull_blocks", src_cache_key, dst_cache, blocks, layers))

    def push_cache_async(
        self,
        dst_cache_key: CacheKeyByIdAndIndex,
        src_cache: Cache,
        src_batch_index: int = 0,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        size: int = -1,
        tensor_num_per_layer: int = 2,
    ) -> TransferHandle:
        """Writes a row of ``src_cache`` to a row of a cache of another process.

        Args:
            dst_cache_key: The row to write to.
            src_cache: The cache to read from, not a blocks cache.
            src_batch_index: The row to read, a uint32.
            src_layer_range, dst_layer_range, tensor_num_per_layer: As for ``pull_cache``.
            size: The bytes to write to the start of the row of each tensor, or -1 for as many as a row of ``src_cache`` has.
        """
        with error_context("push_cache"):
            check_type("dst_cache_key", dst_cache_key, CacheKeyByIdAndIndex)
            _check_cache("src_cache", src_cache, blocks=False)
            src_batch_index = check_int("src_batch_index", src_batch_index, UINT32)
            size = check_int("size", size, INT64)
            layers = checked_layers(src_layer_range, dst_layer_range, tensor_num_per_layer, src_cache.num_tensors)
            return self._start(TransferCall("push_cache", dst_cache_key, src_cache, Row(src_batch_index, size), layers))

    def push_blocks_async(
        self,
        dst_cache_key: BlocksCacheKey | CacheKeyByIdAndIndex,
        src_cache: Cache,
        src_blocks: Sequence[int] = (),
        dst_blocks: Sequence[int] = (),
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
    ) -> TransferHandle:
        """Writes blocks of ``src_cache`` to blocks of a cache of another process.

        Args:
            dst_cache_key: The blocks cache to write to.
            src_cache: The blocks cache to read from.
            src_blocks: The blocks to read.
            dst_blocks: The blocks to write, as many.
            src_layer_range, dst_layer_range, tensor_num_per_layer: As for ``pull_cache``.
        """
        with error_context("push_blocks"):
            check_type("dst_cache_key", dst_cache_key, BlocksCacheKey, CacheKeyByIdAndIndex)
            _check_cache("src_cache", src_cache, blocks=True)
            blocks = Blocks(_checked_blocks("src_blocks", src_blocks), _checked_blocks("dst_blocks", dst_blocks))
            _check_same_length(blocks)
            layers = checked_layers(src_layer_range, dst_layer_range, tensor_num_per_layer, src_cache.num_tensors)
            return self._start(TransferCall("push_blocks", dst_cache_key, src_cache, blocks, layers))

    pull_cache, pull_blocks = _waiting(pull_cache_async), _waiting(pull_blocks_async)
    push_cache, push_blocks = _waiting(push_cache_async), _waiting(push_blocks_async)

    def transfer_cache_async(
        self,
        src_cache: Cache,
        layer_synchronizer: LayerSynchronizer,
        transfer_configs: Sequence[TransferConfig | TransferWithCacheKeyConfig],
        src_block_indices: Sequence[int] | None = None,
        dst_block_indices: Sequence[int] | None = None,
        dst_block_memory_size: int | None = None,
    ) -> CacheTask:
        """Writes a cache to caches of other processes, layer by layer, in the background.

        A layer has two tensors. It is written as soon as ``layer_synchronizer`` says that it has been computed.

        Args:
            src_cache: The cache to read from.
            layer_synchronizer: Says when a layer may be read.
            transfer_configs: What to write where.
            src_block_indices: The blocks to read, if ``src_cache`` is a blocks cache. Block 0, to block 0, if neither is given.
            dst_block_indices: The blocks to write: as many, or those that a row of ``src_cache`` fills.
            dst_block_memory_size: The bytes of a block to write, with addresses instead of a key. None or 0 means those
                of ``src_cache``, if it is a blocks cache.

        Returns:
            The running transfer, which collects the results. Errors after the start do not raise, but are in the results.
        """
        with error_context("transfer_cache_async"):
            _check_cache("src_cache", src_cache)
            check_type("layer_synchronizer", layer_synchronizer, LayerSynchronizer)
            check_type("transfer_configs", transfer_configs, list, tuple)
            if not transfer_configs:
                raise param_invalid("transfer_configs must hold at least one config, got an empty list")
            for index, config in enumerate(transfer_configs):
                check_type(f"transfer_configs[{index}]", config, TransferConfig, TransferWithCacheKeyConfig)
            read = _checked_blocks("src_block_indices", () if src_block_indices is None else src_block_indices)
            written = _checked_blocks("dst_block_indices", () if dst_block_indices is None else dst_block_indices)
            if dst_block_memory_size is not None:
                dst_block_memory_size = check_int("dst_block_memory_size", dst_block_memory_size, (0, INT64[1]))
            if src_cache.is_blocks_cache and not read and not written:
                read = written = [0]
            if bool(read) != src_cache.is_blocks_cache or (read and len(read) != len(written)):
                raise param_invalid(
                    "src_block_indices must be given for a blocks cache only, with as many dst_block_indices, got "
                    f"{len(read)} and {len(written)}"
                )
            remote = self._linked(cluster_of(transfer_configs[0]))
            configs = [copy.copy(config) for config in transfer_configs]  # theirs can be changed
            size = dst_block_memory_size or None
            return remote.start_layerwise(LayerwiseCall(src_cache, layer_synchronizer, configs, read, written, size))

    remap_registered_memory = UnservedCall(
        "repairs memory of an NPU after a fault, which LLM-DataDist's own pages call reserved: end the link with "
        "unlink_clusters, register the memory anew, and link again"
    )

    def _start(self, call: TransferCall) -> TransferHandle:
        remote = self._linked(call.key.cluster_id)
        return TransferHandle(call.method, remote.start(call), remote.cancel)


def _check_cache(name: str, cache: Cache, *, blocks: bool | None = None) -> None:
    """Refuses a cache of the wrong kind (None: both are right), or one whose tensors differ."""
    check_type(name, cache, Cache)
    if blocks is not None:
        check_kind(name, cache.is_blocks_cache, blocks=blocks)
    if len(cache.cache_descs) > 1:
        first, other = cache.cache_descs[:2]
        raise param_invalid(
            f"{name}: tensors[{first.num_tensors}] must have the shape and dtype of tensors[0], {first.dims} and "
            f"{first.torch_dtype}, got {other.dims} and {other.torch_dtype}: only equal tensors can be sent to or read "
            "from another process; make a cache of each group of equal tensors"
        )


def _checked_blocks(name: str, blocks: Sequence[int]) -> list[int]:
    """The numbers of blocks, as a list of int64. Looks at each by itself only if one is of another type."""
    check_type(name, blocks, list, tuple)
    if set(map(type, blocks)) != {int} or min(blocks) < INT64[0] or max(blocks) > INT64[1]:
        return [check_int(f"a block of {name}", block, INT64) for block in blocks]
    return list(blocks)


def _check_same_length(blocks: Blocks) -> None:
    src, dst = map(len, blocks)
    if src != dst:
        raise param_invalid(f"src_blocks and dst_blocks must have the same length, got {src} and {dst}")
