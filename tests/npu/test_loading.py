# SPDX-License-Identifier: Apache-2.0
"""The build and the import with parts of torch_npu or of the runtime missing."""

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from utils import ROOT, TESTS, run

from llm_datadist_torch._native import library


def test_built_against_another_torch_npu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorded = json.loads(library.built_with(library.NPU_LIBRARY).read_text())
    found = {name: library.release(version(name)) for name in ("torch", "torch_npu")}
    assert recorded == found
    old = tmp_path / "libold.so"
    old.write_text("not a library")
    library.built_with(old).write_text(json.dumps(recorded | {"torch_npu": "2.6.0"}))
    monkeypatch.setattr(library, "NPU_LIBRARY", old)
    installed = rf"torch_npu {re.escape(version('torch_npu'))} is installed"
    with pytest.raises(ImportError, match=rf"built against torch_npu 2\.6\.0, and {installed}"):
        library.load()


def test_built_without_torch_npu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "NPU_LIBRARY", TESTS / "libnone.so")
    with pytest.raises(ImportError, match=r"has no libnone\.so: .* It was built without torch_npu"):
        library.load()


def test_npu_tensors_without_the_npu_library() -> None:
    """torch_npu imported after the package: the error says that a kernel is missing."""
    code = """
import os; os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
import torch, llm_datadist_torch, torch_npu
t = torch.empty(2, 2, device="npu")
try: llm_datadist_torch.copy_cache([t], [t], 0, 1)
except NotImplementedError as error: print(str(error).splitlines()[0])
"""
    error = run("python", "-c", code).stdout
    assert error.startswith("copy_cache: no kernel for PrivateUse1 and PrivateUse1 tensors on npu:0 and npu:0"), error


def test_builds_without_a_runtime() -> None:
    """setup.py finds torch_npu without importing it."""
    done = run("python", "setup.py", "--name", cwd=ROOT, LD_LIBRARY_PATH=None)
    assert done.stdout.strip().endswith("llm_datadist_torch"), done.stderr


def test_library_holds_no_paths_of_the_build_machine() -> None:
    content = library.NPU_LIBRARY.read_bytes()
    assert re.search(rb"\bcsrc/npu/\w+\.cpp\b", content)
    assert f"{ROOT}/".encode() not in content and f"{sys.prefix}/".encode() not in content
