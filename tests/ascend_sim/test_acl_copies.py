# SPDX-License-Identifier: Apache-2.0
"""Copies of the simulated runtime, called directly: what they do, and what they refuse as a real runtime does."""

import ctypes

import pytest

import ascend_sim
from ascend_sim.acl_utils import (
    D2D,
    D2H,
    H2D,
    H2H,
    NOWHERE,
    SIZE,
    Caller,
    Runtime,
    acl,
    in_process,
    made,
    reason,
    wait_until,
)


@pytest.mark.parametrize(
    ("dst", "src", "kind", "count", "code", "why"),
    [
        ("device", "pinned", H2D, SIZE + 1, 107000, "destMax"),
        ("device", "pinned", H2D, 0, 107000, "0 bytes"),
        ("device", "pinned", D2D, SIZE, 107000, "not device memory"),
        ("device", "other", H2D, SIZE, 107000, "forbids"),
        ("pageable", "device", D2D, SIZE, 107000, "not device memory"),
        ("pinned", "pageable", H2H, SIZE, 207000, "host to host"),
        ("device", "pinned", 9, SIZE, 107000, "kind 9"),
    ],
)
def test_refused_copies(runtime, dst, src, kind, count, code, why):
    assert runtime.copy(getattr(runtime, dst), getattr(runtime, src), kind, count, SIZE) == code
    assert why in reason()
    assert ascend_sim.copies() == []


def test_a_copy_may_not_leave_its_allocation(runtime):
    assert runtime.copy(runtime.device + 1, runtime.pinned, H2D) == 107000
    assert f"runs past the allocation of {SIZE} bytes" in reason()
    assert runtime.copy(runtime.device, runtime.pinned + 1, H2D) == 107000
    assert runtime.copy(runtime.device + 1, runtime.pinned + 1, H2D, SIZE - 1) == 0


@pytest.mark.parametrize(
    ("dpitch", "spitch", "width", "height", "kind", "code"),
    [
        (128, 64, 32, 8, H2D, 0),
        (128, 64, 64, 8, H2D, 0),
        (128, 64, 65, 8, H2D, 100000),  # wider than spitch
        (64, 128, 65, 8, H2D, 100000),  # wider than dpitch
        (129, 64, 64, 9, H2D, 107000),  # the last row leaves dst
        (64, 146, 64, 8, H2D, 107000),  # the last row leaves src
        (2**63, 64, 64, 3, H2D, 107000),  # the rows wrap round
        (2**64 - 64, 64, 64, 2, H2D, 107000),  # a negative pitch
        (128, 64, 32, 8, H2H, 100000),
    ],
)
def test_strided_copies(runtime, dpitch, spitch, width, height, kind, code):
    """npu/test_runtime_copies.py shows the bytes."""
    assert runtime.strided(runtime.device, dpitch, runtime.pinned, spitch, width, height, kind) == code, reason()
    assert runtime.synchronize() == 0


@in_process(ASCEND_SIM_CANN="9.0")
def test_a_copy_that_overlaps_its_source_is_wrong():
    runtime, before = Runtime(), bytes(i % 251 for i in range(SIZE))
    for shift in (-24, -3, 0, 3, 24):
        runtime.write(runtime.device, before)
        dst, src = 100 + shift, 100
        assert runtime.strided(runtime.device + dst, 32, runtime.device + src, 32, 16, 4, D2D) == 0
        assert runtime.synchronize() == 0
        moved = bytearray(before)
        for row in range(0, 128, 32):
            moved[dst + row : dst + row + 16] = before[src + row : src + row + 16]
        assert (runtime.read(runtime.device) == moved) == (shift == 0)


@pytest.mark.parametrize(("width", "height"), [(5_000_000, 1), (1, 5_242_880)])
def test_strided_copies_have_size_limits(runtime, width, height):
    device, pinned = made("aclrtMalloc", 6_000_000, 0), made("aclrtMallocHost", 6_000_000)

    def copy(width: int, height: int) -> int:
        return runtime.strided(device, width, pinned, width, width, height, H2D)

    assert copy(width, height) == 0
    assert copy(width + (height == 1), height + (width == 1)) == 107000
    assert runtime.synchronize() == 0


