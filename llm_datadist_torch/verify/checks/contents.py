# SPDX-License-Identifier: Apache-2.0
"""The right bytes, and nothing else written: layouts, directions, batches, overlap."""

from collections.abc import Callable

import torch

from ...ops import copy_cache
from ..caches import (
    CheckedCache,
    Layout,
    expect_batch,
    expect_copy,
    heads,
    keys_and_values,
    scattered,
    separate,
    stacked,
    views,
)
from ..registry import DoesNotHold, check, expect

BOTH = ("cpu", "npu")
EVERYTHING = "every call of copy_cache"

_LAYOUTS: dict[str, Callable[[], Layout]] = {
    "stacked": stacked,
    "separate": separate,
    "views": views,
    "scattered": scattered,
    "keys_and_values": keys_and_values,
    "heads": heads,
}
_SLICES = ((1, 2), (3, 0, 64), (0, 3, 128, 256))


def _check_layout(name: str, layout: Callable[[], Layout]) -> None:
    @check(f"bytes.{name}", f"copy_cache copies caches of the layout {name}", used_by=EVERYTHING, devices=BOTH)
    def run(device: torch.device) -> str:
        dst, src = CheckedCache(layout(), device), CheckedCache(layout(), device, seed=1)
        for slice_ in _SLICES:
            expect_copy(dst, src, *slice_)
            expect_copy(dst, dst, *slice_)
        return ""


for _name, _layout in _LAYOUTS.items():
    _check_layout(_name, _layout)


@check(
    "bytes.different_shapes",
    "dst and src may differ in the number and the size of rows",
    used_by="a temporary cache of one row, copied to a model's cache",
    devices=BOTH,
)
def different_shapes(device: torch.device) -> str:
    dst = CheckedCache(stacked(batch=8, row=1024), device)
    src = CheckedCache(stacked(batch=1, row=512), device, seed=1)
    expect_copy(dst, src, 7, 0)
    expect_copy(dst, src, 2, 0, 64, 128)
    return ""


@check(
    "bytes.long_list",
    "a list of 160 tensors, forward to backward, has the bytes of 160 copies",
    used_by="caches of separately allocated tensors",
    devices=BOTH,
)
def long_list(device: torch.device) -> str:
    dst = CheckedCache(scattered(160, backward=True), device)
    expect_copy(dst, CheckedCache(scattered(160), device, seed=1), 1, 2)
    return ""


def _check_direction(to: str, of: str) -> None:
    @check(
        f"bytes.{of}_to_{to}",
        f"copy_cache and copy_cache_batch copy from {of} memory to {to} memory",
        used_by="offloading to the host, and swapping blocks",
    )
    def run(device: torch.device) -> str:
        for layout in _LAYOUTS.values():
            dst, src = CheckedCache(layout(), device, to), CheckedCache(layout(), device, of, seed=1)
            expect_copy(dst, src, 1, 2)
            expect_batch(dst, src, [(0, 3, 0, -1), (2, 1, 64, 128), (3, 0, 0, -1)])
        dst = CheckedCache(scattered(64, backward=True), device, to)
        expect_batch(dst, CheckedCache(scattered(64), device, of, seed=1), [(0, 3, 0, -1), (2, 1, 64, 128)])
        return ""


for _to, _of in (("device", "pinned"), ("device", "pageable"), ("pinned", "device"), ("pageable", "device")):
    _check_direction(_to, _of)


@check(
    "batch.cycles",
    "copy_cache_batch reads every row before it writes one: chains, swaps, permutations",
    used_by="beam search, copies of blocks within one cache",
    devices=BOTH,
)
def cycles(device: torch.device) -> str:
    chain = [(row + 1, row, 0, -1) for row in range(7)]
    swaps = [(0, 1, 0, -1), (1, 0, 0, -1), (2, 3, 64, 128), (3, 2, 64, 128)]
    ring = [(row, (row + 1) % 8, 0, -1) for row in range(8)]
    for layout in (stacked, separate, scattered, keys_and_values):
        cache = CheckedCache(layout(batch=8), device)
        for copies in (chain, swaps, ring, []):
            expect_batch(cache, cache, copies)
    return ""


@check(
    "batch.thousand_blocks",
    "copy_cache_batch copies 1,000 blocks of 16 tensors in any order",
    used_by="paged caches",
    devices=BOTH,
)
def thousand_blocks(device: torch.device) -> str:
    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).tolist()
    anywhere = [(1000 + to, of, 0, -1) for to, of in enumerate(shuffled)]
    permutation = [(to, of, 0, -1) for to, of in enumerate(shuffled)]
    for layout in (stacked, scattered):
        cache = CheckedCache(layout(16, 2000, 64), device)
        expect_batch(cache, cache, anywhere)
        expect_batch(cache, cache, permutation)
    return ""


@check(
    "bytes.own_source",
    "a range that partly overlaps its own source is copied as if it was read first",
    used_by="two views of one buffer, some tokens apart",
    devices=BOTH,
)
def own_source(device: torch.device) -> str:
    for to, of in ((64, 0), (0, 64)):
        cache = CheckedCache(Layout([8192], list), device)
        dst, src = (cache.buffers[0][start : start + 8128].view(1, -1) for start in (to, of))
        cache.model[0][to : to + 8128] = cache.model[0][of : of + 8128].clone()
        copy_cache([dst], [src])
        cache.expect_model()
    return ""


@check(
    "torch.version_counters",
    "a call changes the version counter of dst alone, and refuses a dst that requires grad",
    used_by="autograd and torch.compile",
    devices=BOTH,
)
def version_counters(device: torch.device) -> str:
    dst, src = CheckedCache(stacked(), device), CheckedCache(stacked(), device, seed=1)
    before = dst.tensors[0]._version, src.tensors[0]._version
    copy_cache(dst.tensors, src.tensors, 1, 2, batch_dim=1)
    after = dst.tensors[0]._version, src.tensors[0]._version
    expect(after == (before[0] + 1, before[1]), f"the versions of dst and src were {before} and are {after}")
    floats = torch.zeros(4, 64).to(device).requires_grad_()
    try:
        copy_cache([floats], [floats.detach()], 1, 2)
    except ValueError:
        return ""
    raise DoesNotHold("a dst that requires grad was accepted")
