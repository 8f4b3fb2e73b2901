# SPDX-License-Identifier: Apache-2.0
"""Memory, devices, versions and faults of the simulated runtime, called directly."""

import ctypes
import signal

import pytest
from fresh_process import run_code

import ascend_sim
from ascend_sim.acl_utils import H2D, SIZE, acl, reason

HEAD = "from ascend_sim.acl_utils import *\nacl('aclrtSetDevice', 0)\n"


def test_fresh_memory_is_poisoned(runtime):
    assert runtime.read(runtime.device) == b"\xa5" * SIZE
    assert ctypes.string_at(runtime.pinned, SIZE) == b"\xa5" * SIZE


def test_the_host_cannot_touch_device_memory():
    run_code(HEAD + "ctypes.string_at(made('aclrtMalloc', 64, 0), 1)", -signal.SIGSEGV)


@pytest.mark.parametrize(("free", "memory"), [("aclrtFree", "device"), ("aclrtFreeHost", "pinned")])
def test_use_after_free_is_an_error_of_the_stream(runtime, free, memory):
    with ascend_sim.stall_stream(runtime.stream):
        assert runtime.copy(runtime.device, runtime.pinned, H2D) == 0
        assert acl(free, getattr(runtime, memory)) == 0
    assert runtime.synchronize() == 507013
    assert "freed memory" in reason()
    ascend_sim.reset()
    assert runtime.copy(runtime.device, runtime.pinned, H2D) == 107000


def test_devices_are_apart():
    """In a process of its own: access between devices, once enabled, stays enabled."""
    code = """
runtime = Runtime()
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
"""
    run_code(HEAD + code)


def test_a_full_device_refuses():
    code = "print(acl('aclrtMalloc', ctypes.byref(ctypes.c_uint64()), 4097, 0))"
    assert run_code(HEAD + code, ASCEND_SIM_MEMORY="4096").stdout == "207001\n"


def test_faults_strike_once_in_the_call_or_in_the_task(runtime):
    ascend_sim.fail_call("aclrtMemcpyAsync", code=207001, nth=2)
    ascend_sim.fail_task("aclrtMemcpyAsync", code=507015, nth=2)
    copies = [runtime.copy(runtime.device, runtime.pinned, H2D) for _ in range(3)]
    assert copies == [0, 207001, 0]
    assert runtime.synchronize() == 507015
    assert ascend_sim.armed_faults() == 0
    assert ascend_sim.call_counts()["aclrtMemcpyAsync"] == 3


def test_a_stream_is_destroyed_on_its_own_device(runtime):
    assert acl("aclrtSetDevice", 1) == 0
    assert acl("aclrtDestroyStream", runtime.side) == 107003
    assert acl("aclrtDestroyStreamForce", runtime.side) == 107003
    assert acl("aclrtSynchronizeStream", runtime.side) == 0
    assert acl("aclrtSetDevice", 0) == 0
    assert acl("aclrtDestroyStream", runtime.side) == 0


@pytest.mark.parametrize("timeout", [0, -2])
def test_refused_timeouts(runtime, timeout):
    assert acl("aclrtSynchronizeStreamWithTimeout", runtime.stream, timeout % 2**32) == 107000
    assert acl("aclrtSynchronizeDeviceWithTimeout", timeout % 2**32) == 107000
