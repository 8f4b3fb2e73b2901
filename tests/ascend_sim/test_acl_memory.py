# SPDX-License-Identifier: Apache-2.0
"""Memory, devices, versions and faults of the simulated runtime, called directly."""

import ctypes
import signal

import pytest
from fresh_process import run_code

import ascend_sim
from ascend_sim.acl_utils import D2D, H2D, SIZE, acl, made, reason


def test_fresh_memory_is_poisoned(runtime):
    assert runtime.read(runtime.device) == b"\xa5" * SIZE
    assert ctypes.string_at(runtime.pinned, SIZE) == b"\xa5" * SIZE


def test_the_host_cannot_touch_device_memory():
    code = "from ascend_sim.acl_utils import *; ctypes.string_at(Runtime().device, 1)"
    run_code(code, -signal.SIGSEGV)


@pytest.mark.parametrize(("free", "memory"), [("aclrtFree", "device"), ("aclrtFreeHost", "pinned")])
def test_use_after_free_is_an_error_of_the_stream(runtime, free, memory):
    with ascend_sim.stall_stream(runtime.stream):
        assert runtime.copy(runtime.device, runtime.pinned, H2D) == 0
        assert acl(free, getattr(runtime, memory)) == 0
    assert runtime.synchronize() == 507013
    assert "freed memory" in reason()
    ascend_sim.reset()
    assert runtime.copy(runtime.device, runtime.pinned, H2D) == 107000


def test_devices_are_apart(runtime):
    assert acl("aclrtSetDevice", 2) == 107001
    assert acl("aclrtSetDevice", 1) == 0
    elsewhere = made("aclrtMalloc", SIZE, 0)
    assert runtime.copy(runtime.device, runtime.pinned, H2D) == 107003
    assert acl("aclrtSetDevice", 0) == 0
    assert runtime.copy(elsewhere, runtime.pinned, H2D) == 107000
    assert runtime.copy(elsewhere, runtime.device, D2D) == 107000
    assert "is memory of device 1, not of device 0" in reason()


def test_a_full_device_refuses(runtime):
    assert acl("aclrtMalloc", ctypes.byref(ctypes.c_uint64()), 2**36 - SIZE, 0) == 207001
    assert "do not fit on device 0" in reason()


def test_a_stream_is_destroyed_on_its_own_device(runtime):
    assert acl("aclrtSetDevice", 1) == 0
    assert acl("aclrtDestroyStream", runtime.side) == 107003
    assert acl("aclrtSynchronizeStream", runtime.side) == 0
    assert acl("aclrtSetDevice", 0) == 0
    assert acl("aclrtDestroyStream", runtime.side) == 0


@pytest.mark.parametrize("timeout", [0, -2])
def test_refused_timeouts(runtime, timeout):
    assert acl("aclrtSynchronizeStreamWithTimeout", runtime.stream, timeout % 2**32) == 107000
    assert acl("aclrtSynchronizeDeviceWithTimeout", timeout % 2**32) == 107000
