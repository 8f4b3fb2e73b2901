# SPDX-License-Identifier: Apache-2.0
"""Pull and push: checks a call against the caches of both processes, then transfers the bytes."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from ..datadist.cache import Cache
from ..datadist.checks import check_kind
from ..datadist.status import param_invalid
from ..datadist.transfer_types import TransferConfig, TransferWithCacheKeyConfig, cluster_of
from .layout import Part
from .links import Links
from .local_caches import LocalCache
from .peer_cache import PeerCache
from .shape_checks import (
    AddressKey,
    Key,
    Layers,
    check_block_lists,
    check_blocks,
    check_row,
    check_size,
    key_in_message,
    row_in_blocks,
)
from .transfer_job import TransferJob

LayerArguments = tuple[range | None, range | None, int]
"""src_layer_range, dst_layer_range, tensor_num_per_layer."""

Run = Callable[[LocalCache, Part, Part, Sequence[int]], None]
"""Transfers bytes: the cache of this process, its part, the part of the peer's cache, the bytes of each slice."""


class Transfers:
    """Transfers between caches of this process and caches of its peers. All calls block.

    Args:
        links: The links.
        timeout_ms: Milliseconds that a call may take, the wait for other calls on the same link included.
    """

    def __init__(self, links: Links, timeout_ms: int) -> None:
        self._links, self.timeout_ms = links, timeout_ms

    def pull_cache(self, key: Key, cache: Cache, batch_index: int, size: int, layers: LayerArguments) -> None:
        """Reads one row of a peer's cache into one row of a cache."""
        local = self._destination("cache", cache)
        check_row("batch_index", batch_index, local.layout, "cache")
        size = check_size(size, local.layout, "cache")
        with self._acquire(key, write=False) as (remote, run):
            check_kind("the cache of cache_key", remote.layout.is_blocks, blocks=False)
            check_row("the batch index of cache_key", remote.row, remote.layout, "its cache")
            check_size(size, remote.layout, "the cache of cache_key")
            dst, src = Layers(*layers).planes(dst=local.layout, src=remote.layout)
            run(local, Part(dst, [batch_index], [0]), Part(src, [remote.row], [0]), [size])
            torch.autograd.graph.increment_version(local.tensors)
            remote.add_pulled(src)

    def pull_blocks(
        self, key: Key, cache: Cache, src_blocks: Sequence[int], dst_blocks: Sequence[int], layers: LayerArguments
    ) -> None:
        """Reads blocks, or one row, of a peer's cache into blocks of a cache."""
        local = self._destination("dst_cache", cache)
        check_blocks("dst_blocks", dst_blocks, local.layout, "dst_cache", distinct=True)
        with self._acquire(key, write=False) as (remote, run):
            check_kind("the cache of src_cache_key", remote.layout.is_blocks, blocks=bool(src_blocks))
            dst, src = Layers(*layers).planes(dst=local.layout, src=remote.layout)
            if src_blocks:
                check_block_lists(src_blocks, dst_blocks, remote.layout, local.layout)
                offsets, lengths = [0] * len(src_blocks), [local.layout.row_bytes] * len(src_blocks)
            else:
                check_row("the batch index of src_cache_key", remote.row, remote.layout, "its cache")
                offsets, lengths = row_in_blocks(
                    remote.layout.row_bytes, local.layout.row_bytes, len(dst_blocks), "dst_blocks"
                )
            rows = src_blocks if src_blocks else [remote.row] * len(offsets)
            run(local, Part(dst, dst_blocks, [0] * len(offsets)), Part(src, rows, offsets), lengths)
            torch.autograd.graph.increment_version(local.tensors)
            if not src_blocks:
                remote.add_pulled(src)

    def push_cache(self, key: Key, cache: Cache, batch_index: int, size: int, layers: LayerArguments) -> None:
        """Writes one row of a cache to one row of a peer's cache."""
        local = self._links.caches.find("src_cache", cache)
        check_row("src_batch_index", batch_index, local.layout, "src_cache")
        size = check_size(size, local.layout, "src_cache")
        with self._acquire(key, write=True) as (remote, run):
            check_kind("the cache of dst_cache_key", remote.layout.is_blocks, blocks=False)
            check_row("the batch index of dst_cache_key", remote.row, remote.layout, "its cache")
            check_size(size, remote.layout, "the cache of dst_cache_key")
            dst, src = Layers(*layers).planes(dst=remote.layout, src=local.layout)
            run(local, Part(src, [batch_index], [0]), Part(dst, [remote.row], [0]), [size])

    def push_blocks(
        self, key: Key, cache: Cache, src_blocks: Sequence[int], dst_blocks: Sequence[int], layers: LayerArguments
    ) -> None:
        """Writes blocks of a cache to blocks of a peer's cache."""
        local = self._links.caches.find("src_cache", cache)
        check_blocks("src_blocks", src_blocks, local.layout, "src_cache")
        with self._acquire(key, write=True) as (remote, run):
            check_kind("the cache of dst_cache_key", remote.layout.is_blocks, blocks=True)
            check_block_lists(src_blocks, dst_blocks, local.layout, remote.layout)
            dst, src = Layers(*layers).planes(dst=remote.layout, src=local.layout)
            starts, lengths = [0] * len(src_blocks), [local.layout.row_bytes] * len(src_blocks)
            run(local, Part(src, src_blocks, starts), Part(dst, dst_blocks, starts), lengths)

    def check(self, name: str, cache: Cache, config: TransferConfig | TransferWithCacheKeyConfig) -> None:
        """Refuses a cache that has ended, and a config without a link."""
        self._links.caches.find(name, cache)
        self._links.find(cluster_of(config))

    def push_layer(
        self,
        config: TransferConfig | TransferWithCacheKeyConfig,
        cache: Cache,
        layer: int,
        layers: range,
        src_blocks: Sequence[int],
        dst_blocks: Sequence[int],
        block_bytes: int | None,
    ) -> None:
        """Writes one layer of a cache where a config says."""
        local = self._links.caches.find("src_cache", cache)
        number = layer - layers.start
        if isinstance(config, TransferWithCacheKeyConfig):
            target = config.dst_layer_range or layers
            if len(target) != len(layers):
                raise param_invalid(f"src_layer_range and dst_layer_range must be as long, got {layers} and {target}")
            which: LayerArguments = range(layer, layer + 1), target[number : number + 1], 2
            if src_blocks:
                self.push_blocks(config.cache_key, cache, src_blocks, dst_blocks, which)
            elif dst_blocks:
                self._push_row_to_blocks(config.cache_key, local, config.src_batch_index, dst_blocks, which)
            else:
                self.push_cache(config.cache_key, cache, config.src_batch_index, -1, which)
            return
        size = (block_bytes or local.layout.row_bytes) if dst_blocks else local.layout.row_bytes
        addresses = list(config.dst_addrs[2 * number : 2 * number + 2])
        key = AddressKey(config.dst_cluster_id, addresses, size, max(dst_blocks, default=0) + 1, local.layout.dtype)
        row = config.src_batch_index
        if src_blocks:
            check_blocks("src_block_indices", src_blocks, local.layout, "src_cache")
            if size != local.layout.row_bytes:
                raise param_invalid(
                    f"dst_block_memory_size ({size}) must be that of src_cache, {local.layout.row_bytes}"
                )
            rows, offsets, lengths = src_blocks, [0] * len(src_blocks), [size] * len(src_blocks)
        else:
            check_row("src_batch_index", row, local.layout, "src_cache")
            offsets, lengths = row_in_blocks(local.layout.row_bytes, size, max(len(dst_blocks), 1), "dst_block_indices")
            rows = [row] * len(offsets)
        with self._acquire(key, write=True) as (_, run):
            if len(local.layout.bases) > local.layout.num_tensors:
                raise param_invalid("addresses need a cache whose batch_dim_index is 0")
            remote_part = Part((0, 2), dst_blocks or [0], [0] * len(offsets))
            run(local, Part((2 * layer, 2 * layer + 2), rows, offsets), remote_part, lengths)

    def _push_row_to_blocks(
        self, key: Key, local: LocalCache, row: int, dst_blocks: Sequence[int], layers: LayerArguments
    ) -> None:
        check_row("src_batch_index", row, local.layout, "src_cache")
        with self._acquire(key, write=True) as (remote, run):
            check_blocks("dst_block_indices", dst_blocks, remote.layout, "the cache of cache_key", distinct=True)
            offsets, lengths = row_in_blocks(
                local.layout.row_bytes, remote.layout.row_bytes, len(dst_blocks), "dst_block_indices"
            )
            dst, src = Layers(*layers).planes(dst=remote.layout, src=local.layout)
            run(local, Part(src, [row] * len(offsets), offsets), Part(dst, dst_blocks, [0] * len(offsets)), lengths)

    def _destination(self, name: str, cache: Cache) -> LocalCache:
        local = self._links.caches.find(name, cache)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in local.tensors):
            raise param_invalid(
                f"{name} requires grad, and a copy into it would be lost to autograd: detach it, or call under torch.no_grad()"
            )
        return local

    @contextlib.contextmanager
    def _acquire(self, key: Key | AddressKey, *, write: bool) -> Iterator[tuple[PeerCache, Run]]:
        """The cache of a key, until the end of the block, and the function that transfers bytes from or to it."""
        deadline = time.monotonic() + self.timeout_ms / 1000
        link = self._links.find(key.cluster_id)

        def run(local: LocalCache, local_part: Part, remote_part: Part, lengths: Sequence[int]) -> None:
            if lengths:
                TransferJob(
                    link, local, local_part, remote, remote_part, lengths, write, deadline, self.timeout_ms
                ).run()

        with link.use(deadline), link.acquire(key_in_message(key), deadline, write=write) as remote:
            yield remote, run
