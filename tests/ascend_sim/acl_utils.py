# SPDX-License-Identifier: Apache-2.0
"""Helpers of the tests that call the simulated runtime directly."""

import ctypes

import ascend_sim

H2H, H2D, D2H, D2D = ascend_sim.MemcpyKind
SIZE = 1024


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
