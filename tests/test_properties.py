# SPDX-License-Identifier: Apache-2.0
"""Any views of any storages, any numbers: the result is what a byte model says, or the call is refused and nothing
has changed.

The model knows no cleverness. It lists every byte of every range and compares all pairs.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor
from utils import as_bytes, assert_same_bytes, copy_cache, filled

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


@dataclass
class Call:
    dtype: torch.dtype
    dst: list[View]
    src: list[View]
    dst_index: int
    src_index: int
    offset: int
    size: int
    batch_dim: int


@st.composite
def views(draw: st.DrawFn, rank: int, itemsize: int) -> View:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank)))
    strides = [0] * rank
    step = 1
    # Mostly dense in some order of the dimensions, with gaps here and there; now and then anything.
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
def calls(draw: st.DrawFn) -> Call:
    dtype = draw(st.sampled_from(DTYPES))
    rank = draw(st.integers(1, 4))
    count = draw(st.integers(1, 3))
    dst = [draw(views(rank, dtype.itemsize)) for _ in range(count)]
    src = [draw(views(rank, dtype.itemsize)) for _ in range(count)]
    batch_dim = draw(st.integers(0, rank - 1))
    if draw(st.booleans()):  # leading sizes that fit one another, as nearly all random ones do not
        src = [View(s.buffer, d.shape, d.strides, d.offset) for d, s in zip(dst, src, strict=True)]
    if draw(st.integers(0, 2)):
        # Numbers that are inside every row, so that what is left to decide is the layout and the overlap.
        batch = min(view.shape[batch_dim] for view in dst + src)
        row = min(math.prod(view.shape[batch_dim + 1 :]) for view in dst + src) * dtype.itemsize
        offset = draw(st.just(0) | st.integers(0, row - 1))
        numbers = [st.integers(0, batch - 1), st.integers(0, batch - 1), st.just(offset)]
        numbers.append(st.just(-1) | st.integers(1, row - offset))
    else:
        absurd = st.sampled_from([2**63 - 1, 2**63 - 8, -(2**63), -2, 2**32, 2**31])
        index = st.integers(-1, 4) | absurd
        numbers = [index, index, st.integers(-1, 40) | absurd, st.just(-1) | st.integers(-2, 80) | absurd]
    return Call(dtype, dst, src, *(draw(number) for number in numbers), batch_dim)


Ranges = list[tuple[int, range, int, range]]  # dst buffer, dst bytes, src buffer, src bytes


def ranges_of(call: Call) -> Ranges | None:
    """Every range to copy, or None if the arguments are refused."""
    found: Ranges = []
    for d, s in zip(call.dst, call.src, strict=True):
        if d.shape[: call.batch_dim] != s.shape[: call.batch_dim]:
            return None
        for view, index in ((d, call.dst_index), (s, call.src_index)):
            if not 0 <= index < view.shape[call.batch_dim]:
                return None
            row_elements = math.prod(view.shape[call.batch_dim + 1 :])
            if view.shape[call.batch_dim] > 1 and view.strides[call.batch_dim] < row_elements:
                return None
        for leading in itertools.product(*(range(n) for n in d.shape[: call.batch_dim])):
            d_row = d.row(leading, call.batch_dim, call.dst_index, call.dtype.itemsize)
            s_row = s.row(leading, call.batch_dim, call.src_index, call.dtype.itemsize)
            if d_row is None or s_row is None or call.size == 0 or call.size < -1:
                return None
            n = len(s_row) - call.offset if call.size == -1 else call.size
            if not 0 <= call.offset < min(len(d_row), len(s_row)) or call.offset + n > min(len(d_row), len(s_row)):
                return None
            part = slice(call.offset, call.offset + n)
            found.append((d.buffer, d_row[part], s.buffer, s_row[part]))
    return found


def overlap(buffer_a: int, a: range, buffer_b: int, b: range) -> bool:
    return buffer_a == buffer_b and bool(set(a) & set(b))


def order_matters(ranges: Ranges) -> bool:
    for i, (d_buffer, d, s_buffer, s) in enumerate(ranges):
        in_place = (d_buffer, d) == (s_buffer, s)
        for j, (other_d_buffer, other_d, other_s_buffer, other_s) in enumerate(ranges):
            if i == j:
                continue
            if overlap(d_buffer, d, other_d_buffer, other_d):
                return True
            if not in_place and overlap(d_buffer, d, other_s_buffer, other_s):
                return True
    return False


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(calls())
def test_as_the_byte_model_says(call: Call) -> None:
    buffers = [filled(BUFFER_BYTES, dtype=torch.uint8, seed=seed) for seed in range(3)]
    expected = [as_bytes(b).clone() for b in buffers]
    ranges = ranges_of(call)
    refused = ranges is None or order_matters(ranges)
    if not refused:
        reads = [expected[s_buffer][s.start : s.stop].clone() for _, _, s_buffer, s in ranges]
        for (d_buffer, d, _, _), read in zip(ranges, reads, strict=True):
            expected[d_buffer][d.start : d.stop] = read
    dst, src = ([view.tensor(buffers, call.dtype) for view in side] for side in (call.dst, call.src))
    error = ""
    try:
        copy_cache(dst, src, call.dst_index, call.src_index, call.offset, call.size, batch_dim=call.batch_dim)
    except ValueError as refusal:
        error = str(refusal)
    event("copied" if not error else "refused for overlap" if "overlap" in error else "refused for another reason")
    assert bool(error) == refused, error or "the op took what the model refuses"
    assert_same_bytes(buffers, expected)


Moves = list[tuple[int, int, int]]  # to, from, bytes


def outcome(moves: Moves, before: Tensor) -> Tensor | None:
    """What a buffer holds after some moves within it, or None if their order matters."""
    for i, (d, s, n) in enumerate(moves):
        for j, (other_d, other_s, m) in enumerate(moves):
            if i != j and (d < other_d + m and other_d < d + n):
                return None
            if i != j and d != s and (d < other_s + m and other_s < d + n):
                return None
    after = before.clone()
    for d, s, n in moves:
        after[d : d + n] = before[s : s + n]
    return after


def check_moves(moves: Moves, buffer: Tensor, dst: list[Tensor], src: list[Tensor], batch_dim: int = 0) -> bool:
    """Returns whether the op copied, having checked that it did so rightly or was right to refuse."""
    before = buffer.clone()
    expected = outcome(moves, before)
    refused = False
    try:
        copy_cache(dst, src, batch_dim=batch_dim)
    except ValueError:
        refused = True
    assert refused == (expected is None), moves
    assert torch.equal(buffer, before if expected is None else expected), moves
    return not refused


def test_many_ranges_in_a_small_buffer() -> None:
    """Ranges of many widths over and beside one another, in any order: every way in which two or three can meet."""
    choose = random.Random(0)
    copied = 0
    for _ in range(30_000):
        room = choose.choice([12, 24, 60])
        ranges = [
            (choose.randrange(room - 5), choose.randrange(room - 5), choose.choice([1, 1, 2, 3, 5]))
            for _ in range(choose.randint(1, 5))
        ]
        if choose.random() < 0.3:
            ranges[0] = (ranges[0][1], ranges[0][1], ranges[0][2])
        buffer = torch.arange(64, dtype=torch.uint8)
        dst = [buffer[d : d + n].view(1, n) for d, _, n in ranges]
        src = [buffer[s : s + n].view(1, n) for _, s, n in ranges]
        copied += check_moves(ranges, buffer, dst, src)
    assert 5_000 < copied < 25_000


def test_runs_that_nearly_go_on() -> None:
    """Strided tensors, each beginning where the one before would go on, or nearly so: merged only if they really do."""
    choose = random.Random(0)
    copied = 0
    for _ in range(5_000):
        width, moves = 4, []
        sides: tuple[list[Tensor], list[Tensor]] = ([], [])
        buffer = filled(512, dtype=torch.uint8)
        starts, pitches, rows = [0, 256], [8, 8], 0
        for _ in range(choose.randint(2, 4)):
            height = choose.randint(1, 3)
            for side in (0, 1):
                starts[side] += pitches[side] * rows + choose.choice([0, 0, 0, 4, -4])
                pitches[side] = choose.choice([8, 8, 8, 12, 4])
                starts[side] = min(max(starts[side], 256 * side), 256 * side + 200)
                sides[side].append(buffer.as_strided((height, 1, width), (pitches[side], width, 1), starts[side]))
            rows = height
            moves += [(starts[0] + r * pitches[0], starts[1] + r * pitches[1], width) for r in range(height)]
        copied += check_moves(moves, buffer, *sides, batch_dim=1)
    assert copied > 1_000
