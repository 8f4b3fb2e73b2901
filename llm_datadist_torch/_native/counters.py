# SPDX-License-Identifier: Apache-2.0
"""The number of commands that the NPU kernels of this process have issued."""

import ctypes
import functools
from typing import NamedTuple

from .library import NPU_LIBRARY


class Commands(NamedTuple):
    """Commands that the runtime accepted, by function.

    Attributes:
        plain: aclrtMemcpyAsync.
        strided: aclrtMemcpy2dAsync.
        batch: aclrtMemcpyBatchAsync.
    """

    plain: int = 0
    strided: int = 0
    batch: int = 0

    def __sub__(self, earlier: "Commands") -> "Commands":
        return Commands(*(late - early for late, early in zip(self, earlier, strict=True)))


def issued() -> Commands:
    """The commands so far. Those of an op are complete after a synchronization, which empties torch_npu's task queue."""
    counts = (ctypes.c_uint64 * 3)()
    _library().llm_datadist_npu_commands(counts)
    return Commands(*counts)


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(NPU_LIBRARY))
