# SPDX-License-Identifier: Apache-2.0
"""Random views of random storages and random numbers: the result is that of the byte model, or the call is refused for
a reason that the model has too, and writes nothing. For more calls: pytest --hypothesis-profile=long."""

from __future__ import annotations

import random
import re
from contextlib import nullcontext

import pytest
import torch
from byte_model import BUFFER_BYTES, BUFFERS, Call, apply, calls, writers
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from utils import as_bytes, assert_same_bytes, copy_cache, copy_cache_batch, filled, table, whole_storage

# The device fixture is the same for every example.
any_calls = settings(suppress_health_check=list(HealthCheck))


def check(device: str, call: Call, req_id: int, *, batch: bool) -> None:
    """Makes a call on new buffers. Their whole contents and all version counters must be those of the model."""
    buffers = [filled(BUFFER_BYTES, dtype=torch.uint8, seed=seed, device=device) for seed in range(BUFFERS)]
    dst, src = call.tensors(buffers)
    whole = [whole_storage(buffer) for buffer in buffers]
    before = [as_bytes(buffer) for buffer in whole]
    reasons, ranges = set(call.reasons()), call.ranges()
    written = None if ranges is None else writers(ranges)
    if written is None:
        reasons |= {"overlap", "write the same bytes"}
    refusal = ""
    try:
        if batch:
            copy_cache_batch(dst, src, table(call.copies), req_id, batch_dim=call.batch_dim)
        else:
            copy_cache(dst, src, *call.copies[0], req_id, batch_dim=call.batch_dim)
    except ValueError as error:
        refusal = str(error)
    event(re.sub(r"\(.*", "", min(reasons, default="copied")))
    assert bool(refusal) == bool(reasons), refusal or f"accepted in spite of {reasons}"
    assert_same_bytes(whole, before if refusal else apply(ranges, before))
    assert [tensor._version for tensor in dst + src] == [0 if refusal else 1] * len(dst) + [0] * len(src)
    if refusal:
        assert any(reason in refusal for reason in reasons), f"{refusal}, instead of {reasons}"
        assert refusal.startswith(f"copy_cache{'_batch' * batch}: ")
        assert refusal.endswith(f" (req_id {req_id})")


@any_calls
@given(calls(batch=False), st.integers(0, 2**63 - 1))
def test_one_copy(device: str, call: Call, req_id: int) -> None:
    check(device, call, req_id, batch=False)


@any_calls
@given(calls(batch=True), st.integers(0, 2**63 - 1))
def test_many_copies(device: str, call: Call, req_id: int) -> None:
    check(device, call, req_id, batch=True)


def test_many_ranges_in_a_small_buffer() -> None:
    """Ranges of many widths that overlap or touch, in any order: every relation of two or three ranges."""
    choose = random.Random(0)
    copied = 0
    for _ in range(10_000):
        starts = range(choose.choice([7, 19, 55]))
        moves = [(choose.choice(starts), choose.choice(starts), choose.choice([1, 1, 2, 3, 5])) for _ in range(5)]
        moves = moves[: choose.randint(1, 5)]
        if choose.random() < 0.3:
            moves[0] = (moves[0][1], *moves[0][1:])
        buffer = torch.arange(64, dtype=torch.uint8)
        ranges = [(0, range(d, d + n), 0, range(s, s + n)) for d, s, n in moves]
        refused = writers(ranges) is None
        expected = buffer.clone() if refused else apply(ranges, [buffer])[0]
        dst, src = ([buffer[move[side] :][: move[2]].view(1, -1) for move in moves] for side in (0, 1))
        with pytest.raises(ValueError, match="write the same bytes") if refused else nullcontext():
            copy_cache(dst, src)
        assert torch.equal(buffer, expected), moves
        copied += not refused
    assert 1_000 < copied < 9_000
