# SPDX-License-Identifier: Apache-2.0
"""The simulated runtime, called directly: what it does, and what it refuses as a real runtime refuses it."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import ascend_sim

H2H, H2D, D2H, D2D = ascend_sim.MemcpyKind
SIZE = 1024
HERE = Path(__file__).parent


def acl(name: str, *arguments) -> int:
    """Calls an ACL function; plain integers are passed as 64 bits, which also serves narrower parameters."""
    return getattr(ascend_sim.library, name)(*(ctypes.c_uint64(a) if isinstance(a, int) else a for a in arguments))


def reason() -> str:
    ascend_sim.library.aclGetRecentErrMsg.restype = ctypes.c_char_p
    return ascend_sim.library.aclGetRecentErrMsg().decode()


def made(name: str, *arguments) -> int:
    """Calls a function that hands out a pointer or handle through its first argument."""
    out = ctypes.c_uint64()
    assert acl(name, ctypes.byref(out), *arguments) == 0, reason()
    return out.value


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", f"from ascend_sim.test_acl_calls import *; acl('aclrtSetDevice', 0)\n{code}"],
        env={**os.environ, "PYTHONPATH": str(HERE.parent), **environment},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )


class Runtime:
    def __init__(self) -> None:
        assert acl("aclrtSetDevice", 0) == 0
        self.stream = made("aclrtCreateStream")
        self.device = made("aclrtMalloc", SIZE, 0)
        self.other = made("aclrtMalloc", SIZE, 0)
        self.pinned = made("aclrtMallocHost", SIZE)
        self.pageable = ctypes.create_string_buffer(SIZE)

    def copy(self, dst, src, kind: int, count: int = SIZE) -> int:
        return acl("aclrtMemcpyAsync", dst, SIZE, src, count, int(kind), self.stream)

    def synchronize(self) -> int:
        return acl("aclrtSynchronizeStream", self.stream)

    def read(self, device: int, count: int = SIZE) -> bytes:
        host = ctypes.create_string_buffer(count)
        assert acl("aclrtMemcpy", host, count, device, count, int(D2H)) == 0, reason()
        return host.raw

    def write(self, device: int, content: bytes) -> None:
        assert acl("aclrtMemcpy", device, len(content), content, len(content), int(H2D)) == 0, reason()


@pytest.fixture
def runtime():
    ascend_sim.reset()
    runtime = Runtime()
    yield runtime
    ascend_sim.reset()
    acl("aclrtDestroyStream", runtime.stream)


def test_fresh_memory_is_poisoned(runtime):
    assert runtime.read(runtime.device) == b"\xa5" * SIZE
    assert ctypes.string_at(runtime.pinned, SIZE) == b"\xa5" * SIZE


def test_the_host_cannot_touch_device_memory():
    result = run_python("ctypes.string_at(made('aclrtMalloc', 64, 0), 1)")
    assert result.returncode == -signal.SIGSEGV


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
    runtime.write(runtime.device, bytes(SIZE))
    runtime.write(runtime.other, bytes(i % 251 for i in range(SIZE)))
    arguments = (runtime.device, dpitch, runtime.other, spitch, width, height, int(kind), runtime.stream)
    assert acl("aclrtMemcpy2dAsync", *arguments) == code, reason()
    assert runtime.synchronize() == 0
    expected = bytearray(SIZE)
    for row in range(height if code == 0 else 0):
        expected[row * dpitch : row * dpitch + width] = (i % 251 for i in range(row * spitch, row * spitch + width))
    assert runtime.read(runtime.device) == expected


@pytest.mark.parametrize("shift", [-24, -3, 0, 3, 24])
def test_a_copy_onto_what_it_has_still_to_read_destroys_it(runtime, shift):
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


def test_chips_without_strided_device_copies():
    code = "r = Runtime(); print(acl('aclrtMemcpy2dAsync', r.device, 8, r.other, 8, 8, 8, 3, r.stream))"
    assert run_python(code, ASCEND_SIM_SOC="Ascend310P3").stdout == "100000\n"
    assert run_python(code, ASCEND_SIM_SOC="Ascend910_9392").stdout == "0\n"


@pytest.mark.parametrize(("package", "version"), [(0, b"8.1.RC1"), (7, b"24.1.0")], ids=["cann", "driver"])
def test_versions(package, version):
    text = ctypes.create_string_buffer(512)
    assert acl("aclsysGetCANNVersion", package, text) == 0
    assert text.value == version


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


def test_an_old_runtime_lacks_the_newer_copies():
    names = ("aclrtMemcpyAsync", "aclrtMemcpy2dAsync", "aclrtMemcpyBatchAsync", "aclrtMemcpyBatchAsyncV2")
    code = f"print([hasattr(ascend_sim.library, name) for name in {names}])"
    assert run_python(code, LD_LIBRARY_PATH=f"{HERE}/build/old-cann").stdout == "[True, False, False, False]\n"


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


@pytest.mark.parametrize(("free", "memory"), [("aclrtFree", "device"), ("aclrtFreeHost", "pinned")])
def test_use_after_free_is_an_error_of_the_stream(runtime, free, memory):
    with ascend_sim.stall_stream(runtime.stream):
        assert runtime.copy(runtime.device, runtime.pinned, H2D) == 0
        assert acl(free, getattr(runtime, memory)) == 0
    assert runtime.synchronize() == 507013
    assert "freed memory" in reason()
    assert runtime.synchronize() == 0
    assert runtime.copy(runtime.device, runtime.pinned, H2D) == 107000


def test_devices_are_apart(runtime):
    assert acl("aclrtSetDevice", 1) == 0
    elsewhere = made("aclrtMalloc", SIZE, 0)
    assert runtime.copy(runtime.device, runtime.pinned, H2D) == 107003
    assert acl("aclrtSetDevice", 0) == 0
    assert runtime.copy(elsewhere, runtime.pinned, H2D) == 107000
    assert runtime.copy(elsewhere, runtime.device, D2D) == 107000
    assert "without peer access" in reason()
    assert acl("aclrtDeviceEnablePeerAccess", 1, 0) == 0
    assert runtime.copy(elsewhere, runtime.device, D2D) == 0
    assert runtime.synchronize() == 0
    assert acl("aclrtSetDevice", 2) == 107001


def test_a_full_device_refuses():
    code = "print(acl('aclrtMalloc', ctypes.byref(ctypes.c_uint64()), 4097, 0))"
    assert run_python(code, ASCEND_SIM_MEMORY="4096").stdout == "207001\n"


def test_faults_strike_once_in_the_call_or_in_the_task(runtime):
    ascend_sim.fail_call("aclrtMemcpyAsync", code=207001, nth=2)
    ascend_sim.fail_task("aclrtMemcpyAsync", code=507015, nth=2)
    copies = [runtime.copy(runtime.device, runtime.pinned, H2D) for _ in range(3)]
    assert copies == [0, 207001, 0]
    assert (runtime.synchronize(), runtime.synchronize()) == (507015, 0)
    assert ascend_sim.armed_faults() == 0
    assert ascend_sim.call_counts()["aclrtMemcpyAsync"] == 3


def test_what_a_capture_forbids(runtime):
    other_stream = made("aclrtCreateStream")
    assert acl("aclmdlRICaptureBegin", runtime.stream, 0) == 0
    assert runtime.synchronize() == 107027
    assert acl("aclrtStreamQuery", runtime.stream, ctypes.byref(ctypes.c_uint64())) == 107027
    with ascend_sim.stall_stream(other_stream):
        assert acl("aclrtMemsetAsync", runtime.device, SIZE, 0, SIZE, other_stream) == 0
        assert acl("aclrtSynchronizeDevice") == 107027  # refused before it waits for any stream
    assert runtime.copy(runtime.device, runtime.pageable, H2D) == 107027
    assert acl("aclrtMemcpy", runtime.device, SIZE, runtime.pinned, SIZE, int(H2D)) == 107030
    assert acl("aclrtMemset", runtime.device, SIZE, 0, SIZE) == 107030
    assert acl("aclrtMemcpyAsync", runtime.device, SIZE, runtime.pageable, SIZE, int(H2D), other_stream) == 107041
    assert acl("aclmdlRICaptureEnd", runtime.stream, ctypes.byref(ctypes.c_uint64())) == 0


def test_a_replay_keeps_event_order_and_no_other(runtime):
    """Two streams write the same memory. Unordered, the stream that joined last goes first; a wait turns that round."""
    side, fork, join = made("aclrtCreateStream"), made("aclrtCreateEvent"), made("aclrtCreateEvent")

    def capture(*steps: str) -> int:
        memset = {"main": (1, runtime.stream), "side": (2, side)}
        assert acl("aclmdlRICaptureBegin", runtime.stream, 2) == 0
        for step in steps:
            if step == "fork":
                assert acl("aclrtRecordEvent", fork, runtime.stream) == 0
                assert acl("aclrtStreamWaitEvent", side, fork) == 0
            elif step == "join":
                assert acl("aclrtRecordEvent", join, side) == 0
                assert acl("aclrtStreamWaitEvent", runtime.stream, join) == 0
            else:
                assert acl("aclrtMemsetAsync", runtime.device, SIZE, memset[step][0], SIZE, memset[step][1]) == 0
        graph = ctypes.c_uint64()
        code = acl("aclmdlRICaptureEnd", runtime.stream, ctypes.byref(graph))
        if code == 0:
            assert runtime.synchronize() == 0
            assert acl("aclmdlRIExecuteAsync", graph.value, runtime.stream) == 0
            assert runtime.synchronize() == 0
        return code or runtime.read(runtime.device, 1)[0]

    assert capture("fork", "side", "main", "join") == 1
    assert capture("fork", "main", "side", "join") == 1  # the order of submission is no order
    assert capture("main", "fork", "side", "join") == 2
    assert capture("fork", "side", "join", "main") == 1
    assert capture("fork", "side") == 107025
