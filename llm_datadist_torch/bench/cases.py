# SPDX-License-Identifier: Apache-2.0
"""What is timed: caches in several layouts, and the ways to copy between them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import Cache, CacheManager, LLMConfig, ops
from .original import original_copy

TENSORS, DST_ROW, SRC_ROW, BLOCKS = 160, 2, 1, 64
_BATCH = 4
_LARGEST = 2**29  # bytes of a cache of blocks

OP = "llm_datadist_torch"


@dataclass(frozen=True)
class Case:
    """One layout and row size.

    Attributes:
        name: The layout.
        row: The bytes of a row.
        copied: The bytes that a call copies.
        ways: The ways to copy, by name. ``OP`` is the op.
        dst: The tensors that are written.
        expected: Makes the expected tensors.
        device_copy: The device's own copy of the same number of bytes in one piece.
    """

    name: str
    row: int
    copied: int
    ways: dict[str, Callable[[], object]]
    dst: list[Tensor]
    expected: Callable[[], list[Tensor]]
    device_copy: Callable[[], object]

    def clear(self) -> None:
        """Overwrites what a call writes, so that a way that copies nothing is found."""
        for tensor in self.dst:
            part = tensor[:, BLOCKS:] if tensor.dim() == 3 else tensor[DST_ROW]
            part.copy_(torch.zeros(part.shape, dtype=part.dtype))


def cases(device: torch.device, rows: tuple[int, ...]) -> Iterator[Case]:
    """All cases, one after the other: the memory of a case is freed before the next one is made."""
    layouts = ["stacked", "views", "scattered", "batch"]
    if device.type != "cpu":
        layouts += ["pinned to device", "device to pinned", "pageable to device", "device to pageable"]
    for name in layouts:
        for row in rows:
            if name == "batch":
                if 2 * BLOCKS * TENSORS * row <= _LARGEST:
                    yield _batch(device, row)
            elif " to " in name:
                of, to = name.split(" to ")
                yield _case(name, row, _views(row, device, to, False), _views(row, device, of, False), device)
            elif name == "stacked":
                dst, src = (_buffer(TENSORS * _BATCH * row, device).view(TENSORS, _BATCH, row) for _ in range(2))
                yield _case(name, row, [dst], [src], device, batch_dim=1)
            else:
                gaps = name == "scattered"
                dst_list, src_list = (_views(row, device, "device", gaps) for _ in range(2))
                yield _case(name, row, dst_list, src_list[:: -1 if gaps else 1], device)


def _buffer(size: int, device: torch.device, memory: str = "device") -> Tensor:
    buffer = torch.randint(256, (size,), dtype=torch.uint8)
    return buffer.to(device) if memory == "device" else buffer.pin_memory() if memory == "pinned" else buffer


def _views(row: int, device: torch.device, memory: str, gaps: bool) -> list[Tensor]:
    size = _BATCH * row
    starts = [i * size + (64 * (i * 8 + i * i % 7) if gaps else 0) for i in range(TENSORS)]
    buffer = _buffer(starts[-1] + size, device, memory)
    return [buffer[start : start + size].view(_BATCH, row) for start in starts]


def _device_copy(size: int, device: torch.device) -> Callable[[], object]:
    dst, src = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return lambda: dst.copy_(src, non_blocking=True)


def _case(name: str, row: int, dst: list[Tensor], src: list[Tensor], device: torch.device, batch_dim: int = 0) -> Case:
    to, of = ([*tensors[0]] if batch_dim else tensors for tensors in (dst, src))
    asynchronous = dst[0].device == src[0].device or all(t.is_pinned() for t in (dst[0], src[0]) if t.is_cpu)

    def loop() -> None:
        for d, s in zip(to, of, strict=True):
            d[DST_ROW].copy_(s[SRC_ROW], non_blocking=asynchronous)

    def expected() -> list[Tensor]:
        wanted = [d.cpu().clone() for d in to]
        for d, s in zip(wanted, of, strict=True):
            d[DST_ROW] = s.cpu()[SRC_ROW]
        return wanted

    ways: dict[str, Callable[[], object]] = {
        OP: lambda: ops.copy_cache(dst, src, DST_ROW, SRC_ROW, batch_dim=batch_dim),
        "loop of copy_": loop,
        "_foreach_copy_": lambda: torch._foreach_copy_([d[DST_ROW] for d in to], [s[SRC_ROW] for s in of]),
    }
    if dst[0].device == src[0].device:
        if batch_dim:
            ways["index_copy_ of index_select"] = _indexing(
                dst[0], src[0], torch.tensor([DST_ROW]).to(device), torch.tensor([SRC_ROW]).to(device)
            )
        left, right = (Cache.from_tensors(side[0] if batch_dim else side, batch_dim=batch_dim) for side in (dst, src))
        manager = CacheManager(LLMConfig(sync_kv_timeout=60_000))
        ways["CacheManager, blocking"] = lambda: manager.copy_cache(left, right, DST_ROW, SRC_ROW)
        if (original := original_copy(to, of, DST_ROW, SRC_ROW)) is not None:
            ways["llm_datadist, blocking"] = original
    size = TENSORS * row
    return Case(name, row, size, ways, to, expected, _device_copy(size, device))


def _batch(device: torch.device, row: int) -> Case:
    """Copies of half of the blocks of a stacked cache, in any order, to the other half."""
    cache = _buffer(TENSORS * 2 * BLOCKS * row, device).view(TENSORS, 2 * BLOCKS, row)
    of = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(0))
    to = torch.arange(BLOCKS) + BLOCKS
    copies = torch.stack([to, of, torch.zeros_like(to), torch.full_like(to, -1)], 1)
    pairs = list(zip(to.tolist(), of.tolist(), strict=True))

    def loop() -> None:
        for dst_block, src_block in pairs:
            cache[:, dst_block].copy_(cache[:, src_block], non_blocking=True)

    def expected() -> list[Tensor]:
        wanted = cache.cpu().clone()
        wanted[:, to] = wanted[:, of]
        return [wanted]

    ways: dict[str, Callable[[], object]] = {
        OP: lambda: ops.copy_cache_batch([cache], [cache], copies, batch_dim=1),
        "loop of copy_": loop,
        "_foreach_copy_": lambda: torch._foreach_copy_(
            [cache[:, d] for d, _ in pairs], [cache[:, s] for _, s in pairs]
        ),
        "index_copy_ of index_select": _indexing(cache, cache, to.to(device), of.to(device)),
    }
    size = TENSORS * BLOCKS * row
    return Case(f"batch of {BLOCKS} blocks", row, size, ways, [cache], expected, _device_copy(size, device))


def _indexing(dst: Tensor, src: Tensor, to: Tensor, of: Tensor) -> Callable[[], object]:
    return lambda: dst.index_copy_(1, to, src.index_select(1, of))
