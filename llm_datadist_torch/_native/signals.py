# SPDX-License-Identifier: Apache-2.0
"""Exceptions of signal handlers, such as that of Ctrl-C, that end a wait of the NPU kernels."""

import ctypes
import functools
import os

import torch

from .library import NPU_LIBRARY


def raise_pending() -> None:
    """Raises the exception of the signal handler that ended a wait of this thread, if there is one."""
    if os.path.realpath(NPU_LIBRARY) in torch.ops.loaded_libraries:
        _library().llm_datadist_npu_raise()


@functools.cache
def _library() -> ctypes.PyDLL:
    return ctypes.PyDLL(str(NPU_LIBRARY))  # PyDLL holds the GIL, and raises what the function raises
