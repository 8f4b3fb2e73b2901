# SPDX-License-Identifier: Apache-2.0
"""The tests' handle on the simulated Ascend runtime: look at what reached it, and make it slow or make it fail.

Everything here acts on the ``libascendcl.so`` that the process has loaded (or will load) through its library path.
"""

import atexit
import ctypes
import os
from collections import Counter
from collections.abc import Callable, Iterator
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
    library.ascend_sim_work.restype = library.ascend_sim_log.restype = ctypes.c_char_p
    library.ascend_sim_armed_faults.restype = ctypes.c_uint64
    library.ascend_sim_arm_fault.argtypes = [ctypes.c_bool, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int]
    library.ascend_sim_stall_stream.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    library.ascend_sim_stall_device.argtypes = [ctypes.c_int, ctypes.c_uint64]
    return library


library = _load()
"""The runtime itself, for tests that call ACL functions directly."""

available = not isinstance(library, _NoHandle)
"""Whether the process runs on the simulated runtime."""


PROFILES: dict[str, dict[str, str]] = {
    **{f"CANN {cann}": {"ASCEND_SIM_CANN": cann} for cann in ("8.1", "8.3", "8.5", "9.0")},
    "950 with UB": {"ASCEND_SIM_CANN": "9.1", "ASCEND_SIM_SOC": "Ascend950PR_9589", "ASCEND_SIM_LINK": "ub"},
}
"""Environments of processes whose runtimes differ in what a plugin can see, for tests that are to pass on all."""


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


class Launch(NamedTuple):
    """One launch of a kernel that the runtime accepted, with the arguments as the caller passed them."""

    kernel: str
    function: int
    """The handle, which tells kernels of the same name apart."""
    blocks: int
    arguments: bytes
    place_holders: list[tuple[int, int]]
    """Where the address of data goes in the arguments, and where the data is."""


class Work(NamedTuple):
    """What calls cost: the calls themselves, the tasks they put on streams, and the attributes of pointers they asked."""

    calls: int
    tasks: int
    queries: int


def _work() -> dict[str, Work]:
    lines = library.ascend_sim_work().decode().splitlines()
    return {name: Work(*map(int, numbers)) for name, *numbers in map(str.split, lines)}


def work(prefix: str = "aclrtMemcpy") -> Work:
    """The work since the last reset of all functions whose names begin with ``prefix``; without it, of all copies.

    The tasks of a captured stream count when they are recorded. A replay is one task.
    """
    found = [work for name, work in _work().items() if name.startswith(prefix)]
    return Work(*map(sum, zip(*found, strict=True))) if found else Work(0, 0, 0)


def call_counts() -> Counter[str]:
    """How often each ACL runtime function was called since the last reset, by name; 0 for the others."""
    return Counter({name: work.calls for name, work in _work().items()})


def _logged(what: str) -> list[list[str]]:
    lines = map(str.split, library.ascend_sim_log().decode().splitlines())
    return [fields for kind, *fields in lines if kind == what]


def copies() -> list[Copy]:
    """The copies submitted since the last reset, oldest first. Replays of a graph add none."""
    return [Copy(name, MemcpyKind(int(kind)), *map(int, rest)) for name, kind, *rest in _logged("copy")]


def launches() -> list[Launch]:
    """The launches of kernels since the last reset, oldest first. Replays of a graph add none."""
    found = []
    for kernel, function, blocks, arguments, *offsets in _logged("launch"):
        numbers = list(map(int, offsets))
        pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
        found.append(Launch(kernel, int(function), int(blocks), bytes.fromhex(arguments), pairs))
    return found


def fail_call(name: str, code: int, nth: int = 1) -> None:
    """Makes the n-th call of ``name`` from now return ``code`` and do nothing else."""
    library.ascend_sim_arm_fault(False, name.encode(), nth, code)


def fail_task(name: str, code: int, nth: int = 1) -> None:
    """Makes the n-th task that calls of ``name`` submit from now on fail with ``code``; the call itself returns 0.

    Where streams stop on a failure, as torch_npu asks for, that ends all work on the device, and every later submit and
    synchronise returns the code, until ``reset()``. Otherwise the next synchronise of the stream or the device returns
    it. A copy of pageable memory that is done in its call has no task, so there the call returns it.
    """
    library.ascend_sim_arm_fault(True, name.encode(), nth, code)


def armed_faults() -> int:
    """How many faults have not struck yet. Tests assert that it is 0: a fault that never struck tested nothing."""
    return library.ascend_sim_armed_faults()


_NEVER = 2**64 - 1


def stall_stream(stream: int, after: int = 0) -> AbstractContextManager[None]:
    """Keeps the tasks of one stream from starting, once ``after`` more have started.

    ``stream`` is the handle, ``torch.npu.Stream.npu_stream``.
    """
    return _while(library.ascend_sim_stall_stream, (stream, after), (stream, _NEVER))


def stall_device(device: int = 0, after: int = 0) -> AbstractContextManager[None]:
    """The same for all streams of a device together, those made later too."""
    return _while(library.ascend_sim_stall_device, (device, after), (device, _NEVER))


def delay_tasks(milliseconds: int) -> AbstractContextManager[None]:
    """Makes each task of each stream wait that long before it starts."""
    return _while(library.ascend_sim_slow_tasks, (1000 * milliseconds, 0), (0, 0))


def jitter_tasks(microseconds: int) -> AbstractContextManager[None]:
    """Makes each task of each stream wait for a random time, at most that long, before it starts."""
    return _while(library.ascend_sim_slow_tasks, (0, microseconds), (0, 0))


def unbounded_synchronize() -> AbstractContextManager[None]:
    """Makes a synchronise that finds a failed task wait for the running tasks of all streams, whatever its timeout."""
    return _while(library.ascend_sim_unbounded_synchronize, (True,), (False,))


def blocked_submitters() -> int:
    """How many threads wait in a call, because a stream is full or all events are in use."""
    return library.ascend_sim_blocked_submitters()


def reset() -> None:
    """Clears the counts, the log and the faults, ends every stall and delay, and revives lost contexts.

    On a real machine nothing revives a context.
    """
    library.ascend_sim_reset()


@contextmanager
def _while(call: Callable[..., None], begin: tuple[int, ...], end: tuple[int, ...]) -> Iterator[None]:
    # torch_npu synchronises its devices at exit, which a stall left behind would block for ever. Exit handlers run
    # last-registered first, so registering anew keeps this one ahead of torch_npu's.
    atexit.unregister(reset)
    atexit.register(reset)
    call(*begin)
    try:
        yield
    finally:
        call(*end)
