# SPDX-License-Identifier: Apache-2.0
"""What setup.py says where it cannot build, and what the libraries need of the system that they are loaded on."""

import re
import subprocess
import venv
from pathlib import Path

import pytest
import torch
from fresh_process import run_code
from utils import ROOT, run
from versions import VERSION

from llm_datadist_torch._native import library

# glibc 2.34 and the libstdc++ of gcc 10.3: openEuler 22.03. Ubuntu 22.04 has newer ones.
# The headers of torch 2.7 need that of gcc 11, if g++ 11 or newer compiles them as C++20.
OLDEST = {
    "GLIBC": (2, 34),
    "GLIBCXX": (3, 4, 28 if VERSION >= (2, 8) else 29),
    "CXXABI": (1, 3, 12),
    "GCC": (10, 0, 0),
    "GOMP": (5, 0, 1),
}


SETUP = f"""
import os, runpy, sys
os.chdir({str(ROOT)!r})
sys.argv = ["setup.py", "{{}}"]
runpy.run_path("setup.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("macros", "found"),
    [
        ('#define __GNUC__ 9\\n#define __VERSION__ "9.4.0"\\n', r'is "9\.4\.0"'),
        ("#define __GNUC__ 4\\n#define __clang__ 1\\n", "is clang"),
        ("", r"does not run \(.*\)"),
    ],
)
def test_compiler(tmp_path: Path, macros: str, found: str) -> None:
    compiler = tmp_path / "c++"
    if macros:
        compiler.write_text(f"#!/bin/sh\nprintf '{macros}'\n")
        compiler.chmod(0o755)
    failed = run_code(SETUP.format("build_ext"), exit_code=1, CXX=str(compiler))
    assert re.search(rf"needs g\+\+ 10 or newer, and `{re.escape(str(compiler))}` {found}: set CXX\n$", failed.stderr)


def test_no_torch(tmp_path: Path) -> None:
    """Not even of another environment's: nothing is installed, and the last line says what to do."""
    venv.create(tmp_path)
    done = subprocess.run([tmp_path / "bin/python", "setup.py", "--name"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"llm_datadist_torch is built against the torch that is installed, and .*\n", done.stderr)


@pytest.mark.slow
def test_torch_that_pip_hides(tmp_path: Path) -> None:
    """As pip builds: without the packages of the environment that it installs into."""
    hide = "import site, sys; sys.path = [path for path in sys.path if path not in site.getsitepackages()]"
    (tmp_path / "sitecustomize.py").write_text(hide)
    hidden = {"PYTHONPATH": str(tmp_path), "LD_LIBRARY_PATH": None}
    assert run("python", "-c", "import torch", code=1, **hidden).stderr.endswith("No module named 'torch'\n")
    assert run("python", "setup.py", "--name", cwd=ROOT, **hidden).stdout.splitlines()[-1] == "llm_datadist_torch"


def test_torch_npu_for_another_torch(tmp_path: Path) -> None:
    for file, text in (("torch_npu/__init__.py", ""), ("torch_npu-2.6.0.dist-info/METADATA", "Version: 2.6.0.post3\n")):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(text)
    failed = run_code(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{SETUP.format('--name')}", exit_code=1)
    installed = torch.__version__.partition("+")[0]
    assert failed.stderr.endswith(f"torch_npu 2.6.0 is for another torch than {installed}, which is installed\n")


@pytest.mark.parametrize("path", [library.LIBRARY, library.NPU_LIBRARY], ids=["core", "npu"])
def test_symbol_versions(path: Path) -> None:
    if not path.exists():
        path = library.LIBRARY  # built without torch_npu
    symbols = run("objdump", "--dynamic-syms", path).stdout
    needed = set(re.findall(r"\*UND\*.*?\(?\b([A-Z]+)_(\d+(?:\.\d+)*)\)?", symbols))
    assert "GLIBC" in dict(needed)
    newer = [f"{name}_{number}" for name, number in needed if tuple(map(int, number.split("."))) > OLDEST[name]]
    assert not newer
