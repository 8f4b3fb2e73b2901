# SPDX-License-Identifier: Apache-2.0
"""Pull and push: checks a call against the caches of both processes, then transfers the bytes."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..datadist.cache_keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from ..datadist.checks import check_kind
from ..datadist.status import LLMException, param_invalid
from ..datadist.transfer_types import TransferConfig
from .borrowed import Borrowed
from .counters import Counters
from .io_thread import Steps
from .layout import Numbers, Part
from .link_calls import borrow
from .links import Links
from .local_caches import HeldCache
from .messages import AddressKey, Key
from .shape_checks import Layers, check_block_lists, check_blocks, check_row, check_size, key_in_message, row_in_blocks
from .transfer_job import Move, TransferJob

LayerArguments = tuple[range | None, range | None, int]
"""src_layer_range, dst_layer_range, tensor_num_per_layer."""


class Transfers:
    """Transfers between caches of this process and caches of its peers, step by step. For the I/O thread.

    Args:
        links: The links.
        timeout_ms: Milliseconds that a call may take.
        counters: Counts what has been transferred.
    """

    def __init__(self, links: Links, timeout_ms: int, counters: Counters) -> None:
        self._links, self._timeout_ms, self._counters = links, timeout_ms, counters

    def pull_cache(
        self, key: CacheKey | CacheKeyByIdAndIndex, held: HeldCache, batch_index: int, size: int, layers: LayerArguments
    ) -> Steps[None]:
        """Reads one row of a peer's cache into one row of a cache."""
        local = self._links.caches.of(held.cache, held.tensors)
        check_row("batch_index", batch_index, local.layout, "cache")
        nbytes = check_size(size, local.layout, "cache")

        def plan(remote: Borrowed) -> Move:
            check_kind("the cache of cache_key", remote.layout.is_blocks, blocks=False)
            check_row("the batch index of cache_key", remote.row, remote.layout, "its cache")
            check_size(nbytes, remote.layout, "the cache of cache_key")
            dst, src = Layers(*layers).planes(dst=local.layout, src=remote.layout)
            pulled = _tensors(remote, src)
            return Move(local, _row(dst, batch_index), _row(src, remote.row), np.array([nbytes]), pulled)

        yield from self._run(key.cluster_id, key_in_message(key), plan, write=False)

    def pull_blocks(
        self,
        key: CacheKey | CacheKeyByIdAndIndex | BlocksCacheKey,
        held: HeldCache,
        src_blocks: Numbers,
        dst_blocks: Numbers,
        layers: LayerArguments,
    ) -> Steps[None]:
        """Reads blocks, or one row, of a peer's cache into blocks of a cache."""
        local = self._links.caches.of(held.cache, held.tensors)
        check_blocks("dst_blocks", dst_blocks, local.layout, "dst_cache", distinct=True)

        def plan(remote: Borrowed) -> Move:
            check_kind("the cache of src_cache_key", remote.layout.is_blocks, blocks=len(src_blocks) > 0)
            dst, src = Layers(*layers).planes(dst=local.layout, src=remote.layout)
            if len(src_blocks):
                check_block_lists(src_blocks, dst_blocks, remote.layout, local.layout)
                lengths = np.full_like(src_blocks, local.layout.row_bytes)
                return Move(local, _rows(dst, dst_blocks), _rows(src, src_blocks), lengths, [])
            check_row("the batch index of src_cache_key", remote.row, remote.layout, "its cache")
            sizes = remote.layout.row_bytes, local.layout.row_bytes
            offsets, lengths = row_in_blocks(*sizes, len(dst_blocks), "dst_blocks")
            row = Part(src, np.full_like(offsets, remote.row), offsets)
            return Move(local, _rows(dst, dst_blocks), row, lengths, _tensors(remote, src))

        yield from self._run(key.cluster_id, key_in_message(key), plan, write=False)

    def push_cache(
        self, key: CacheKeyByIdAndIndex, held: HeldCache, batch_index: int, size: int, layers: LayerArguments
    ) -> Steps[None]:
        """Writes one row of a cache to one row of a peer's cache."""
        local = self._links.caches.of(held.cache, held.tensors)
        check_row("src_batch_index", batch_index, local.layout, "src_cache")
        nbytes = check_size(size, local.layout, "src_cache")

        def plan(remote: Borrowed) -> Move:
            check_kind("the cache of dst_cache_key", remote.layout.is_blocks, blocks=False)
            check_row("the batch index of dst_cache_key", remote.row, remote.layout, "its cache")
            check_size(nbytes, remote.layout, "the cache of dst_cache_key")
            dst, src = Layers(*layers).planes(dst=remote.layout, src=local.layout)
            return Move(local, _row(src, batch_index), _row(dst, remote.row), np.array([nbytes]), [])

        yield from self._run(key.cluster_id, key_in_message(key), plan, write=True)

    def push_blocks(
        self,
        key: BlocksCacheKey | CacheKeyByIdAndIndex,
        held: HeldCache,
        src_blocks: Numbers,
        dst_blocks: Numbers,
        layers: LayerArguments,
    ) -> Steps[None]:
        """Writes blocks of a cache to blocks of a peer's cache."""
        local = self._links.caches.of(held.cache, held.tensors)
        check_blocks("src_blocks", src_blocks, local.layout, "src_cache")

        def plan(remote: Borrowed) -> Move:
            check_kind("the cache of dst_cache_key", remote.layout.is_blocks, blocks=True)
            check_block_lists(src_blocks, dst_blocks, local.layout, remote.layout)
            dst, src = Layers(*layers).planes(dst=remote.layout, src=local.layout)
            lengths = np.full_like(src_blocks, local.layout.row_bytes)
            return Move(local, _rows(src, src_blocks), _rows(dst, dst_blocks), lengths, [])

        yield from self._run(key.cluster_id, key_in_message(key), plan, write=True)

    def push_row_to_blocks(
        self,
        key: BlocksCacheKey | CacheKeyByIdAndIndex,
        held: HeldCache,
        row: int,
        dst_blocks: Numbers,
        layers: LayerArguments,
    ) -> Steps[None]:
        """Writes one row of a cache to blocks of a peer's cache. For ``layerwise``, which names the arguments."""
        local = self._links.caches.of(held.cache, held.tensors)
        check_row("src_batch_index", row, local.layout, "src_cache")

        def plan(remote: Borrowed) -> Move:
            check_blocks("dst_block_indices", dst_blocks, remote.layout, "the cache of cache_key", distinct=True)
            sizes = local.layout.row_bytes, remote.layout.row_bytes
            offsets, lengths = row_in_blocks(*sizes, len(dst_blocks), "dst_block_indices")
            dst, src = Layers(*layers).planes(dst=remote.layout, src=local.layout)
            return Move(local, Part(src, np.full_like(offsets, row), offsets), _rows(dst, dst_blocks), lengths, [])

        yield from self._run(key.cluster_id, key_in_message(key), plan, write=True)

    def push_to_addresses(
        self,
        config: TransferConfig,
        addresses: Sequence[int],
        held: HeldCache,
        layer: int,
        src_blocks: Numbers,
        dst_blocks: Numbers,
        block_bytes: int | None,
    ) -> Steps[None]:
        """Writes one layer of a cache to memory of a peer. For ``layerwise``, which names the arguments."""
        local = self._links.caches.of(held.cache, held.tensors)
        layout, row = local.layout, config.src_batch_index
        size = (block_bytes or layout.row_bytes) if len(dst_blocks) else layout.row_bytes
        if len(layout.bases) > layout.num_tensors:
            raise param_invalid("addresses need a cache whose batch_dim_index is 0")
        if len(src_blocks):
            check_blocks("src_block_indices", src_blocks, layout, "src_cache")
            if size != layout.row_bytes:
                raise param_invalid(f"dst_block_memory_size ({size}) must be that of src_cache, {layout.row_bytes}")
            rows, offsets, lengths = src_blocks, np.zeros_like(src_blocks), np.full_like(src_blocks, size)
        else:
            check_row("src_batch_index", row, layout, "src_cache")
            offsets, lengths = row_in_blocks(layout.row_bytes, size, max(len(dst_blocks), 1), "dst_block_indices")
            rows = np.full_like(offsets, row)
        written = dst_blocks if len(dst_blocks) else np.zeros(1, np.int64)
        if written.min() < 0:
            raise param_invalid(f"dst_block_indices: block {written.min()} must not be negative")
        key = AddressKey(list(addresses), size, int(written.max()) + 1, layout.dtype)

        def plan(remote: Borrowed) -> Move:
            return Move(local, Part((2 * layer, 2 * layer + 2), rows, offsets), _rows((0, 2), written), lengths, [])

        yield from self._run(config.dst_cluster_id, key, plan, write=True)

    def _run(self, cluster_id: int, key: Key, plan: Callable[[Borrowed], Move], *, write: bool) -> Steps[None]:
        """Borrows a cache of a peer, transfers what the plan says, and gives it back."""
        begin = time.monotonic()
        deadline = begin + self._timeout_ms / 1000
        link = self._links.find(cluster_id)
        try:
            if link.unlinking:
                yield (lambda: not link.unlinking), deadline
                link = self._links.find(cluster_id)
            link.transfers += 1
            try:
                borrowings = link.borrowings
                remote = yield from borrow(link, key, deadline, write=write)
                pulled = None
                try:
                    what = plan(remote)
                    if len(what.lengths):
                        job = TransferJob(link, remote, what, write=write, deadline=deadline)
                        yield from job.run(self._links.thread, self._links.make_staging)
                    if not write:
                        torch.autograd.graph.increment_version(what.local.tensors)
                    pulled = what.pulled
                finally:
                    borrowings.give_back(remote.loan, pulled)
            finally:
                link.transfers -= 1
        except LLMException as error:
            self._counters.failed(cluster_id, error.status_code)
            raise
        self._counters.moved(cluster_id, what.nbytes, time.monotonic() - begin, write=write)


def _row(planes: tuple[int, int], row: int) -> Part:
    return Part(planes, np.array([row]), np.zeros(1, np.int64))


def _rows(planes: tuple[int, int], rows: Numbers) -> Part:
    return Part(planes, rows, np.zeros_like(rows))


def _tensors(remote: Borrowed, planes: tuple[int, int]) -> list[int]:
    """The tensors that planes of a row are of."""
    each = len(remote.layout.bases) // remote.layout.num_tensors
    return list(range(planes[0] // each, planes[1] // each))
