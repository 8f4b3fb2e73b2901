# SPDX-License-Identifier: Apache-2.0
"""Helpers of the tests of the kernel: the kernel interpreted on the CPU; the compilers, with a stand-in for the last one."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import ascendnpuir
import pytest
import triton.language as tl
from torch import Tensor
from triton.backends.ascend.driver import NPUUtils

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
    """One launch of copy_pieces. The bases are tensors whose elements have the size of those of the form."""
    tile = kernel.TILE_BYTES // kernel.FORMS[form]
    launch("copy_pieces", len(shares), dst_base, src_base, shares, bases, pieces, TILE=tile)


def launch(function: str, programs: int, *arguments: Tensor | int, TILE: int) -> None:
    # The interpreter replaces functions of the language for good, and then nothing can be compiled.
    owners = {owner: dict(vars(owner)) for owner in (tl, tl.core, tl.math, tl.dtype, tl.tensor)}
    try:
        getattr(_interpreted, function)[(programs,)](*arguments, TILE=TILE)
    finally:
        for owner, names in owners.items():
            for name in vars(owner).keys() - names.keys():
                delattr(owner, name)
            for name, value in names.items():
                if vars(owner)[name] is not value:
                    setattr(owner, name, value)


_HIVMC = """#!/bin/sh
for word; do
  case $word in --version) exit ;; *.mlir) module=$word ;; esac
  [ "$previous" = -o ] && output=$word
  previous=$word
done
{makes}
"""


def provide_compilers(monkeypatch: pytest.MonkeyPatch, folder: Path, chip: str, makes: str) -> None:
    """Puts the compilers for a chip on the PATH, and a shell script in place of hivmc, which only CANN has.

    Args:
        monkeypatch: Undoes it.
        folder: An empty folder.
        chip: What triton takes the NPU for.
        makes: A line of shell that makes "$output.o" of "$module".
    """
    for name in ("hivmc", "hivmc-a5"):
        (folder / name).write_text(_HIVMC.format(makes=makes))
        (folder / name).chmod(0o755)
    compiler = Path(ascendnpuir.__file__).parent / f"bin/bishengir-compile{'-a5' if '950' in chip else ''}"
    (folder / "bishengir-compile").symlink_to(compiler)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("TRITON_CACHE_DIR", f"{folder}/cache")
    # Otherwise triton builds a library against CANN, to ask for the chip.
    monkeypatch.setattr(NPUUtils, "__init__", lambda self: None)
    monkeypatch.setattr(NPUUtils, "get_arch", lambda self: chip)
