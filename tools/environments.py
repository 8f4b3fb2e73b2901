# SPDX-License-Identifier: Apache-2.0
"""Environments with one version of torch and torch_npu each, for matrix.py and wheels.py."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build/matrix"

VERSIONS = ("2.7.1", "2.8.0", "2.9.0", "2.10.0", "2.11.0", "2.12.0", "2.13.0", "2.14.0", "2.15.0")
# Every supported Python is tried with one of the versions.
PYTHON = {"2.7.1": "3.10", "2.10.0": "3.12", "2.11.0": "3.13"}
DEFAULT_PYTHON = "3.11"
WITHOUT_NPU = ("2.15.0",)  # no torch_npu for them
NPU_NOT_RUN = {
    "2.14.0": "built; torch_npu 2.14.0 ends the process on import beside PyTorch's CUDA build",
    "2.15.0": "there is no torch_npu 2.15",
}
# The headers of ACL in this torch_npu build the simulated runtime for all versions.
HEADERS_OF = "2.13.0"


class Environment:
    """torch of one version from PyPI, on this machine."""

    compiler = shutil.which("g++-11") or "g++"  # the oldest that is supported, where it is installed

    def __init__(self, torch: str, python: str = "") -> None:
        self.torch = torch
        self.python_version = python or PYTHON.get(torch, DEFAULT_PYTHON)
        self.folder = FOLDER / self.name
        self.python = self.folder / "env/bin/python"
        self.tree = self.folder / "tree"
        self.npu = self.folder / "npu"
        self.log = FOLDER / f"logs/{self.name}.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)

    @property
    def name(self) -> str:
        return self.torch

    def make(self) -> None:
        """Installs what is missing: torch, and torch_npu in a folder of its own."""
        if not self.python.exists():
            self.run(f"python{self.python_version}", "-m", "venv", self.folder / "env")
            tests = ("pytest>=9", "hypothesis>=6.100", "numpy", "nixl-cu12>=1.5", "pyzmq>=26", "msgspec>=0.19")
            self.pip("install", f"torch=={self.torch}", "ninja", "setuptools>=77", *tests)
            self.pip("uninstall", "--yes", "triton")  # the CPU builds have none, and with it Inductor looks for a GPU
        if self.torch not in WITHOUT_NPU and not self.npu.exists():
            # Without what it depends on: it asks for torch+cpu, which PyPI does not have.
            self.pip("install", "--no-deps", "--target", str(self.npu), f"torch_npu=={self.torch}", "pyyaml")

    def show_npu(self, shown: bool) -> None:
        """Has Python find torch_npu, or not."""
        path_file = self.folder / f"env/lib/python{self.python_version}/site-packages/torch_npu.pth"
        path_file.write_text(f"{self.npu}\n" if shown else "")

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # not there if the Python is not

    def run(self, *command: str | Path, env: dict[str, str] | None = None, check: bool = True) -> str:
        """Runs a command in the copy of the checkout. What it prints is returned, and goes into the log."""
        settings = {"CXX": self.compiler, "CFLAGS": "-Werror", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(map(str, command))}\n")
        done = subprocess.run(
            command,
            cwd=self.tree if self.tree.exists() else ROOT,
            env={**os.environ, **settings, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with self.log.open("a") as log:
            log.write(f"{done.stdout}\n")
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command[:6]))} failed: see {self.log.relative_to(ROOT)}")
        return done.stdout

    def pip(self, *args: str) -> None:
        self.run(self.python, "-m", "pip", "--quiet", *args)

    def copy_checkout(self) -> None:
        listed = self.run("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
        shutil.rmtree(self.tree, ignore_errors=True)
        for name in filter(lambda name: (ROOT / name).exists(), listed):
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self.tree / name)

    def build(self) -> None:
        self.show_npu(True)
        self.pip("install", "--no-build-isolation", "--no-deps", "--editable", ".")

    def acl_headers(self) -> Path:
        folder = FOLDER / "acl"
        if not folder.exists():
            pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:")
            self.run(*pip, "--python-version", "3.11", "--dest", FOLDER, f"torch_npu=={HEADERS_OF}")
            [wheel] = FOLDER.glob(f"torch_npu-{HEADERS_OF}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder, [name for name in archive.namelist() if "/include/acl/" in name])
            wheel.unlink()
        return folder / "torch_npu/include"

    def build_runtime(self) -> dict[str, str]:
        """Builds the simulated Ascend runtime; returns the settings with which torch_npu starts on it."""
        make = ("make", "-C", "tests/ascend_sim", f"PYTHON={self.python}", f"ACL_HEADERS={self.acl_headers()}")
        self.run(*make)
        return {"LD_LIBRARY_PATH": f"{self.tree}/tests/ascend_sim/build", "TORCH_DEVICE_BACKEND_AUTOLOAD": "1"}


class Aarch64(Environment):
    """torch of one version for aarch64: everything in Python is emulated, and the compiler is a cross compiler."""

    compiler = "aarch64-linux-gnu-g++"

    def __init__(self, torch: str, python: str = "") -> None:
        super().__init__(torch, DEFAULT_PYTHON)

    @property
    def name(self) -> str:
        return "aarch64"

    def make(self) -> None:
        self.run(ROOT / "tools/aarch64_environment.sh", self.folder, self.torch, env={"PYTHON": sys.executable})

    def remove(self) -> None:
        shutil.rmtree(self.tree)
