# SPDX-License-Identifier: Apache-2.0
"""Random views of random storages and random numbers: the result is that of the byte model, or the call is refused and
writes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from byte_model import BUFFER_BYTES, Caches, Ranges, apply, caches, numbers, order_matters, ranges_of, written_twice
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor
from utils import as_bytes, assert_same_bytes, copy_cache, copy_cache_batch, filled

any_calls = settings(
    max_examples=1500,
    deadline=None,
    # The device is the same for every example.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


def check(
    device: str, call: Callable[[list[Tensor], list[Tensor]], None], layout: Caches, ranges: Ranges, refused: bool
) -> None:
    """Makes a call on new buffers. They must have the model's contents afterwards. The op must refuse the call if and
    only if the model does."""
    buffers = [filled(BUFFER_BYTES, dtype=torch.uint8, seed=seed, device=device) for seed in range(3)]
    before = [as_bytes(b).clone() for b in buffers]
    error = ""
    try:
        call(*layout.tensors(buffers))
    except ValueError as refusal:
        error = str(refusal)
    event("copied" if not error else "refused for overlap" if "overlap" in error else "refused for another reason")
    assert bool(error) == refused, error or "the op accepted a call that the model refuses"
    assert_same_bytes(buffers, before if refused else apply(ranges, before))


@any_calls
@given(st.data())
def test_one_copy(device: str, data: st.DataObject) -> None:
    layout = data.draw(caches())
    call = data.draw(numbers(layout))
    ranges = ranges_of(layout, call)
    check(
        device,
        lambda dst, src: copy_cache(dst, src, *call, batch_dim=layout.batch_dim),
        layout,
        ranges or [],
        refused=ranges is None or order_matters(ranges),
    )


@any_calls
@given(st.data())
def test_many_copies(device: str, data: st.DataObject) -> None:
    layout = data.draw(caches())
    call = data.draw(st.lists(numbers(layout), min_size=1, max_size=5))
    every = [ranges_of(layout, copy) for copy in call]
    ranges = [r for of_one in every for r in of_one or []]
    check(
        device,
        lambda dst, src: copy_cache_batch(dst, src, torch.tensor(call), batch_dim=layout.batch_dim),
        layout,
        ranges,
        refused=None in every or written_twice(ranges),
    )


Moves = list[tuple[int, int, int]]  # dst, src, bytes


def check_moves(moves: Moves, buffer: Tensor, dst: list[Tensor], src: list[Tensor], batch_dim: int = 0) -> bool:
    """Calls copy_cache, which makes these moves within one buffer, and compares with the model.

    Returns:
        Whether the op copied, and did not refuse the call.
    """
    before = buffer.clone()
    ranges = [(0, range(d, d + n), 0, range(s, s + n)) for d, s, n in moves]
    expect_refusal = order_matters(ranges)
    refused = False
    try:
        copy_cache(dst, src, batch_dim=batch_dim)
    except ValueError:
        refused = True
    assert refused == expect_refusal, moves
    assert torch.equal(buffer, before if refused else apply(ranges, [before])[0]), moves
    return not refused


def test_many_ranges_in_a_small_buffer() -> None:
    """Ranges of many widths that overlap or touch, in any order: every relation of two or three ranges."""
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


def test_nearly_adjacent_strided_tensors() -> None:
    """Strided tensors that each begin at, or near, the next row of the previous one. Only the former may be merged."""
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
