# SPDX-License-Identifier: Apache-2.0
"""Helpers of the tests of the kernel: the kernel interpreted on the CPU."""

import importlib.util
import os
from types import ModuleType

from torch import Tensor

from llm_datadist_torch._native import kernel


def _load_interpreted() -> ModuleType:
    """A second copy of the module, which triton interprets with NumPy instead of compiling it."""
    spec = importlib.util.spec_from_file_location("interpreted_kernel", kernel.__file__)
    module = importlib.util.module_from_spec(spec)
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        spec.loader.exec_module(module)
    finally:
        del os.environ["TRITON_INTERPRET"]
    return module


_interpreted = _load_interpreted()


def run_interpreted(
    form: str, dst_base: Tensor, src_base: Tensor, shares: Tensor, bases: Tensor, pieces: Tensor
) -> None:
    """One launch. The bases are tensors whose elements have the size of those of the form."""
    tile = kernel.TILE_BYTES // kernel.FORMS[form]
    _interpreted.copy_pieces[(len(shares),)](dst_base, src_base, shares, bases, pieces, TILE=tile)
