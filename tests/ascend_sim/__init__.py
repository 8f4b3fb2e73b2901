# SPDX-License-Identifier: Apache-2.0
"""The tests' handle on the simulated Ascend runtime: look at what reached it, and make it slow or make it fail.

Everything here acts on the ``libascendcl.so`` that the process has loaded (or will load) through its library path.
"""

import atexit
import ctypes
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import IntEnum
from typing import NamedTuple


class _NoHandle:
    """Stands in for the handle where there is none: tests that need it are collected, and fail if they are run."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError(
            f"{name} needs the simulated runtime: put tests/ascend_sim/build first in LD_LIBRARY_PATH before the process "
            "starts, or deselect the tests with the marker simulated"
        )


def _load() -> ctypes.CDLL | _NoHandle:
    """The runtime of the process, if it is the simulated one. ASCEND_SIM_HIDDEN=1 pretends that it is not."""
    library = ctypes.CDLL("libascendcl.so")
    if not hasattr(library, "ascend_sim_reset") or os.environ.get("ASCEND_SIM_HIDDEN") == "1":
        return _NoHandle()
    library.ascend_sim_call_counts.restype = ctypes.c_char_p
    library.ascend_sim_copy_log.restype = ctypes.c_char_p
    library.ascend_sim_armed_faults.restype = library.ascend_sim_pinned_allocations.restype = ctypes.c_uint64
    library.ascend_sim_fail_call.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int]
    library.ascend_sim_fail_task.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int]
    library.ascend_sim_stall_stream.argtypes = [ctypes.c_void_p, ctypes.c_bool]
    library.ascend_sim_stall_device.argtypes = [ctypes.c_int, ctypes.c_bool]
    return library


library = _load()
"""The runtime itself, for tests that call ACL functions directly."""

available = not isinstance(library, _NoHandle)
"""Whether the process runs on the simulated runtime."""


class MemcpyKind(IntEnum):
    HOST_TO_HOST = 0
    HOST_TO_DEVICE = 1
    DEVICE_TO_HOST = 2
    DEVICE_TO_DEVICE = 3


class Copy(NamedTuple):
    """One copy the runtime accepted. A plain copy is one row of ``width`` bytes; a batch is one Copy for each part."""

    name: str
    kind: MemcpyKind
    dst: int
    dpitch: int
    src: int
    spitch: int
    width: int
    height: int
    stream: int
    device: int


def call_counts() -> Counter[str]:
    """How often each ACL runtime function was called since the last reset, by name; 0 for the others."""
    lines = library.ascend_sim_call_counts().decode().splitlines()
    return Counter({name: int(count) for name, count in map(str.split, lines)})


def copies() -> list[Copy]:
    """The copies submitted since the last reset, oldest first. Replays of a graph add none."""
    fields = [line.split() for line in library.ascend_sim_copy_log().decode().splitlines()]
    return [Copy(name, MemcpyKind(int(kind)), *map(int, rest)) for name, kind, *rest in fields]


def fail_call(name: str, code: int, nth: int = 1) -> None:
    """Makes the n-th call of ``name`` from now return ``code`` and do nothing else."""
    library.ascend_sim_fail_call(name.encode(), nth, code)


def fail_task(name: str, code: int, nth: int = 1) -> None:
    """Makes the task of the n-th call of ``name`` from now fail with ``code``; the call itself returns 0.

    The next synchronise of the stream or the device returns the code. A copy of pageable memory is never a task of its
    own, so there the call returns it.
    """
    library.ascend_sim_fail_task(name.encode(), nth, code)


def armed_faults() -> int:
    """How many faults have not struck yet. Tests assert that it is 0: a fault that never struck tested nothing."""
    return library.ascend_sim_armed_faults()


def stall_stream(stream: int) -> AbstractContextManager[None]:
    """Keeps the tasks of one stream from starting; ``stream`` is the handle, ``torch.npu.Stream.npu_stream``."""
    return _set("ascend_sim_stall_stream", stream, on=True, off=False)


def stall_device(device: int = 0) -> AbstractContextManager[None]:
    """Keeps the tasks of all streams of a device from starting, those of streams made later too."""
    return _set("ascend_sim_stall_device", device, on=True, off=False)


def delay_tasks(milliseconds: int) -> AbstractContextManager[None]:
    """Makes each task of each stream wait that long before it starts."""
    return _set("ascend_sim_delay_tasks", on=milliseconds, off=0)


def jitter_tasks(microseconds: int) -> AbstractContextManager[None]:
    """Makes each task of each stream wait for a random time, at most that long, before it starts."""
    return _set("ascend_sim_jitter_tasks", on=microseconds, off=0)


def pinned_allocations() -> int:
    """How many pieces of host memory are allocated or registered as pinned. torch's caching allocator keeps blocks."""
    return library.ascend_sim_pinned_allocations()


def reset() -> None:
    """Clears the counts, the log and the faults, and ends every stall and delay."""
    library.ascend_sim_reset()


@contextmanager
def _set(name: str, *args: int, on: int, off: int) -> Iterator[None]:
    # torch_npu synchronises its devices at exit, which a stall left behind would block for ever. Exit handlers run
    # last-registered first, so registering anew keeps this one ahead of torch_npu's.
    atexit.unregister(reset)
    atexit.register(reset)
    function = getattr(library, name)
    function(*args, on)
    try:
        yield
    finally:
        function(*args, off)
