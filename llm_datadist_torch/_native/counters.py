# SPDX-License-Identifier: Apache-2.0
"""How often the NPU kernels of this process have called the runtime to copy."""

import ctypes
from typing import NamedTuple

from .library import npu_functions


class RuntimeCalls(NamedTuple):
    """Calls that the runtime accepted, by function.

    Attributes:
        plain: Calls of aclrtMemcpyAsync.
        strided: Calls of aclrtMemcpy2dAsync.
        batch: Calls of aclrtMemcpyBatchAsync.
        launches: Launches of the kernel.
    """

    plain: int = 0
    strided: int = 0
    batch: int = 0
    launches: int = 0

    def __sub__(self, earlier: "RuntimeCalls") -> "RuntimeCalls":
        return RuntimeCalls(*(late - early for late, early in zip(self, earlier, strict=True)))


def runtime_calls() -> RuntimeCalls:
    """The calls so far. Synchronize first: torch_npu's task queue makes the calls of an op after the op has returned."""
    counts = (ctypes.c_uint64 * 4)()
    npu_functions().llm_datadist_npu_calls(counts)
    return RuntimeCalls(*counts)
