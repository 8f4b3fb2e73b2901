# SPDX-License-Identifier: Apache-2.0
"""Captured graphs of the simulated runtime, called directly: what a capture refuses, and the order of a replay."""

import ctypes

import ascend_sim
from ascend_sim.acl_utils import D2D, H2D, SIZE, Runtime, acl, in_process, made, reason


def test_calls_refused_during_a_capture(runtime):
    assert acl("aclmdlRICaptureBegin", runtime.stream, 0) == 0
    assert runtime.synchronize() == 107027
    assert acl("aclrtStreamQuery", runtime.stream, ctypes.byref(ctypes.c_uint64())) == 107027
    with ascend_sim.stall_stream(runtime.side):
        assert acl("aclrtMemsetAsync", runtime.device, SIZE, 0, SIZE, runtime.side) == 0
        assert acl("aclrtSynchronizeDevice") == 107027  # refused before it waits for any stream
    assert runtime.copy(runtime.device, runtime.pageable, H2D) == 107000
    assert acl("aclrtMemcpy", runtime.device, SIZE, runtime.pinned, SIZE, int(H2D)) == 107030
    assert acl("aclrtMemcpyAsync", runtime.device, SIZE, runtime.pageable, SIZE, int(H2D), runtime.side) == 107041
    assert acl("aclmdlRICaptureEnd", runtime.stream, ctypes.byref(ctypes.c_uint64())) == 0


def test_a_replay_keeps_event_order_and_no_other(runtime):
    """Two streams write the same memory. Without a wait between them, the stream that joined last runs first."""
    side, fork, join = runtime.side, made("aclrtCreateEvent"), made("aclrtCreateEvent")

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
    assert capture("fork", "main", "side", "join") == 1  # the order of submission does not count
    assert capture("main", "fork", "side", "join") == 2
    assert capture("fork", "side", "join", "main") == 1
    assert capture("fork", "side") == 107025


@in_process(ASCEND_SIM_CANN="9.0")
def test_a_capture_takes_streams_for_its_tasks():
    """2,013 tasks each. A capture that finds none left is invalid, and so is what is captured after it."""
    runtime, graph = Runtime(), ctypes.c_uint64()
    rows = 2013 * 2036  # the device has 2,038 streams, of which the runtime has two
    device, other = made("aclrtMalloc", rows + 1, 0), made("aclrtMalloc", rows + 1, 0)

    def captured(rows: int) -> int:
        assert acl("aclmdlRICaptureBegin", runtime.stream, 2) == 0
        return runtime.strided(device, 1, other, 1, 1, rows, D2D)

    assert captured(rows) == 0
    assert acl("aclrtCreateStream", ctypes.byref(ctypes.c_uint64())) == 207005
    assert acl("aclmdlRICaptureEnd", runtime.stream, ctypes.byref(graph)) == 0
    assert acl("aclmdlRIDestroy", graph.value) == 0
    assert captured(rows + 1) == 207005
    assert "2038 streams" in reason()
    assert runtime.fill() == 507903
    assert acl("aclmdlRICaptureEnd", runtime.stream, ctypes.byref(graph)) == 507903
    assert captured(rows) == 0


@in_process(**ascend_sim.PROFILES["950 with UB"])
def test_a_graph_holds_32768_work_elements():
    """Copies between host and device take them where UB connects the two: one for a row or a part of a batch."""
    runtime = Runtime()
    device, pinned = made("aclrtMalloc", 2**16, 0), made("aclrtMallocHost", 2**16)
    assert acl("aclmdlRICaptureBegin", runtime.stream, 2) == 0
    assert runtime.strided(device, 2, pinned, 1, 1, 0x8000 - 2, H2D) == 0
    assert runtime.batch([device, device + 8], [pinned, pinned + 8], H2D) == (0, 2**64 - 1)
    assert runtime.copy(device, pinned, H2D, 8) == 207008
    assert "32768 work elements" in reason()
    assert runtime.fill() == 0
