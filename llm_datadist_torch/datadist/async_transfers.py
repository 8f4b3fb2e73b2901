# SPDX-License-Identifier: Apache-2.0
"""Pulls and pushes in the background, with the checks of their arguments."""

import weakref
from collections.abc import Sequence

from .cache import Cache
from .cache_keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from .checks import INT64, UINT32, check_int, check_kind, check_type
from .fork import ForkSafeLock
from .log import error_context
from .registry import CacheRegistry
from .remote_api import Remote, TransferCall, check_installed, open_remote
from .status import LLMStatusCode, llm_error, param_invalid
from .transfer_types import TransferHandle, checked_layers

Key = CacheKey | CacheKeyByIdAndIndex | BlocksCacheKey


class AsyncTransfers:
    """Pulls and pushes that return at once. Several may be in flight on one link.

    The arguments are those of the methods that block. A call raises what its arguments break, and LLM_NOT_YET_LINK without any
    link; all other errors are in the handle. The destination is undefined until the transfer has ended.

    Args:
        registry: The caches of this process, for its peers.
        timeout_ms: Milliseconds that a transfer may take.
    """

    def __init__(self, registry: CacheRegistry, timeout_ms: int) -> None:
        self._registry, self._timeout_ms = registry, timeout_ms
        self._opening = ForkSafeLock()
        self._remote: Remote | None = None
        self._finalized = False

    def open_links(self, cluster_id: int) -> Remote:
        """The links of this process, none at first, which all transfers use. For ``LinkCalls``.

        Args:
            cluster_id: The id of this process.

        Raises:
            LLMException: LLM_FEATURE_NOT_ENABLED without NIXL, pyzmq or msgspec; LLM_ENGINE_FINALIZED after ``finalize``.
        """
        with self._opening.current:
            if self._finalized:
                raise llm_error(LLMStatusCode.LLM_ENGINE_FINALIZED, "the manager is finalized")
            if self._remote is None:
                remote = open_remote(cluster_id, self._registry, self._timeout_ms)
                # A manager that is dropped without finalize must not leave links open.
                weakref.finalize(self, remote.close_in_thread).atexit = False
                self._remote = remote
            return self._remote

    @property
    def remote(self) -> Remote | None:
        """What ``open_links`` has returned, or None. For ``LinkCalls``."""
        return self._remote

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
        """Starts ``pull_cache``."""
        with error_context("pull_cache"):
            check_type("cache_key", cache_key, CacheKey, CacheKeyByIdAndIndex)
            check_cache("cache", cache, blocks=False)
            batch_index = check_int("batch_index", batch_index, UINT32)
            size = check_int("size", size, INT64)
            layers = checked_layers(src_layer_range, dst_layer_range, tensor_num_per_layer, cache.num_tensors)
            return self._start(TransferCall("pull_cache", cache_key, cache, (batch_index, size), layers))

    def pull_blocks_async(
        self,
        src_cache_key: Key,
        dst_cache: Cache,
        src_blocks: Sequence[int] = (),
        dst_blocks: Sequence[int] = (),
        *,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
    ) -> TransferHandle:
        """Starts ``pull_blocks``."""
        with error_context("pull_blocks"):
            check_type("src_cache_key", src_cache_key, CacheKey, CacheKeyByIdAndIndex, BlocksCacheKey)
            check_cache("dst_cache", dst_cache, blocks=True)
            blocks = checked_blocks("src_blocks", src_blocks), checked_blocks("dst_blocks", dst_blocks)
            if blocks[0] or isinstance(src_cache_key, BlocksCacheKey):
                _check_same_length(*blocks)
            if not blocks[1]:
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
        """Starts ``push_cache``."""
        with error_context("push_cache"):
            check_type("dst_cache_key", dst_cache_key, CacheKeyByIdAndIndex)
            check_cache("src_cache", src_cache, blocks=False)
            src_batch_index = check_int("src_batch_index", src_batch_index, UINT32)
            size = check_int("size", size, INT64)
            layers = checked_layers(src_layer_range, dst_layer_range, tensor_num_per_layer, src_cache.num_tensors)
            return self._start(TransferCall("push_cache", dst_cache_key, src_cache, (src_batch_index, size), layers))

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
        """Starts ``push_blocks``."""
        with error_context("push_blocks"):
            check_type("dst_cache_key", dst_cache_key, BlocksCacheKey, CacheKeyByIdAndIndex)
            check_cache("src_cache", src_cache, blocks=True)
            blocks = checked_blocks("src_blocks", src_blocks), checked_blocks("dst_blocks", dst_blocks)
            _check_same_length(*blocks)
            layers = checked_layers(src_layer_range, dst_layer_range, tensor_num_per_layer, src_cache.num_tensors)
            return self._start(TransferCall("push_blocks", dst_cache_key, src_cache, blocks, layers))

    def _start(self, call: TransferCall) -> TransferHandle:
        remote = self._linked(call.key.cluster_id)
        return TransferHandle(call.method, remote.start(call), remote.cancel)

    def _linked(self, cluster_id: int) -> Remote:
        remote = self._remote
        if self._finalized:
            raise llm_error(LLMStatusCode.LLM_ENGINE_FINALIZED, "the manager is finalized")
        if remote is None:
            check_installed()
            text = f"there is no link to cluster {cluster_id}; call link_clusters of the LLMDataDist of this manager"
            raise llm_error(LLMStatusCode.LLM_NOT_YET_LINK, text)
        return remote

    def _close_links(self) -> None:
        with self._opening.current:
            self._finalized, remote, self._remote = True, self._remote, None
        if remote is not None:
            remote.close()


def check_cache(name: str, cache: Cache, *, blocks: bool | None = None) -> None:
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


def checked_blocks(name: str, blocks: Sequence[int]) -> list[int]:
    """The numbers of blocks, as a list of int64. Looks at each by itself only if one is of another type."""
    check_type(name, blocks, list, tuple)
    if set(map(type, blocks)) != {int} or min(blocks) < INT64[0] or max(blocks) > INT64[1]:
        return [check_int(f"a block of {name}", block, INT64) for block in blocks]
    return list(blocks)


def _check_same_length(src_blocks: list[int], dst_blocks: list[int]) -> None:
    if len(src_blocks) != len(dst_blocks):
        raise param_invalid(
            f"src_blocks and dst_blocks must have the same length, got {len(src_blocks)} and {len(dst_blocks)}"
        )
