# SPDX-License-Identifier: Apache-2.0
"""What setup.py says where it cannot build, and what the libraries need of the system that they are loaded on."""

import re
import subprocess
import venv
from pathlib import Path

import pytest
import torch
from utils import ROOT, run

from llm_datadist_torch._native import library

# glibc 2.34 and the libstdc++ of gcc 10.3: openEuler 22.03. Ubuntu 22.04 has newer ones.
OLDEST = {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 28), "CXXABI": (1, 3, 12), "GCC": (10, 0, 0), "GOMP": (5, 0, 1)}


def fake_compiler(folder: Path, macros: str) -> str:
    compiler = folder / "c++"
    compiler.write_text(f"#!/bin/sh\nprintf '{macros}'\n")
    compiler.chmod(0o755)
    return str(compiler)


@pytest.mark.parametrize(
    ("macros", "found"),
    [
        ('#define __GNUC__ 9\\n#define __VERSION__ "9.4.0"\\n', '"9.4.0"'),
        ("#define __GNUC__ 4\\n#define __clang__ 1\\n", "clang"),
    ],
)
def test_compiler(tmp_path: Path, macros: str, found: str) -> None:
    compiler = fake_compiler(tmp_path, macros)
    failed = run("python", "setup.py", "build_ext", code=1, cwd=ROOT, CXX=compiler, LD_LIBRARY_PATH=None)
    assert failed.stderr.endswith(f"needs g++ 10 or newer, and `{compiler}` is {found}: set CXX\n")


def test_no_compiler() -> None:
    failed = run("python", "setup.py", "build_ext", code=1, cwd=ROOT, CXX="/none/c++", LD_LIBRARY_PATH=None)
    assert "needs g++ 10 or newer, and `/none/c++` does not run" in failed.stderr


def test_no_torch(tmp_path: Path) -> None:
    """Not even of another environment's: nothing is installed, and the last line says what to do."""
    venv.create(tmp_path)
    done = subprocess.run([tmp_path / "bin/python", "setup.py", "--name"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"llm_datadist_torch is built against the torch that is installed, and .*\n", done.stderr)


def test_torch_that_pip_hides(tmp_path: Path) -> None:
    """As pip builds: without the packages of the environment that it installs into."""
    hide = "import site, sys; sys.path = [path for path in sys.path if path not in site.getsitepackages()]"
    (tmp_path / "sitecustomize.py").write_text(hide)
    hidden = {"PYTHONPATH": str(tmp_path), "LD_LIBRARY_PATH": None}
    assert run("python", "-c", "import torch", code=1, **hidden).stderr.endswith("No module named 'torch'\n")
    assert run("python", "setup.py", "--name", cwd=ROOT, **hidden).stdout.splitlines()[-1] == "llm_datadist_torch"


def test_torch_npu_for_another_torch(tmp_path: Path) -> None:
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu/__init__.py").touch()
    (tmp_path / "torch_npu-2.6.0.dist-info").mkdir()
    (tmp_path / "torch_npu-2.6.0.dist-info/METADATA").write_text("Name: torch_npu\nVersion: 2.6.0.post3\n")
    failed = run("python", "setup.py", "--name", code=1, cwd=ROOT, PYTHONPATH=str(tmp_path), LD_LIBRARY_PATH=None)
    installed = torch.__version__.partition("+")[0]
    assert failed.stderr.endswith(f"torch_npu 2.6.0 is for another torch than {installed}, which is installed\n")


@pytest.mark.parametrize("library", [library.LIBRARY, library.NPU_LIBRARY], ids=["core", "npu"])
def test_symbol_versions(library: Path) -> None:
    if not library.exists():
        library = library.LIBRARY  # built without torch_npu
    symbols = run("objdump", "--dynamic-syms", str(library)).stdout
    needed = set(re.findall(r"\*UND\*.*?\(?\b([A-Z]+)_(\d+(?:\.\d+)*)\)?", symbols))
    assert "GLIBC" in dict(needed)
    newer = [f"{name}_{number}" for name, number in needed if tuple(map(int, number.split("."))) > OLDEST[name]]
    assert not newer
