# SPDX-License-Identifier: Apache-2.0
"""Kernels that a plugin brings along. See Note [Kernel binaries] in src/kernel.cpp."""

import ctypes
import struct
import subprocess

import pytest

import ascend_sim
from ascend_sim.acl_utils import SIZE, Runtime, acl, reason

SOURCE = """
#include <cstring>
extern "C" int scatter(unsigned block, const void* arguments, void* (*reach)(const void*, unsigned long)) {
  struct { char* dst; const long* values; } a;
  std::memcpy(&a, arguments, sizeof a);
  const void* const value = reach(a.values + block, sizeof(long));
  void* const at = reach(a.dst + block * sizeof(long), sizeof(long));
  if (!value || !at) return 1;
  std::memcpy(at, value, sizeof(long));
  return 0;
}
"""
LAUNCH = "aclrtLaunchKernelWithHostArgs"


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("kernel") / "k.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", file], input=SOURCE, text=True, check=True)
    return file.read_bytes()


@pytest.fixture
def function(runtime: Runtime, binary: bytes) -> int:
    handle, found = ctypes.c_uint64(), ctypes.c_uint64()
    assert acl("aclrtBinaryLoadFromData", binary, len(binary), None, ctypes.byref(handle)) == 0, reason()
    assert acl("aclrtBinaryGetFunction", handle.value, b"scatter", ctypes.byref(found)) == 0, reason()
    return found.value


def launch(runtime: Runtime, function: int, dst: int, values: list[int], slot: int = 8, at: int = 16) -> int:
    block = ctypes.create_string_buffer(struct.pack(f"<2Q{len(values)}q", dst, 0, *values), 16 + 8 * len(values))
    holders = (ctypes.c_uint32 * 2)(slot, at)
    return acl(LAUNCH, function, len(values), runtime.stream, None, block, len(block), holders, 1)


@pytest.mark.parametrize("on_host", [False, True])
def test_what_is_not_memory_of_the_device_is_out_of_reach(runtime: Runtime, function: int, on_host: bool) -> None:
    dst = runtime.pinned if on_host else runtime.device + SIZE - 8
    assert launch(runtime, function, dst, [1, 2]) == 0
    assert runtime.synchronize() == 507035
    assert "of a kernel reached outside of live device memory" in reason()


def test_refusals(runtime: Runtime, function: int) -> None:
    assert launch(runtime, function + 1, runtime.device, [1]) == 107000
    assert launch(runtime, function, runtime.device, []) == 107000
    assert launch(runtime, function, runtime.device, [1], slot=20) == 107000
    assert launch(runtime, function, runtime.device, [1], at=24) == 107000
    assert "a place holder is outside of the arguments" in reason()
    assert acl("aclrtBinaryLoadFromData", b"no library", 10, None, ctypes.byref(ctypes.c_uint64())) == 107000
    assert ascend_sim.work(LAUNCH).tasks == 0
