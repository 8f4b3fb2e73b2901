# SPDX-License-Identifier: Apache-2.0
"""Random calls of both ops, and a simple model of their result that visits every byte.

Most calls are nearly valid: the first check would refuse almost every fully random one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

BUFFERS, BUFFER_BYTES = 3, 256
DTYPES = (torch.uint8, torch.float16, torch.float32, torch.complex128)
HOSTILE = (2**63 - 1, 2**63 - 8, -(2**63), 2**32, 2**31, -2, -1)
Numbers = tuple[int, ...]  # dst_batch_index, src_batch_index, offset, size, and for some calls an offset for src
Ranges = list[tuple[int, range, int, range]]  # dst buffer, dst bytes, src buffer, src bytes


@dataclass
class View:
    """An as_strided view of a buffer; strides and offset in elements."""

    buffer: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    requires_grad: bool = False

    @property
    def extent(self) -> int:
        """The elements from the first to the last one."""
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))

    def moved_to(self, offset: int) -> View:
        """The same view at this offset, or at the nearest one inside the buffer."""
        return replace(self, offset=max(0, min(offset, BUFFER_BYTES // self.dtype.itemsize - self.extent)))

    def tensor(self, buffers: list[Tensor]) -> Tensor:
        # A tensor made by .data has its own version counter.
        view = buffers[self.buffer].view(self.dtype).as_strided(self.shape, self.strides, self.offset).data
        return view.requires_grad_(self.requires_grad)

    def is_dense(self, batch_dim: int) -> bool:
        """Whether the elements of a row are one contiguous range, each in its own place."""
        shape, strides = self.shape[batch_dim + 1 :], self.strides[batch_dim + 1 :]
        if math.prod(shape) > BUFFER_BYTES:
            return False
        found = sorted(sum(map(int.__mul__, index, strides)) for index in itertools.product(*map(range, shape)))
        return found == list(range(len(found)))

    def row_bytes(self, batch_dim: int) -> int:
        return math.prod(self.shape[batch_dim + 1 :]) * self.dtype.itemsize


@dataclass
class Call:
    dst: list[View]
    src: list[View]
    batch_dim: int
    copies: list[Numbers]
    storage_bytes: list[int]  # of each buffer, when its views have been made

    def tensors(self, buffers: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        dst, src = ([view.tensor(buffers) for view in side] for side in (self.dst, self.src))
        for buffer, nbytes in zip(buffers, self.storage_bytes, strict=True):
            if nbytes < BUFFER_BYTES:
                buffer.untyped_storage().resize_(nbytes)
        return dst, src

    def reasons(self) -> Iterator[str]:
        """Why the op refuses the call: a part of the message for everything that is wrong with its arguments."""
        if len(self.dst) != len(self.src):
            yield "the same number of tensors"
        for d, s in zip(self.dst, self.src, strict=False):
            yield from self._reasons_of_pair(d, s)
            if 0 <= self.batch_dim < min(len(d.shape), len(s.shape)):
                for copy in self.copies:
                    yield from self._reasons_of_numbers(d, s, *copy)

    def _reasons_of_pair(self, d: View, s: View) -> Iterator[str]:
        if d.dtype != s.dtype:
            yield "to have the dtype of dst["
        if d.requires_grad:
            yield "requires grad"
        if d.shape[: max(0, self.batch_dim)] != s.shape[: max(0, self.batch_dim)]:
            yield "the sizes before batch_dim"
        yield from self._reasons_of_view(d)
        yield from self._reasons_of_view(s)

    def _reasons_of_view(self, view: View) -> Iterator[str]:
        dim = self.batch_dim
        if not 0 <= dim < len(view.shape):
            yield f"batch_dim ({dim}) out of range [0, {len(view.shape)})"
        elif 0 in view.shape:
            yield "not to be empty"
        else:
            if (view.offset + view.extent) * view.dtype.itemsize > self.storage_bytes[view.buffer]:
                yield "to lie inside its storage"
            if not view.is_dense(dim):
                yield "to be dense"
            if view.shape[dim] > 1 and view.strides[dim] * view.dtype.itemsize < view.row_bytes(dim):
                yield "(one row) apart"

    def _reasons_of_numbers(
        self, d: View, s: View, to: int, of: int, offset: int, size: int, src_offset: int | None = None
    ) -> Iterator[str]:
        for name, view, index in (("dst", d, to), ("src", s, of)):
            if not 0 <= index < view.shape[self.batch_dim]:
                yield f"{name}_batch_index ({index}) out of range [0, {view.shape[self.batch_dim]})"
        rows = d.row_bytes(self.batch_dim), s.row_bytes(self.batch_dim)
        offsets = offset, offset if src_offset is None else src_offset
        for begin, row in zip(offsets, rows, strict=True):
            if not 0 <= begin < row:
                yield f"offset ({begin}) out of range [0, "
        nbytes = rows[1] - offsets[1] if size == -1 else size
        if size == 0 or size < -1:
            yield f"size ({size}) must be greater than 0"
        elif any(begin + nbytes > row for begin, row in zip(offsets, rows, strict=True)):
            yield "runs past the row of "

    def ranges(self) -> Ranges | None:
        """Every range of the copies that nothing is wrong with, or None if there are more than bytes."""
        found: Ranges = []
        for d, s in zip(self.dst, self.src, strict=False):
            if any(self._reasons_of_pair(d, s)):
                continue
            leading = d.shape[: self.batch_dim]
            if math.prod(leading) > BUFFER_BYTES:
                return None
            for copy in self.copies:
                if any(self._reasons_of_numbers(d, s, *copy)):
                    continue
                to, of, offset, size, src_offset = (*copy, copy[2])[:5]
                nbytes = s.row_bytes(self.batch_dim) - src_offset if size == -1 else size
                for index in itertools.product(*map(range, leading)):
                    begin = (
                        (view.offset + sum(map(int.__mul__, (*index, row), view.strides))) * view.dtype.itemsize + first
                        for view, row, first in ((d, to, offset), (s, of, src_offset))
                    )
                    d_bytes, s_bytes = (range(first, first + nbytes) for first in begin)
                    found.append((d.buffer, d_bytes, s.buffer, s_bytes))
        return found


def writers(ranges: Ranges) -> dict[tuple[int, int], int] | None:
    """The number of the range that writes each byte, or None if two ranges write the same byte."""
    found: dict[tuple[int, int], int] = {}
    for number, (buffer, d, _, _) in enumerate(ranges):
        for byte in d:
            if found.setdefault((buffer, byte), number) != number:
                return None
    return found


def apply(ranges: Ranges, buffers: list[Tensor]) -> list[Tensor]:
    """The contents of the buffers after every range has been read and then every range written."""
    after = [buffer.clone() for buffer in buffers]
    for d_buffer, d, s_buffer, s in ranges:
        after[d_buffer][d.start : d.stop] = buffers[s_buffer][s.start : s.stop]
    return after


@st.composite
def views(draw: st.DrawFn, rank: int, dtype: torch.dtype) -> View:
    room = BUFFER_BYTES // dtype.itemsize
    shape = draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    strides, step = [0] * rank, 1
    # Mostly dense in some order of the dimensions, with some gaps.
    order = list(range(rank - 1, -1, -1)) if draw(st.integers(0, 2)) else draw(st.permutations(range(rank)))
    for dim in order:
        shape[dim] = min(shape[dim], max(1, room // step))
        # The stride of a dimension of one is never used: a product with it must not overflow.
        odd = shape[dim] == 1 and draw(st.integers(0, 15)) == 0
        strides[dim] = draw(st.sampled_from((0, 3, 2**62))) if odd else step
        step = min(step * shape[dim] + draw(st.sampled_from((0, 0, 0, 0, 1, 3))), room)
    view = View(draw(st.integers(0, BUFFERS - 1)), dtype, tuple(shape), tuple(strides), 0)
    if view.extent > room:
        view = replace(view, shape=(1,) * rank)
    return view.moved_to(draw(st.integers(0, room)))


@st.composite
def lists(draw: st.DrawFn, count: int, rank: int, dtype: torch.dtype) -> list[View]:
    """Tensors anywhere, or each a step after the one before: side by side, interleaved, backwards, over one another."""
    found = [draw(views(rank, dtype))]
    extent = found[0].extent
    step = draw(st.sampled_from((None, None, extent, extent + 1, 1, extent // 2, -extent)))
    while len(found) < count:
        if step is None:
            found.append(draw(views(rank, dtype)))
        else:
            found.append(found[0].moved_to(found[-1].offset + step + draw(st.sampled_from((0, 0, 0, 1, -1)))))
    return found


@st.composite
def copies(draw: st.DrawFn, dst: list[View], src: list[View], batch_dim: int, two_offsets: bool) -> Numbers:
    """Numbers inside every row, so that only the layout and the overlap decide, or any numbers."""
    every = dst + src
    batch, row = min(view.shape[batch_dim] for view in every), min(view.row_bytes(batch_dim) for view in every)
    if draw(st.integers(0, 5)):
        offsets = [draw(st.just(0) | st.integers(0, row - 1)) for _ in range(1 + two_offsets)]
        index, size = st.integers(0, batch - 1), draw(st.just(-1) | st.integers(1, row - max(offsets)))
        return draw(index), draw(index), offsets[0], size, *offsets[1:]
    index = st.integers(-1, batch) | st.sampled_from(HOSTILE)
    length = st.integers(-1, row + 1) | st.sampled_from(HOSTILE)
    return draw(index), draw(index), draw(length), draw(length), *([draw(length)] * two_offsets)


@st.composite
def calls(draw: st.DrawFn, *, batch: bool) -> Call:
    dtype, rank, count = draw(st.sampled_from(DTYPES)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    batch_dim = draw(st.integers(0, rank - 1))
    dst = draw(lists(count, rank, dtype))
    kind = draw(st.sampled_from(("the same cache", "other buffers", "a little further", "anywhere")))
    if kind == "the same cache":
        src = dst[:]
    elif kind == "other buffers":
        src = [replace(view, buffer=(view.buffer + 1) % BUFFERS) for view in dst]
    elif kind == "a little further":
        shift = draw(st.integers(-8, 8))
        src = [view.moved_to(view.offset + shift) for view in dst]
    else:
        src = draw(lists(count, rank, dtype))
    src = draw(st.permutations(src)) if draw(st.integers(0, 7)) == 0 else src
    for index in range(count):  # the dtype of a pair: its elements may only become smaller, so that they fit
        other = draw(st.sampled_from([None, *(d for d in DTYPES if d.itemsize < dst[index].dtype.itemsize)]))
        if other is not None:
            dst[index], src[index] = replace(dst[index], dtype=other), replace(src[index], dtype=other)
    two_offsets = batch and draw(st.booleans())
    numbers = draw(st.lists(copies(dst, src, batch_dim, two_offsets), min_size=1, max_size=5 if batch else 1))
    if batch and draw(st.booleans()):  # a permutation of the rows, or a part of one
        rows = min(view.shape[batch_dim] for view in dst + src)
        pairs = zip(draw(st.permutations(range(rows))), draw(st.permutations(range(rows))), strict=True)
        numbers = [(to, of, *numbers[0][2:]) for to, of in pairs][: draw(st.integers(1, rows))]
    call = Call(dst, src, batch_dim, numbers, [BUFFER_BYTES] * BUFFERS)
    if draw(st.integers(0, 7)) == 0:
        spoil(draw, call)
    return call


def spoil(draw: st.DrawFn, call: Call) -> None:
    """Makes one thing wrong, or nearly wrong."""
    side = draw(st.sampled_from((call.dst, call.src)))
    number = draw(st.integers(0, len(side) - 1))
    view = side[number]
    dim = draw(st.integers(0, len(view.shape) - 1))

    def with_dim(size: int, stride: int) -> View:
        shape, strides = list(view.shape), list(view.strides)
        shape[dim], strides[dim] = size, stride
        return replace(view, shape=tuple(shape), strides=tuple(strides))

    match draw(st.sampled_from(("stride", "expanded", "empty", "dtype", "storage", "batch_dim", "length", "grad"))):
        case "stride":
            spoiled = with_dim(view.shape[dim], draw(st.integers(0, 12)))
            fits = (spoiled.offset + spoiled.extent) * view.dtype.itemsize <= BUFFER_BYTES
            side[number] = spoiled if fits else with_dim(view.shape[dim], 0)
        case "expanded":
            side[number] = with_dim(draw(st.sampled_from((5, 2**40))), 0)
        case "empty":
            side[number] = with_dim(0, view.strides[dim])
        case "dtype":  # with elements of the same size
            same_size = {torch.uint8: torch.bool, torch.float16: torch.bfloat16, torch.float32: torch.int32}
            side[number] = replace(view, dtype=same_size.get(view.dtype, view.dtype))
        case "storage":
            call.storage_bytes[view.buffer] = draw(st.integers(0, BUFFER_BYTES - 1))
        case "batch_dim":
            call.batch_dim = draw(st.sampled_from((len(view.shape), *HOSTILE)))
        case "length":
            side.append(view)
        case "grad":
            side[number] = replace(view, requires_grad=view.dtype.is_floating_point)
