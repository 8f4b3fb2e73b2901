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
from .counters import Counters
from .held_leases import Lease
from .io_thread import Steps
from .layout import Numbers, Part
from .link_calls import acquire
from .links import Links
from .local_caches import KeptCache
from .messages import AddressKey, Key
from .shape_checks import (
    LayerArguments,
    check_block_lists,
    check_blocks,
    check_row,
    check_size,
    checked_planes,
    key_in_message,
    row_in_blocks,
)
from .transfer_job import Move, TransferJob

AnyKey = CacheKey | CacheKeyByIdAndIndex | BlocksCacheKey


class Transfers:
    """Transfers between caches of this process and caches of its peers, step by step. For the I/O thread."""

    def __init__(self, links: Links, timeout_ms: int, counters: Counters) -> None:
        self._links, self._timeout_ms, self._counters = links, timeout_ms, counters

    def copy_row(
        self, key: AnyKey, kept: KeptCache, index: int, size: int, layers: LayerArguments, *, write: bool
    ) -> Steps[None]:
        """Reads one row of a peer's cache into one row of a cache, or writes one row to one row of a peer's cache."""
        key_name, index_name = ("dst_cache_key", "src_batch_index") if write else ("cache_key", "batch_index")
        local = self._links.caches.of(kept)
        check_row(index_name, index, local.layout, kept.name)
        nbytes = check_size(size, local.layout, kept.name)

        def plan(remote: Lease) -> Move:
            check_kind(f"the cache of {key_name}", remote.layout.is_blocks, blocks=False)
            check_row(f"the batch index of {key_name}", remote.row, remote.layout, "its cache")
            check_size(nbytes, remote.layout, f"the cache of {key_name}")
            mine, theirs = checked_planes(layers, local.layout, remote.layout, write=write)
            pulled = [] if write else _tensors(remote, theirs)
            return Move(local, _row(mine, index), _row(theirs, remote.row), np.array([nbytes]), pulled)

        yield from self._run(key.cluster_id, key_in_message(key), plan, write=write)

    def copy_blocks(
        self,
        key: AnyKey,
        kept: KeptCache,
        src_blocks: Numbers,
        dst_blocks: Numbers,
        layers: LayerArguments,
        *,
        write: bool,
    ) -> Steps[None]:
        """Reads blocks of a peer's cache into blocks of a cache, or writes them to blocks of a peer's cache."""
        local = self._links.caches.of(kept)
        mine, theirs = (src_blocks, dst_blocks) if write else (dst_blocks, src_blocks)
        check_blocks("src_blocks" if write else "dst_blocks", mine, local.layout, kept.name, distinct=not write)

        def plan(remote: Lease) -> Move:
            check_kind(f"the cache of {'dst' if write else 'src'}_cache_key", remote.layout.is_blocks, blocks=True)
            src, dst = (local.layout, remote.layout) if write else (remote.layout, local.layout)
            check_block_lists(src_blocks, dst_blocks, src, dst)
            planes = checked_planes(layers, local.layout, remote.layout, write=write)
            lengths = np.full_like(mine, local.layout.row_bytes)
            return Move(local, _rows(planes[0], mine), _rows(planes[1], theirs), lengths, [])

        yield from self._run(key.cluster_id, key_in_message(key), plan, write=write)

    def pull_row_to_blocks(
        self, key: AnyKey, kept: KeptCache, dst_blocks: Numbers, layers: LayerArguments
    ) -> Steps[None]:
        """Reads one row of a peer's cache into blocks of a cache."""
        local = self._links.caches.of(kept)
        check_blocks("dst_blocks", dst_blocks, local.layout, kept.name, distinct=True)

        def plan(remote: Lease) -> Move:
            check_kind("the cache of src_cache_key", remote.layout.is_blocks, blocks=False)
            mine, theirs = checked_planes(layers, local.layout, remote.layout, write=False)
            check_row("the batch index of src_cache_key", remote.row, remote.layout, "its cache")
            sizes = remote.layout.row_bytes, local.layout.row_bytes
            offsets, lengths = row_in_blocks(*sizes, len(dst_blocks), "dst_blocks")
            row = Part(theirs, np.full_like(offsets, remote.row), offsets)
            return Move(local, _rows(mine, dst_blocks), row, lengths, _tensors(remote, theirs))

        yield from self._run(key.cluster_id, key_in_message(key), plan, write=False)

    def push_row_to_blocks(
        self, key: AnyKey, kept: KeptCache, row: int, dst_blocks: Numbers, layers: LayerArguments
    ) -> Steps[None]:
        """Writes one row of a cache to blocks of a peer's cache. For ``layerwise``, which names the arguments."""
        local = self._links.caches.of(kept)
        check_row("src_batch_index", row, local.layout, kept.name)

        def plan(remote: Lease) -> Move:
            check_blocks("dst_block_indices", dst_blocks, remote.layout, "the cache of cache_key", distinct=True)
            sizes = local.layout.row_bytes, remote.layout.row_bytes
            offsets, lengths = row_in_blocks(*sizes, len(dst_blocks), "dst_block_indices")
            mine, theirs = checked_planes(layers, local.layout, remote.layout, write=True)
            return Move(local, Part(mine, np.full_like(offsets, row), offsets), _rows(theirs, dst_blocks), lengths, [])

        yield from self._run(key.cluster_id, key_in_message(key), plan, write=True)

    def push_to_addresses(
        self,
        config: TransferConfig,
        addresses: Sequence[int],
        kept: KeptCache,
        layer: int,
        src_blocks: Numbers,
        dst_blocks: Numbers,
        block_bytes: int | None,
    ) -> Steps[None]:
        """Writes one layer of a cache to memory of a peer. For ``layerwise``, which names the arguments."""
        local = self._links.caches.of(kept)
        layout, row = local.layout, config.src_batch_index
        size = (block_bytes or layout.row_bytes) if len(dst_blocks) else layout.row_bytes
        if len(layout.bases) > layout.num_tensors:
            raise param_invalid("addresses need a cache whose batch_dim_index is 0")
        if len(src_blocks):
            check_blocks("src_block_indices", src_blocks, layout, kept.name)
            if size != layout.row_bytes:
                raise param_invalid(f"dst_block_memory_size ({size}) must be that of src_cache, {layout.row_bytes}")
            rows, offsets, lengths = src_blocks, np.zeros_like(src_blocks), np.full_like(src_blocks, size)
        else:
            check_row("src_batch_index", row, layout, kept.name)
            offsets, lengths = row_in_blocks(layout.row_bytes, size, max(len(dst_blocks), 1), "dst_block_indices")
            rows = np.full_like(offsets, row)
        written = dst_blocks if len(dst_blocks) else np.zeros(1, np.int64)
        if written.min() < 0:
            raise param_invalid(f"dst_block_indices: block {written.min()} must not be negative")
        key = AddressKey(list(addresses), size, int(written.max()) + 1, layout.dtype)

        def plan(remote: Lease) -> Move:
            return Move(local, Part((2 * layer, 2 * layer + 2), rows, offsets), _rows((0, 2), written), lengths, [])

        yield from self._run(config.dst_cluster_id, key, plan, write=True)

    def _run(self, cluster_id: int, key: Key, plan: Callable[[Lease], Move], *, write: bool) -> Steps[None]:
        """Acquires a lease of a cache of a peer, transfers what the plan says, and releases the lease."""
        begin = time.monotonic()
        deadline = begin + self._timeout_ms / 1000
        link = self._links.find(cluster_id)
        try:
            if link.unlinking:
                yield (lambda: not link.unlinking), deadline
                link = self._links.find(cluster_id)
            link.transfers += 1
            try:
                leases = link.held_leases
                remote = yield from acquire(link, key, deadline, write=write)
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
                    leases.release(remote.number, pulled)
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


def _tensors(remote: Lease, planes: tuple[int, int]) -> list[int]:
    """The tensors that planes of a row are of."""
    each = len(remote.layout.bases) // remote.layout.num_tensors
    return list(range(planes[0] // each, planes[1] // each))
