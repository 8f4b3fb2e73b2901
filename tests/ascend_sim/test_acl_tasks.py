# SPDX-License-Identifier: Apache-2.0
"""What calls become on the simulated device: their tasks, how many a stream holds, and what else is limited."""

import ctypes

import pytest

import ascend_sim
from ascend_sim import Work
from ascend_sim.acl_utils import D2D, D2H, H2D, SIZE, Caller, Runtime, acl, in_process, made, reason, wait_until

MIB = 2**20
DEPTH = 2013


def test_host_copies_are_a_task_for_each_64_mib(runtime):
    device, pinned = made("aclrtMalloc", 129 * MIB, 0), made("aclrtMallocHost", 129 * MIB)
    for size, tasks in ((1, 1), (64 * MIB, 1), (64 * MIB + 1, 2), (129 * MIB, 3)):
        ascend_sim.reset()
        assert runtime.copy(device, pinned, H2D, size) == 0
        assert runtime.copy(pinned, device, D2H, size) == 0
        assert ascend_sim.work() == Work(calls=2, tasks=2 * tasks, queries=12)
        assert runtime.synchronize() == 0


def test_all_bytes_of_a_host_copy_in_pieces_arrive(runtime):
    size = 64 * MIB + 10
    device, pinned = made("aclrtMalloc", size, 0), made("aclrtMallocHost", size)
    for at in (0, 64 * MIB):
        ctypes.memmove(pinned + at, b"0123456789", 10)
    assert runtime.copy(device, pinned, H2D, size) == 0
    assert runtime.synchronize() == 0
    assert runtime.read(device + 64 * MIB - 1, 11) == b"\xa50123456789"


def test_strided_host_copies_are_a_task_for_each_32768_rows(runtime):
    device, pinned = made("aclrtMalloc", 2**18, 0), made("aclrtMallocHost", 2**18)
    for rows, tasks in ((1, 1), (0x8000, 1), (0x8001, 2)):
        ascend_sim.reset()
        assert runtime.strided(device, 4, pinned, 2, 2, rows, H2D) == 0
        assert ascend_sim.work() == Work(calls=1, tasks=tasks, queries=2)
        assert runtime.synchronize() == 0


@in_process(ASCEND_SIM_CANN="9.0")
def test_a_strided_device_copy_is_a_task_for_each_row_and_can_be_half_done():
    runtime = Runtime()
    runtime.write(runtime.other, bytes(range(128)))
    with ascend_sim.stall_stream(runtime.stream, after=3):
        assert runtime.strided(runtime.device, 16, runtime.other, 16, 8, 8, D2D) == 0
        assert ascend_sim.work("aclrtMemcpy2d") == Work(calls=1, tasks=8, queries=2)

        def rows() -> int:
            content = runtime.read(runtime.device, 128)
            return sum(content[at : at + 8] == bytes(range(at, at + 8)) for at in range(0, 128, 16))

        wait_until(lambda: rows() == 3)
        assert acl("aclrtSynchronizeStreamWithTimeout", runtime.stream, 20) == 507046
        assert rows() == 3
    assert runtime.synchronize() == 0
    assert rows() == 8


@in_process(ASCEND_SIM_CANN="9.0")
def test_a_fault_strikes_one_row():
    """On a stream that goes on after a failure: all rows but that one are copied."""
    runtime = Runtime()
    ascend_sim.fail_task("aclrtMemcpy2dAsync", 507018, nth=3)
    assert runtime.strided(runtime.device, 16, runtime.other, 16, 8, 2, D2D) == 0
    assert ascend_sim.armed_faults() == 1
    assert runtime.synchronize() == 0
    runtime.write(runtime.other, bytes(SIZE))
    assert runtime.strided(runtime.device, 16, runtime.other, 16, 8, 8, D2D) == 0
    assert ascend_sim.armed_faults() == 0
    assert (runtime.synchronize(), runtime.synchronize()) == (507018, 0)
    content = runtime.read(runtime.device, 128)
    assert [content[at : at + 8] == bytes(8) for at in range(0, 128, 16)].count(False) == 1


@pytest.mark.parametrize(
    ("soc", "link", "tasks", "queries"),
    [("Ascend910_9391", "ub", 5, 30), ("Ascend950PR_9589", "pcie", 5, 30), ("Ascend950PR_9589", "ub", 1, 10)],
)
def test_a_batch_is_a_loop_or_one_task(soc: str, link: str, tasks: int, queries: int) -> None:
    in_process(ASCEND_SIM_SOC=soc, ASCEND_SIM_LINK=link)(check_batch)(tasks=tasks, queries=queries)


