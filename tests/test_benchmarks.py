# SPDX-License-Identifier: Apache-2.0
"""The benchmarks can be started, each in its environment. Their times are not tested."""

import torch
from utils import TESTS, run

FOLDER = TESTS.parent / "benchmarks"


def test_imports() -> None:
    on_npu = hasattr(torch, "npu")
    names = sorted(path.stem for path in FOLDER.glob("*.py") if (path.stem == "npu_host") == on_npu)
    assert len(names) == 1 if on_npu else len(names) > 5
    run("python", "-c", f"import importlib; print([importlib.import_module(name) for name in {names}])", cwd=FOLDER)
