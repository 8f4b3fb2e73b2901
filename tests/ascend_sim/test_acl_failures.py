# SPDX-License-Identifier: Apache-2.0
"""What a failed task does to the streams of the simulated device, with and without ACL_STOP_ON_FAILURE."""

import ctypes

import pytest

import ascend_sim
from ascend_sim.acl_utils import D2D, H2D, SIZE, Caller, Runtime, acl, in_process, made, reason, wait_until

CODE = 507018


@in_process()
def test_a_stream_goes_on_after_a_failure_unless_told_otherwise():
    """In a process of its own: once told, a device stops."""
    runtime = Runtime()
    ascend_sim.fail_task("aclrtMemsetAsync", CODE, nth=2)
    with ascend_sim.stall_stream(runtime.stream):
        assert [runtime.fill(value) for value in (1, 2, 3)] == [0, 0, 0]
    assert acl("aclrtSynchronizeStream", runtime.side) == 0
    assert (runtime.synchronize(), runtime.synchronize()) == (CODE, 0)
    assert runtime.read(runtime.device, 1) == b"\3"


class TestStopOnFailure:
    """The mode of every stream that torch_npu makes. One stream that has it is enough for the whole context."""

    @pytest.fixture(autouse=True)
    def lost(self, runtime: Runtime) -> None:
        """A context with two streams: a task of one has failed, before and after tasks of both."""
        runtime.stop_on_failure()
        self.before, self.after = made("aclrtCreateEvent"), made("aclrtCreateEvent")
        runtime.write(runtime.device, bytes(SIZE))
        assert acl("aclrtRecordEvent", self.before, runtime.stream) == 0
        assert runtime.synchronize() == 0
        ascend_sim.fail_task("aclrtMemcpyAsync", CODE)
        with ascend_sim.stall_stream(runtime.side):
            with ascend_sim.stall_stream(runtime.stream):
                assert runtime.copy(runtime.other, runtime.device, D2D) == 0
                assert runtime.fill(1) == 0
                assert acl("aclrtMemsetAsync", runtime.device, SIZE, 2, SIZE, runtime.side) == 0
                assert acl("aclrtRecordEvent", self.after, runtime.side) == 0
            assert runtime.synchronize() == CODE

    def test_every_stream_returns_the_error_for_good(self, runtime: Runtime) -> None:
        status = ctypes.c_uint64()
        for _ in range(2):
            for stream in (runtime.stream, runtime.side, made("aclrtCreateStream")):
                assert acl("aclrtSynchronizeStream", stream) == CODE
                assert "lost since a task failed: aclrtMemcpyAsync: task failure injected by a test" in reason()
                assert acl("aclrtSynchronizeStreamWithTimeout", stream, 10) == CODE
                assert acl("aclrtStreamQuery", stream, ctypes.byref(status)) == CODE
                assert acl("aclrtMemsetAsync", runtime.device, SIZE, 0, SIZE, stream) == CODE
                assert acl("aclrtMemcpyAsync", runtime.device, 8, runtime.pinned, 8, int(H2D), stream) == CODE
                assert acl("aclrtMemcpyAsync", runtime.device, 8, runtime.pageable, 8, int(H2D), stream) == CODE
                assert acl("aclrtRecordEvent", self.after, stream) == CODE
                assert acl("aclrtStreamWaitEvent", stream, self.before) == CODE
            assert acl("aclrtSynchronizeDevice") == CODE

    def test_events_tell_what_they_saw(self, runtime: Runtime) -> None:
        status = ctypes.c_uint64()
        assert acl("aclrtSynchronizeEvent", self.before) == 0
        assert acl("aclrtQueryEventStatus", self.before, ctypes.byref(status)) == 0
        assert acl("aclrtSynchronizeEvent", self.after) == CODE
        assert acl("aclrtQueryEventStatus", self.after, ctypes.byref(status)) == CODE

    def test_only_a_reset_of_the_simulation_revives_it(self, runtime: Runtime) -> None:
        assert acl("aclrtDestroyStream", runtime.side) == 0
        assert acl("aclrtResetDevice", 0) == 0
        assert acl("aclrtSetDevice", 0) == 0
        assert runtime.fill() == CODE
        ascend_sim.reset()
        assert runtime.read(runtime.device) == bytes(SIZE)  # what was queued on either stream has not run
        assert runtime.fill(7) == 0
        assert runtime.synchronize() == 0
        assert runtime.read(runtime.device, 1) == b"\7"

    def test_a_stream_does_not_change_back(self, runtime: Runtime) -> None:
        assert acl("aclrtSetStreamFailureMode", runtime.stream, 0) == 207000


def test_a_synchronise_may_take_longer_than_its_timeout(runtime):
    """After an error of the device, the runtime waits for all streams, without a limit."""
    runtime.stop_on_failure()
    ascend_sim.fail_task("aclrtMemcpyAsync", CODE)
    with ascend_sim.stall_stream(runtime.side):
        assert acl("aclrtMemsetAsync", runtime.device, SIZE, 2, SIZE, runtime.side) == 0
        assert runtime.copy(runtime.other, runtime.device, D2D) == 0
        assert runtime.synchronize() == CODE  # without the switch, at once
        with ascend_sim.unbounded_synchronize():
            late = Caller(lambda: acl("aclrtSynchronizeStreamWithTimeout", runtime.stream, 1))
            late.join(0.05)
            assert late.is_alive()
    assert late.result() == CODE


def test_a_failure_ends_waits(runtime):
    """A thread that waits for room in a full stream, or for a stream, is told."""
    runtime.stop_on_failure()
    with ascend_sim.stall_stream(runtime.side):
        for _ in range(2013):
            assert acl("aclrtMemsetAsync", runtime.device, SIZE, 0, SIZE, runtime.side) == 0
        blocked = Caller(lambda: acl("aclrtMemsetAsync", runtime.device, SIZE, 0, SIZE, runtime.side))
        waiting = Caller(lambda: acl("aclrtSynchronizeStream", runtime.side))
        wait_until(lambda: ascend_sim.blocked_submitters() == 1)
        ascend_sim.fail_task("aclrtMemcpyAsync", CODE)
        assert runtime.copy(runtime.other, runtime.device, D2D) == 0
        assert blocked.result() == waiting.result() == CODE
