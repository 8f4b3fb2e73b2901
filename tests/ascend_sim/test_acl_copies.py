# SPDX-License-Identifier: Apache-2.0
"""Copies of the simulated runtime, called directly: what they do, and what they refuse as a real runtime does."""

import ctypes
import threading

import pytest

import ascend_sim
from ascend_sim.acl_utils import D2D, D2H, H2D, H2H, SIZE, acl, made, reason


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
    assert runtime.copy(getattr(runtime, dst), getattr(runtime, src), kind, count) == code
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
        (128, 64, 32, 8, D2D, 0),
        (128, 64, 64, 8, D2D, 0),
        (128, 64, 65, 8, D2D, 107000),  # wider than spitch
        (64, 128, 65, 8, D2D, 107000),  # wider than dpitch
        (129, 64, 64, 9, D2D, 107000),  # the last row leaves dst
        (64, 146, 64, 8, D2D, 107000),  # the last row leaves src
        (2**63, 64, 64, 3, D2D, 107000),  # the rows wrap round
        (2**64 - 64, 64, 64, 2, D2D, 107000),  # a negative pitch
        (128, 64, 32, 8, H2H, 100000),
    ],
)
def test_strided_copies(runtime, dpitch, spitch, width, height, kind, code):
    """npu/test_runtime_copies.py shows the bytes."""
    arguments = (runtime.device, dpitch, runtime.other, spitch, width, height, int(kind), runtime.stream)
    assert acl("aclrtMemcpy2dAsync", *arguments) == code, reason()
    assert runtime.synchronize() == 0


@pytest.mark.parametrize("shift", [-24, -3, 0, 3, 24])
def test_a_copy_that_overlaps_its_source_is_wrong(runtime, shift):
    before = bytes(i % 251 for i in range(SIZE))
    runtime.write(runtime.device, before)
    dst, src = 100 + shift, 100
    arguments = (runtime.device + dst, 32, runtime.device + src, 32, 16, 4, int(D2D), runtime.stream)
    assert acl("aclrtMemcpy2dAsync", *arguments) == 0
    assert runtime.synchronize() == 0
    moved = bytearray(before)
    for row in range(0, 128, 32):
        moved[dst + row : dst + row + 16] = before[src + row : src + row + 16]
    assert (runtime.read(runtime.device) == moved) == (shift == 0)


@pytest.mark.parametrize(("width", "height"), [(5_000_000, 1), (1, 5_242_880)])
def test_strided_copies_have_size_limits(runtime, width, height):
    dst, src = made("aclrtMalloc", 6_000_000, 0), made("aclrtMalloc", 6_000_000, 0)

    def copy(width: int, height: int) -> int:
        return acl("aclrtMemcpy2dAsync", dst, width, src, width, width, height, int(D2D), runtime.stream)

    assert copy(width, height) == 0
    assert copy(width + (height == 1), height + (width == 1)) == 107000
    assert runtime.synchronize() == 0


def batch(runtime, dsts, srcs, kinds, size=8, dest_max=64, starts=None, reserved=0) -> tuple[int, int]:
    """One attribute for each copy. Returns the code and failIndex."""
    count = len(dsts)
    numbers = ctypes.c_uint64 * count
    # aclrtMemcpyBatchAttr: {id, type} of dst, {id, type} of src, 16 reserved bytes; type 1 is a device
    attributes = (ctypes.c_uint32 * (8 * count))()
    for i, kind in enumerate(kinds):
        attributes[8 * i + 1], attributes[8 * i + 3] = kind in (H2D, D2D), kind in (D2H, D2D)
        attributes[8 * i + 7] = reserved
    dest_maxs, sizes, fail_index = numbers(*[dest_max] * count), numbers(*[size] * count), ctypes.c_uint64()
    code = acl(
        "aclrtMemcpyBatchAsync", numbers(*dsts), dest_maxs, numbers(*srcs), sizes, count,
        attributes, numbers(*starts or range(count)), count, ctypes.byref(fail_index), runtime.stream,
    )  # fmt: skip
    return code, fail_index.value


def test_batches_are_unordered_copies_of_one_direction(runtime):
    nowhere = 2**64 - 1
    source = made("aclrtMallocHost", 16)
    ctypes.memmove(source, b"first...second..", 16)
    assert batch(runtime, [runtime.device] * 2, [source, source + 8], [H2D] * 2) == (0, nowhere)
    assert runtime.synchronize() == 0
    assert runtime.read(runtime.device, 8) == b"first..."
    assert batch(runtime, [runtime.device, source], [source, runtime.device], [H2D, D2H]) == (207000, 1)
    assert batch(runtime, [runtime.device], [runtime.other], [D2D]) == (207000, 0)
    one = (runtime, [runtime.device], [source], [H2D])
    assert batch(*one, size=17) == (107000, nowhere)
    assert batch(*one, dest_max=7) == (100000, nowhere)
    assert batch(*one, starts=[1]) == (100000, nowhere)
    assert batch(*one, reserved=1) == (100000, nowhere)
    assert [copy.name for copy in ascend_sim.copies()].count("aclrtMemcpyBatchAsync") == 2


def test_pinned_copies_return_at_once_and_pageable_ones_when_done(runtime):
    with ascend_sim.stall_stream(runtime.stream):
        assert runtime.copy(runtime.device, runtime.pinned, H2D) == 0
        assert acl("aclrtSynchronizeStreamWithTimeout", runtime.stream, 1) == 507046
        returned = []
        blocked = [runtime.pageable, runtime.device, D2H]
        caller = threading.Thread(target=lambda: (acl("aclrtSetDevice", 0), returned.append(runtime.copy(*blocked))))
        caller.start()
        caller.join(0.05)
        assert caller.is_alive()
    caller.join()
    assert returned == [0]
    assert runtime.pageable.raw == b"\xa5" * SIZE
