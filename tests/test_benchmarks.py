# SPDX-License-Identifier: Apache-2.0
"""The benchmarks can be started. Their times are not tested."""

import torch
from utils import TESTS, run

FOLDER = TESTS.parent / "benchmarks"


def test_imports() -> None:
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    if not hasattr(torch, "npu"):
        names.remove("npu_host")  # times torch_npu
    assert len(names) > 5
    run("python", "-c", f"import importlib; print([importlib.import_module(name) for name in {names}])", cwd=FOLDER)
