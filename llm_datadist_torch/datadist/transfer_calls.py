# SPDX-License-Identifier: Apache-2.0
"""The calls of CacheManager on caches of other processes."""

import copy
from collections.abc import Sequence

from .async_transfers import AsyncTransfers, check_cache, checked_blocks
from .cache import Cache
from .cache_keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from .checks import INT64, check_int, check_type
from .log import error_context
from .remote_api import LayerwiseCall
from .status import param_invalid
from .transfer_types import (
    CacheTask,
    LayerSynchronizer,
    TransferConfig,
    TransferHandle,
    TransferWithCacheKeyConfig,
    cluster_of,
)
from .unserved import UnservedCall


class TransferCalls(AsyncTransfers):
    """Transfers of caches between linked processes. See docs/remote.md.

    All raise, besides the errors of every call of CacheManager:

    - LLM_NOT_YET_LINK without a link to the cluster that the key names;
    - LLM_KV_CACHE_NOT_EXIST if the key names no cache there;
    - LLM_TIMEOUT after ``sync_kv_timeout``, and LLM_LINK_FAILED if the peer is lost: the link has ended then, and what the
      destination range holds is undefined;
    - LLM_FEATURE_NOT_ENABLED without NIXL;
    - LLM_PARAM_INVALID for a cache whose tensors differ in shape or dtype.
    """

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
        _finish(
            self.pull_cache_async(
                cache_key,
                cache,
                batch_index,
                size,
                src_layer_range=src_layer_range,
                dst_layer_range=dst_layer_range,
                tensor_num_per_layer=tensor_num_per_layer,
            )
        )

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
        _finish(
            self.pull_blocks_async(
                src_cache_key,
                dst_cache,
                src_blocks,
                dst_blocks,
                src_layer_range=src_layer_range,
                dst_layer_range=dst_layer_range,
                tensor_num_per_layer=tensor_num_per_layer,
            )
        )

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
        layers = src_layer_range, dst_layer_range
        _finish(self.push_cache_async(dst_cache_key, src_cache, src_batch_index, *layers, size, tensor_num_per_layer))

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
        layers = src_layer_range, dst_layer_range, tensor_num_per_layer
        _finish(self.push_blocks_async(dst_cache_key, src_cache, src_blocks, dst_blocks, *layers))

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
            check_cache("src_cache", src_cache)
            check_type("layer_synchronizer", layer_synchronizer, LayerSynchronizer)
            check_type("transfer_configs", transfer_configs, list, tuple)
            if not transfer_configs:
                raise param_invalid("transfer_configs must hold at least one config, got an empty list")
            for index, config in enumerate(transfer_configs):
                check_type(f"transfer_configs[{index}]", config, TransferConfig, TransferWithCacheKeyConfig)
            read = checked_blocks("src_block_indices", () if src_block_indices is None else src_block_indices)
            written = checked_blocks("dst_block_indices", () if dst_block_indices is None else dst_block_indices)
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


def _finish(handle: TransferHandle) -> None:
    """Waits for a transfer. A signal handler that raises, as for Ctrl-C, ends it."""
    try:
        handle.wait()
    except BaseException:
        handle.cancel()
        raise
    handle.result()