def test_batches_are_unordered(runtime):
    source = made("aclrtMallocHost", 16)
    ctypes.memmove(source, b"first...second..", 16)
    assert runtime.batch([runtime.device] * 2, [source, source + 8], H2D) == (0, NOWHERE)
    assert runtime.synchronize() == 0
    assert runtime.read(runtime.device, 8) == b"first..."
    assert runtime.batch([runtime.device], [runtime.other], D2D)[0] == 107000
    one = [runtime.device], [source], H2D
    assert runtime.batch(*one, size=17) == (107000, 0)
    assert runtime.batch(*one, dest_max=7) == (100000, NOWHERE)
    assert runtime.batch(*one, start=1) == (100000, NOWHERE)
    assert runtime.batch(*one, reserved=1) == (100000, NOWHERE)


def check_returns_when_done(runtime: Runtime, submit) -> None:
    """Stalls the stream while ``submit`` copies from the device to pageable memory."""
    with ascend_sim.stall_stream(runtime.stream):
        assert runtime.fill(1) == 0
        caller = Caller(submit)
        wait_until(lambda: ascend_sim.work().calls == 1)
        caller.join(0.05)
        assert caller.is_alive()
    assert caller.result() == 0
    assert runtime.pageable.raw[:8] == b"\1" * 8


def test_pinned_copies_return_at_once_and_pageable_ones_when_done(runtime):
    with ascend_sim.stall_stream(runtime.stream):
        assert runtime.copy(runtime.device, runtime.pinned, H2D) == 0
        assert acl("aclrtSynchronizeStreamWithTimeout", runtime.stream, 1) == 507046
    assert runtime.synchronize() == 0
    ascend_sim.reset()
    check_returns_when_done(runtime, lambda: runtime.copy(runtime.pageable, runtime.device, D2H))
    assert ascend_sim.work().tasks == 0


def test_one_pageable_element_makes_a_batch_wait(runtime):
    """The copies of pinned memory are tasks, the copy of pageable memory is done in the call, after a synchronise."""
    dsts = [runtime.pinned, ctypes.addressof(runtime.pageable), runtime.pinned + 8]
    check_returns_when_done(runtime, lambda: runtime.batch(dsts, [runtime.device] * 3, D2H)[0])
    assert ascend_sim.work().tasks == 2
    assert runtime.synchronize() == 0
    assert ctypes.string_at(runtime.pinned, 16) == b"\1" * 16


@in_process(**ascend_sim.PROFILES["950 with UB"])
def test_one_pageable_element_makes_a_batch_by_ub_wait():
    runtime = Runtime()
    dsts = [runtime.pinned, ctypes.addressof(runtime.pageable)]
    check_returns_when_done(runtime, lambda: runtime.batch(dsts, [runtime.device] * 2, D2H)[0])
    assert ascend_sim.work().tasks == 0


@in_process(ASCEND_SIM_CANN="8.1")
def test_pageable_memory_is_read_late_by_old_versions():
    runtime = Runtime()
    with ascend_sim.stall_stream(runtime.stream):
        pageable = (ctypes.addressof(runtime.pageable) + 63) // 64 * 64
        ctypes.memmove(pageable, b"early", 5)
        assert runtime.copy(runtime.device, pageable, H2D, 5) == 0
        ctypes.memmove(pageable, b"later", 5)
    assert runtime.synchronize() == 0
    assert runtime.read(runtime.device, 5) == b"later"


@in_process(ASCEND_SIM_CANN="8.1")
def test_old_versions_ask_for_alignment():
    runtime = Runtime()
    assert runtime.copy(runtime.device + 32, runtime.pinned, H2D, 8) == 107008
    assert runtime.copy(runtime.device, runtime.pinned + 8, H2D, 8) == 107008
    assert runtime.copy(runtime.device + 64, runtime.pinned + 64, H2D, 8) == 0
    assert runtime.synchronize() == 0
