# SPDX-License-Identifier: Apache-2.0
"""The ops at the sizes, addresses and counts that the commands have limits for."""

import torch

from ...ops import copy_cache
from ..caches import CheckedCache, Layout, expect_batch, expect_copy, scattered, stacked, synchronize
from ..memory import require_memory
from ..registry import DoesNotHold, check
from .commands import MAX_HEIGHT, MAX_WIDTH

BOTH = ("cpu", "npu")
ODD = "slices of any tokens, and dtypes of one byte"


@check("limits.odd_bytes", "offsets and sizes of any number of bytes are copied", used_by=ODD, devices=BOTH)
def odd_bytes(device: torch.device) -> str:
    for layout in (stacked(row=509), scattered(row=509), scattered(row=509, backward=True)):
        dst, src = CheckedCache(layout, device), CheckedCache(stacked(row=509), device, seed=1)
        if layout.batch_dim == 0:
            src = CheckedCache(scattered(row=509), device, seed=1)
        for slice_ in ((0, 1, 1, 1), (1, 2, 3, 31), (2, 0, 63, 65), (3, 3, 508, 1), (1, 0, 7)):
            expect_copy(dst, src, *slice_)
        expect_batch(dst, dst, [(0, 1, 1, 7), (1, 2, 3, 65), (2, 0, 64, 129), (3, 0, 13, -1)])
    return ""


@check("limits.odd_host_bytes", "the same between pinned host memory and the device", used_by=ODD)
def odd_host_bytes(device: torch.device) -> str:
    for to, of in (("device", "pinned"), ("pinned", "device")):
        for layout in (stacked(row=509), scattered(row=509)):
            dst, src = CheckedCache(layout, device, to), CheckedCache(layout, device, of, seed=1)
            expect_copy(dst, src, 1, 2, 3, 31)
            expect_batch(dst, src, [(0, 1, 1, 7), (3, 2, 5, -1)])
    return ""


@check(
    "limits.wide_rows",
    f"rows around the widest strided copy, {MAX_WIDTH:,} bytes, are copied",
    used_by="rows of long contexts",
    devices=BOTH,
)
def wide_rows(device: torch.device) -> str:
    layout = stacked(3, 2, MAX_WIDTH + 64)
    dst, src = CheckedCache(layout, device), CheckedCache(layout, device, seed=1)
    for size in (MAX_WIDTH, MAX_WIDTH + 64):
        expect_copy(dst, src, 1, 0, 0, size)
    return ""


@check(
    "limits.many_tensors",
    f"more tensors than a strided copy has rows, {MAX_HEIGHT:,}, are copied",
    used_by="small rows in large stacked caches",
    devices=BOTH,
)
def many_tensors(device: torch.device) -> str:
    # Without the model of expect_copy, which has a view for each tensor.
    dst, src = (CheckedCache(stacked(MAX_HEIGHT + 1, 2, 8), device, seed=seed) for seed in range(2))
    expected, source = (cache.model[0].view(-1, 2, 8) for cache in (dst, src))
    expected[:, 1] = source[:, 0]
    copy_cache(dst.tensors, src.tensors, 1, 0, batch_dim=1)
    dst.expect_model()
    return ""


@check(
    "limits.many_host_ranges",
    "more ranges than one batch of commands takes, 4,096, are copied between host and device",
    used_by="swapping blocks",
)
def many_host_ranges(device: torch.device) -> str:
    blocks = [(to, to * 2 + 1, 0, -1) for to in range(1000)]
    for to, of in (("device", "pinned"), ("pinned", "device")):
        dst, src = (
            CheckedCache(scattered(9, 2001, 64), device, to),
            CheckedCache(scattered(9, 2001, 64), device, of, seed=1),
        )
        expect_batch(dst, src, blocks)
    return ""


@check(
    "limits.over_4_gib",
    "a row of more than 4 GiB is copied",
    used_by="one cache in one row; commands take at most 4 GiB",
    devices=BOTH,
)
def over_4_gib(device: torch.device) -> str:
    size, piece = 2**32 + 2**22, 2**20
    require_memory(device, 2 * size + 2**30)
    dst, src = (torch.empty(1, size, dtype=torch.uint8, device=device) for _ in range(2))
    dst.fill_(1)
    src.fill_(2)
    # Random where the copy begins, where its commands meet, and where it ends; the rest is all 2.
    marked = CheckedCache(Layout([piece] * 3, list), torch.device("cpu"), seed=1)
    starts = (0, 2**32 - piece // 2, size - piece)
    for start, model in zip(starts, marked.model, strict=True):
        src[0, start : start + piece].copy_(model)
    copy_cache([dst], [src], 0, 0, 64, size - 128)
    synchronize(device)
    src[0, :64].fill_(1)
    src[0, -64:].fill_(1)
    chunk = 2**26
    for start in range(0, size, chunk):
        if not torch.equal(dst[0, start : start + chunk].cpu(), src[0, start : start + chunk].cpu()):
            raise DoesNotHold(f"wrong bytes from byte {start} on")
    return f"{size:,} bytes"
