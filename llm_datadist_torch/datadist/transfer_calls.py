# SPDX-License-Identifier: Apache-2.0
"""The calls of CacheManager on caches of other processes, with the checks of their arguments."""

import importlib.util
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .cache import Cache
from .cache_keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from .checks import INT64, UINT32, check_int, check_kind, check_type
from .log import error_context, logger
from .registry import CacheRegistry
from .status import LLMStatusCode, llm_error, param_invalid
from .transfer_types import (
    CacheTask,
    LayerSynchronizer,
    TransferConfig,
    TransferWithCacheKeyConfig,
    checked_layers,
    cluster_of,
)
from .unserved import UnservedCall

if TYPE_CHECKING:
    from ..remote.links import Links
    from ..remote.transfers import Transfers


class TransferCalls:
    """Transfers of caches between linked processes. See docs/remote.md.

    All raise, besides the errors of every call of CacheManager:

    - LLM_NOT_YET_LINK without a link to the cluster that the key names;
    - LLM_KV_CACHE_NOT_EXIST if the key names no cache there;
    - LLM_TIMEOUT after ``sync_kv_timeout``, and LLM_LINK_FAILED if the peer is lost: the link has ended then, and what the
      destination range holds is undefined;
    - LLM_FEATURE_NOT_ENABLED without NIXL;
    - LLM_PARAM_INVALID for a cache whose tensors differ in shape or dtype.

    Args:
        registry: The caches of this process, for its peers.
        timeout_ms: Milliseconds that a transfer may take.
    """

    def __init__(self, registry: CacheRegistry, timeout_ms: int) -> None:
        self._registry, self._timeout_ms = registry, timeout_ms
        self._links: Links | None = None
        self._transfers: Transfers | None = None
        self._finalized = False

    def open_links(self, cluster_id: int) -> "Links":
        """Creates the links of this process, none at first, which all transfers use. For LLMDataDist.

        Args:
            cluster_id: The id of this process.

        Raises:
            LLMException: LLM_FEATURE_NOT_ENABLED without NIXL.
        """
        _check_nixl()
        from ..remote.links import Links
        from ..remote.transfers import Transfers

        links = Links(cluster_id, self._registry)
        # The threads of the links would outlive a manager that is dropped without finalize. Nothing waits for peers then.
        weakref.finalize(self, lambda: links.close(time.monotonic())).atexit = False
        self._links, self._transfers = links, Transfers(links, self._timeout_ms)
        return links

    def _close_links(self) -> None:
        if self._links is not None:
            self._links.close(time.monotonic() + self._timeout_ms / 1000)

    def pull_cache(
        self,
        cache_key: CacheKey | CacheKeyByIdAndIndex,
        cache: Cache,
        batch_index: int = 0,
        size: int = -1,
        *,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
    ) -> None:
        """Reads a row of a cache of another process into a row of ``cache``, and waits for completion.

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
            layers = checked_layers(src_layer_range, dst_layer_range, tensor_num_per_layer)
            self._linked(cache_key.cluster_id).pull_cache(cache_key, cache, batch_index, size, layers)
        logger.debug("pull_cache: %s to cache %d row %d", cache_key, cache.cache_id, batch_index)

    def pull_blocks(
        self,
        src_cache_key: CacheKey | CacheKeyByIdAndIndex | BlocksCacheKey,
        dst_cache: Cache,
        src_blocks: Sequence[int] = (),
        dst_blocks: Sequence[int] = (),
        *,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
    ) -> None:
        """Reads blocks of a cache of another process into blocks of ``dst_cache``, and waits for completion.

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
            read, written = _blocks("src_blocks", src_blocks), _blocks("dst_blocks", dst_blocks)
            if read or isinstance(src_cache_key, BlocksCacheKey):
                _check_same_length(read, written)
            layers = checked_layers(src_layer_range, dst_layer_range, tensor_num_per_layer)
            transfers = self._linked(src_cache_key.cluster_id)
            if written:
                transfers.pull_blocks(src_cache_key, dst_cache, read, written, layers)
        logger.debug("pull_blocks: %s to cache %d, %d blocks", src_cache_key, dst_cache.cache_id, len(written))

    def push_cache(
        self,
        dst_cache_key: CacheKeyByIdAndIndex,
        src_cache: Cache,
        src_batch_index: int = 0,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        size: int = -1,
        tensor_num_per_layer: int = 2,
    ) -> None:
        """Writes a row of ``src_cache`` to a row of a cache of another process, and waits for completion.

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
            layers = checked_layers(src_layer_range, dst_layer_range, tensor_num_per_layer)
            transfers = self._linked(dst_cache_key.cluster_id)
            transfers.push_cache(dst_cache_key, src_cache, src_batch_index, size, layers)
        logger.debug("push_cache: cache %d row %d to %s", src_cache.cache_id, src_batch_index, dst_cache_key)

    def push_blocks(
        self,
        dst_cache_key: BlocksCacheKey | CacheKeyByIdAndIndex,
        src_cache: Cache,
        src_blocks: Sequence[int] = (),
        dst_blocks: Sequence[int] = (),
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
    ) -> None:
        """Writes blocks of ``src_cache`` to blocks of a cache of another process, and waits for completion.

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
            read, written = _blocks("src_blocks", src_blocks), _blocks("dst_blocks", dst_blocks)
            _check_same_length(read, written)
            layers = checked_layers(src_layer_range, dst_layer_range, tensor_num_per_layer)
            self._linked(dst_cache_key.cluster_id).push_blocks(dst_cache_key, src_cache, read, written, layers)
        logger.debug("push_blocks: cache %d to %s, %d blocks", src_cache.cache_id, dst_cache_key, len(read))

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
            src_block_indices: The blocks to read, if ``src_cache`` is a blocks cache.
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
            read = _blocks("src_block_indices", () if src_block_indices is None else src_block_indices)
            written = _blocks("dst_block_indices", () if dst_block_indices is None else dst_block_indices)
            if dst_block_memory_size is not None:
                dst_block_memory_size = check_int("dst_block_memory_size", dst_block_memory_size, (0, INT64[1]))
            if bool(read) != src_cache.is_blocks_cache or (read and len(read) != len(written)):
                raise param_invalid(
                    "src_block_indices must be given for a blocks cache only, with as many dst_block_indices, got "
                    f"{len(read)} and {len(written)}"
                )
            for config in transfer_configs:
                transfers = self._linked(cluster_of(config))
            from ..remote.layerwise import start

            size = dst_block_memory_size or None
            return start(transfers, src_cache, layer_synchronizer, transfer_configs, read, written, size)

    remap_registered_memory = UnservedCall(
        "repairs memory of an NPU after a fault, which LLM-DataDist's own pages call reserved: end the link with "
        "unlink_clusters, register the memory anew, and link again"
    )

    def _linked(self, cluster_id: int) -> "Transfers":
        if self._finalized:
            raise llm_error(LLMStatusCode.LLM_ENGINE_FINALIZED, "the manager is finalized")
        if self._transfers is None:
            _check_nixl()
            raise llm_error(
                LLMStatusCode.LLM_NOT_YET_LINK,
                f"there is no link to cluster {cluster_id}; call link_clusters of the LLMDataDist of this manager",
            )
        return self._transfers


def _check_nixl() -> None:
    if importlib.util.find_spec("nixl_cu12") is None:
        raise llm_error(
            LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
            "caches of other processes need NIXL: pip install 'llm_datadist_torch[remote]'",
        )


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


def _blocks(name: str, blocks: Sequence[int]) -> list[int]:
    check_type(name, blocks, list, tuple)
    return [check_int(f"a block of {name}", block, INT64) for block in blocks]


def _check_same_length(src_blocks: list[int], dst_blocks: list[int]) -> None:
    if len(src_blocks) != len(dst_blocks):
        raise param_invalid(
            f"src_blocks and dst_blocks must have the same length, got {len(src_blocks)} and {len(dst_blocks)}"
        )
