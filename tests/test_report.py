# SPDX-License-Identifier: Apache-2.0
"""``python -m llm_datadist_torch``: its output, and the problems that it detects."""

import shutil
from pathlib import Path

import pytest
import torch
from utils import run

import llm_datadist_torch
from llm_datadist_torch._native import library

MODULE = ("python", "-m", "llm_datadist_torch")
pytestmark = pytest.mark.slow


def test_working_installation(device: str) -> None:
    report = run(*MODULE).stdout
    for part in (
        f"llm_datadist_torch {llm_datadist_torch.__version__}, torch {torch.__version__}, torch_npu ",
        f'{library.LIBRARY}, built with {{"torch": "{library.release(torch.__version__)}"}}\n',
        "kernels of llm_datadist::copy_cache: CPU, ",
        "copy_cache on cpu: the bytes are right\n",
    ):
        assert part in report
    assert ("torch_npu has not been imported" in report) == (device == "cpu")
    assert "BROKEN" not in report


def test_arguments_are_refused() -> None:
    assert "takes no arguments, got verify" in run(*MODULE, "verify", code=2).stderr


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        ("lambda *args, **kwargs: None", "wrong bytes"),
        ("lambda *args, **kwargs: 1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_self_check_fails(kernel: str, problem: str) -> None:
    code = f"""
import runpy, torch, llm_datadist_torch
library = torch.library.Library("llm_datadist", "IMPL")
library.impl("copy_cache", {kernel}, "CPU", allow_override=True)
runpy.run_module("llm_datadist_torch", run_name="__main__")
"""
    assert f"BROKEN: copy_cache on cpu: {problem}\n" in run("python", "-c", code, code=1).stdout


def test_op_without_kernel(device: str) -> None:
    """As with libraries from an older build, or with an older one for NPUs."""
    kernel, found = ('library.impl("newer", lambda: None, "CPU")', "CPU") if device == "npu" else ("", "")
    code = f"""
import runpy, torch, llm_datadist_torch
library = torch.library.Library("llm_datadist", "FRAGMENT")
library.define("newer() -> ()")
{kernel}
runpy.run_module("llm_datadist_torch", run_name="__main__")
"""
    assert f"BROKEN: kernels of llm_datadist::newer: {found}\n" in run("python", "-c", code, code=1).stdout


def test_broken_installation(tmp_path: Path) -> None:
    """The import fails, and its error is the report. test_library.py has the other ways to fail."""
    # A copy of the package, in a folder that comes first on Python's path.
    package = Path(shutil.copytree(library.LIBRARY.parent, tmp_path / "llm_datadist_torch"))
    (package / library.LIBRARY.name).unlink()
    stderr = run(*MODULE, cwd=tmp_path, code=1).stderr
    error = stderr[stderr.rindex("ImportError: ") :]
    for part in (
        f"has no libllm_datadist.so: {package / 'libllm_datadist.so'} does not exist",
        "build it",
        f"Found: llm_datadist_torch {llm_datadist_torch.__version__}, torch {torch.__version__}",
    ):
        assert part in error
