# SPDX-License-Identifier: Apache-2.0
"""Helpers of the tests that call the simulated runtime directly."""

import ctypes
import functools
import threading
import time
from collections.abc import Callable

from fresh_process import run_code

import ascend_sim

H2H, H2D, D2H, D2D = ascend_sim.MemcpyKind
SIZE = 1024
STOP_ON_FAILURE = 1
NOWHERE = 2**64 - 1


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


def exists(name: str) -> bool:
    """Whether a plugin that looks the function up finds it. ctypes itself may crash where it is not."""
    find = ctypes.CDLL(None).dlsym
    find.argtypes, find.restype = [ctypes.c_void_p, ctypes.c_char_p], ctypes.c_void_p
    return find(ascend_sim.library._handle, name.encode()) is not None


def in_process(**env: str | None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Runs a test in a process of its own with these environment variables, to have a runtime of its own."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**parameters: object) -> None:
            head = f"import inspect; from {test.__module__} import {test.__name__} as test"
            run_code(f"{head}; inspect.unwrap(test)(**{parameters!r})", **env)

        return run

    return decorate


def wait_until(condition: Callable[[], bool]) -> None:
    patience = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < patience
        time.sleep(0.001)


class Caller(threading.Thread):
    """Makes one call of ``function`` on device 0, which may block, and keeps what it returns."""

    def __init__(self, function: Callable[[], int]) -> None:
        super().__init__(daemon=True)
        self.function = function
        self.code: int | None = None
        self.start()

    def run(self) -> None:
        acl("aclrtSetDevice", 0)
        self.code = self.function()

    def result(self) -> int | None:
        self.join(60)
        return self.code


class Runtime:
    def __init__(self) -> None:
        assert acl("aclrtSetDevice", 0) == 0
        self.stream, self.side = made("aclrtCreateStream"), made("aclrtCreateStream")
        self.device = made("aclrtMalloc", SIZE, 0)
        self.other = made("aclrtMalloc", SIZE, 0)
        self.pinned = made("aclrtMallocHost", SIZE)
        self.pageable = ctypes.create_string_buffer(SIZE)

    def copy(self, dst, src, kind: int, count: int = SIZE, dest_max: int | None = None) -> int:
        return acl("aclrtMemcpyAsync", dst, dest_max or count, src, count, int(kind), self.stream)

    def strided(self, dst, dpitch: int, src, spitch: int, width: int, height: int, kind: int) -> int:
        return acl("aclrtMemcpy2dAsync", dst, dpitch, src, spitch, width, height, int(kind), self.stream)

    def batch(self, dsts, srcs, kind: int, size=8, dest_max=64, start=0, reserved=0) -> tuple[int, int]:
        """Returns the code and failIndex."""
        count = len(dsts)
        numbers = ctypes.c_uint64 * count
        # aclrtMemcpyBatchAttr: {id, type} of dst, {id, type} of src, 16 reserved bytes; type 1 is a device
        attribute = (ctypes.c_uint32 * 8)(0, kind in (H2D, D2D), 0, kind in (D2H, D2D), 0, 0, 0, reserved)
        fail_index = ctypes.c_uint64(NOWHERE)
        places = numbers(*dsts), numbers(*[dest_max] * count), numbers(*srcs), numbers(*[size] * count), count
        described = attribute, ctypes.byref(ctypes.c_uint64(start)), 1, ctypes.byref(fail_index)
        return acl("aclrtMemcpyBatchAsync", *places, *described, self.stream), fail_index.value

    def fill(self, value: int = 0, device: int | None = None) -> int:
        """One task."""
        return acl("aclrtMemsetAsync", device or self.device, SIZE, value, SIZE, self.stream)

    def stop_on_failure(self) -> None:
        assert acl("aclrtSetStreamFailureMode", self.stream, STOP_ON_FAILURE) == 0

    def synchronize(self) -> int:
        return acl("aclrtSynchronizeStream", self.stream)

    def read(self, device: int, count: int = SIZE) -> bytes:
        host = ctypes.create_string_buffer(count)
        assert acl("aclrtMemcpy", host, count, device, count, int(D2H)) == 0, reason()
        return host.raw

    def write(self, device: int, content: bytes) -> None:
        assert acl("aclrtMemcpy", device, len(content), content, len(content), int(H2D)) == 0, reason()