def check_batch(tasks: int, queries: int) -> None:
    runtime = Runtime()
    dsts, srcs = ([base + 8 * i for i in range(5)] for base in (runtime.device, runtime.pinned))
    assert runtime.batch(dsts, srcs, H2D)[0] == 0
    assert ascend_sim.work() == Work(calls=1, tasks=tasks, queries=queries)
    assert runtime.synchronize() == 0


def test_a_refused_batch_is_half_done(runtime):
    """The runtime looks at an element, submits it, and only then looks at the next one."""
    dsts = [runtime.device, runtime.device + 8, runtime.device + SIZE - 4]
    ctypes.memmove(runtime.pinned, b"first...second..third...", 24)
    assert runtime.batch(dsts, [runtime.pinned + 8 * i for i in range(3)], H2D) == (107000, 2)
    assert "runs past the allocation" in reason()
    assert ascend_sim.work("aclrtMemcpyBatch") == Work(calls=1, tasks=2, queries=18)
    assert runtime.synchronize() == 0
    assert runtime.read(runtime.device, 16) == b"first...second.."


def test_a_full_stream_blocks_its_submitter(runtime):
    with ascend_sim.stall_stream(runtime.stream):
        for _ in range(DEPTH):
            assert runtime.fill() == 0
        late = Caller(lambda: runtime.fill(1))
        wait_until(lambda: ascend_sim.blocked_submitters() == 1)
        assert late.code is None
    assert late.result() == 0
    assert ascend_sim.blocked_submitters() == 0
    assert runtime.synchronize() == 0
    assert runtime.read(runtime.device, 1) == b"\1"


@in_process(ASCEND_SIM_CANN="9.0")
def test_a_stream_that_is_full_holds_a_part_of_a_command():
    """10,000 rows of one call: the call returns when the last ones have room."""
    runtime, rows = Runtime(), 10_000
    device, other = made("aclrtMalloc", rows, 0), made("aclrtMalloc", rows, 0)
    with ascend_sim.stall_stream(runtime.stream, after=rows - DEPTH - 1):
        late = Caller(lambda: runtime.strided(device, 1, other, 1, 1, rows, D2D))
        wait_until(lambda: ascend_sim.blocked_submitters() == 1)
        assert acl("aclrtSynchronizeStream", runtime.side) == 0  # other streams are not concerned
        assert late.code is None
    assert late.result() == 0
    assert runtime.synchronize() == 0


@in_process()
def test_a_device_copy_of_4_gib_has_length_0():
    runtime = Runtime()
    gib4 = 4 * 2**30
    dst, src = made("aclrtMalloc", gib4 + 64, 0), made("aclrtMalloc", gib4 + 64, 0)
    for at in (0, gib4 - 8, gib4):
        runtime.write(src + at, b"new text")
    assert runtime.copy(dst, src, D2D, gib4) == 0
    assert runtime.synchronize() == 0
    assert runtime.read(dst, 8) == runtime.read(dst + gib4 - 8, 8) == b"\xa5" * 8
    ascend_sim.reset()
    assert runtime.copy(dst, src, D2D, gib4 + 8) == 0
    assert runtime.synchronize() == 0
    assert ascend_sim.work("aclrtMemcpyAsync").tasks == 2
    assert (runtime.read(dst, 8), runtime.read(dst + gib4, 8)) == (b"\xa5" * 8, b"new text")


@in_process()
def test_a_device_has_65536_events_that_wait():
    runtime = Runtime()
    streams, event = [made("aclrtCreateStream") for _ in range(33)], made("aclrtCreateEvent")
    with ascend_sim.stall_device(0):
        for i in range(65536):
            assert acl("aclrtRecordEvent", event, streams[i // DEPTH]) == 0
        late = Caller(lambda: acl("aclrtRecordEvent", event, runtime.stream))
        wait_until(lambda: ascend_sim.blocked_submitters() == 1)
        assert late.code is None
    assert late.result() == 0


@in_process()
def test_a_wait_for_an_event_times_out_where_a_limit_is_set():
    runtime = Runtime()
    event = made("aclrtCreateEvent")
    with ascend_sim.stall_stream(runtime.side):
        assert acl("aclrtRecordEvent", event, runtime.side) == 0
        assert acl("aclrtSetOpWaitTimeout", 1) == 0
        assert acl("aclrtStreamWaitEvent", runtime.stream, event) == 0
        assert runtime.synchronize() == 107020
    assert acl("aclrtSetOpWaitTimeout", 0) == 0


@in_process()
def test_streams_run_out():
    runtime = Runtime()
    assert acl("aclmdlRICaptureBegin", runtime.stream, 2) == 0  # takes a stream too
    for _ in range(2038 - 3):
        made("aclrtCreateStream")
    assert acl("aclrtCreateStream", ctypes.byref(ctypes.c_uint64())) == 207005
    assert "2038 of the 2038 streams" in reason()
