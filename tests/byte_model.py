# SPDX-License-Identifier: Apache-2.0
"""Random calls and a simple model of their result: it lists every range of bytes and compares all pairs."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

BUFFER_BYTES = 256
DTYPES = [torch.uint8, torch.float16, torch.int32]


@dataclass
class View:
    """An as_strided view of one of the buffers; strides and offset in elements."""

    buffer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def row(self, leading: tuple[int, ...], batch_dim: int, index: int, itemsize: int) -> range | None:
        """The bytes of a row in its buffer, or None if they are not one contiguous range."""
        start = self.offset + sum(i * s for i, s in zip((*leading, index), self.strides, strict=False))
        inner = [range(n) for n in self.shape[batch_dim + 1 :]]
        elements = sorted(
            start + sum(i * s for i, s in zip(indices, self.strides[batch_dim + 1 :], strict=True))
            for indices in itertools.product(*inner)
        )
        if elements != list(range(elements[0], elements[0] + len(elements))):
            return None
        return range(elements[0] * itemsize, (elements[-1] + 1) * itemsize)

    def tensor(self, buffers: list[Tensor], dtype: torch.dtype) -> Tensor:
        return buffers[self.buffer].view(dtype).as_strided(self.shape, self.strides, self.offset)


Numbers = tuple[int, int, int, int]  # dst_batch_index, src_batch_index, offset, size


@dataclass
class Caches:
    dtype: torch.dtype
    dst: list[View]
    src: list[View]
    batch_dim: int

    def tensors(self, buffers: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        dst, src = ([view.tensor(buffers, self.dtype) for view in side] for side in (self.dst, self.src))
        return dst, src


@st.composite
def views(draw: st.DrawFn, rank: int, itemsize: int) -> View:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank)))
    strides = [0] * rank
    step = 1
    # Mostly dense in some order of the dimensions, with some gaps; sometimes any strides.
    order = list(range(rank - 1, -1, -1)) if draw(st.integers(0, 2)) else draw(st.permutations(range(rank)))
    for dim in order:
        strides[dim] = step
        step = step * shape[dim] + draw(st.sampled_from([0, 0, 0, 0, 1, 3]))
    if draw(st.integers(0, 7)) == 0:
        strides[draw(st.integers(0, rank - 1))] = draw(st.integers(0, 12))
    extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    room = BUFFER_BYTES // itemsize - extent
    if room < 0:
        shape, strides, room = (1,) * rank, [1] * rank, BUFFER_BYTES // itemsize - 1
    return View(draw(st.integers(0, 2)), shape, tuple(strides), draw(st.integers(0, room)))


@st.composite
def caches(draw: st.DrawFn) -> Caches:
    dtype = draw(st.sampled_from(DTYPES))
    rank = draw(st.integers(1, 4))
    count = draw(st.integers(1, 3))
    dst = [draw(views(rank, dtype.itemsize)) for _ in range(count)]
    src = [draw(views(rank, dtype.itemsize)) for _ in range(count)]
    if draw(st.booleans()):  # the same leading sizes, which random shapes rarely have
        # Sometimes the same cache.
        buffers = draw(st.sampled_from([[s.buffer for s in src], [d.buffer for d in dst]]))
        src = [View(buffer, d.shape, d.strides, d.offset) for d, buffer in zip(dst, buffers, strict=True)]
    return Caches(dtype, dst, src, draw(st.integers(0, rank - 1)))


@st.composite
def numbers(draw: st.DrawFn, caches: Caches) -> Numbers:
    if draw(st.integers(0, 2)):
        # Numbers inside every row, so that only the layout and the overlap decide.
        batch = min(view.shape[caches.batch_dim] for view in caches.dst + caches.src)
        row = min(math.prod(view.shape[caches.batch_dim + 1 :]) for view in caches.dst + caches.src)
        row *= caches.dtype.itemsize
        offset = draw(st.just(0) | st.integers(0, row - 1))
        indices = st.integers(0, batch - 1)
        return draw(indices), draw(indices), offset, draw(st.just(-1) | st.integers(1, row - offset))
    absurd = st.sampled_from([2**63 - 1, 2**63 - 8, -(2**63), -2, 2**32, 2**31])
    indices = st.integers(-1, 4) | absurd
    return (
        *(draw(indices), draw(indices)),
        draw(st.integers(-1, 40) | absurd),
        draw(st.just(-1) | st.integers(-2, 80) | absurd),
    )


Ranges = list[tuple[int, range, int, range]]  # dst buffer, dst bytes, src buffer, src bytes


def ranges_of(caches: Caches, numbers: Numbers) -> Ranges | None:
    """Every range to copy, or None if the arguments are refused."""
    dst_index, src_index, offset, size = numbers
    found: Ranges = []
    for d, s in zip(caches.dst, caches.src, strict=True):
        if d.shape[: caches.batch_dim] != s.shape[: caches.batch_dim]:
            return None
        for view, index in ((d, dst_index), (s, src_index)):
            if not 0 <= index < view.shape[caches.batch_dim]:
                return None
            row_elements = math.prod(view.shape[caches.batch_dim + 1 :])
            if view.shape[caches.batch_dim] > 1 and view.strides[caches.batch_dim] < row_elements:
                return None
        for leading in itertools.product(*(range(n) for n in d.shape[: caches.batch_dim])):
            d_row = d.row(leading, caches.batch_dim, dst_index, caches.dtype.itemsize)
            s_row = s.row(leading, caches.batch_dim, src_index, caches.dtype.itemsize)
            if d_row is None or s_row is None or size == 0 or size < -1:
                return None
            n = len(s_row) - offset if size == -1 else size
            if not 0 <= offset < min(len(d_row), len(s_row)) or offset + n > min(len(d_row), len(s_row)):
                return None
            part = slice(offset, offset + n)
            found.append((d.buffer, d_row[part], s.buffer, s_row[part]))
    return found


def overlap(buffer_a: int, a: range, buffer_b: int, b: range) -> bool:
    return buffer_a == buffer_b and a.start < b.stop and b.start < a.stop


def written_twice(ranges: Ranges) -> bool:
    return any(overlap(a[0], a[1], b[0], b[1]) for a, b in itertools.combinations(ranges, 2))


def order_matters(ranges: Ranges) -> bool:
    return written_twice(ranges) or any(
        (d_buffer, d) != (s_buffer, s) and overlap(d_buffer, d, other_buffer, other)
        for (d_buffer, d, s_buffer, s), (_, _, other_buffer, other) in itertools.permutations(ranges, 2)
    )


def apply(ranges: Ranges, buffers: list[Tensor]) -> list[Tensor]:
    """The contents of the buffers after every range has been read and then every range written."""
    after = [buffer.clone() for buffer in buffers]
    for d_buffer, d, s_buffer, s in ranges:
        after[d_buffer][d.start : d.stop] = buffers[s_buffer][s.start : s.stop]
    return after
