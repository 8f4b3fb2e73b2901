# SPDX-License-Identifier: Apache-2.0
"""Builds and tests the package with each supported torch and torch_npu, and prints a table. `make matrix` calls it.

    python tools/matrix.py [VERSION[:PYTHON] ...] [--keep] [--pytest OPTIONS]

For each version: an environment of its own and a copy of the checkout in build/matrix/VERSION, the build against torch
alone and the core suite, then the build with torch_npu and the NPU suite on the simulated Ascend runtime. The folder is
deleted afterwards, since an environment with PyTorch's CUDA packages takes 7 GB; --keep leaves it, and a kept one is used
again. The logs stay in build/matrix/logs.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build/matrix"

# The Python that each is tried with, so that all supported ones are; and torch_npu, where it runs on such a machine.
PYTHON = {"2.7.1": "3.10", "2.10.0": "3.12", "2.11.0": "3.13"}
DEFAULT_PYTHON = "3.11"
VERSIONS = ("2.7.1", "2.8.0", "2.9.0", "2.10.0", "2.11.0", "2.12.0", "2.13.0", "2.14.0", "2.15.0")
WITHOUT_NPU = {
    "2.14.0": "torch_npu 2.14.0 ends the process on import beside PyTorch's CUDA build",
    "2.15.0": "there is no torch_npu 2.15",
}
# torch_npu is installed without what it depends on, since it asks for another build of torch than PyPI's.
NPU_DEPENDENCIES = ("pyyaml",)
# The simulated runtime is built from the headers of ACL in this one, for all versions.
HEADERS_OF = "2.13.0"


class Version:
    def __init__(self, torch: str, python: str) -> None:
        self.torch = torch
        self.folder = FOLDER / torch
        self.python = self.folder / "env/bin/python"
        self.tree = self.folder / "tree"
        self.log = FOLDER / f"logs/{torch}.txt"
        self.base_python = f"python{python}"
        self.python_version = python

    def run(self, *command: str | Path, **env: str) -> str:
        """Runs a command in the copy of the checkout; what it prints goes into the log and is returned."""
        done = subprocess.run(
            command,
            cwd=self.tree if self.tree.exists() else ROOT,
            env={**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(map(str, command))}\n{done.stdout}\n")
        if done.returncode != 0 and "pytest" not in command:
            raise RuntimeError(f"{' '.join(map(str, command))} failed, see {self.log}")
        return done.stdout

    def pip(self, *args: str) -> None:
        self.run(self.python, "-m", "pip", "--quiet", *args)

    def make_environment(self) -> None:
        if self.python.exists():
            self.pip("uninstall", "--yes", "torch_npu")  # for the core suite
        else:
            self.run(self.base_python, "-m", "venv", self.folder / "env")
            self.pip("install", f"torch=={self.torch}", "numpy", "ninja", "setuptools>=77", "pytest>=9", "hypothesis>=6.100")

    def copy_checkout(self) -> None:
        listed = self.run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
        for name in filter(lambda name: (ROOT / name).exists(), listed):
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self.tree / name)

    def build(self) -> None:
        self.pip("install", "--no-build-isolation", "--no-deps", "--editable", ".")

    def test(self, options: list[str], **env: str) -> str:
        began = time.monotonic()
        output = self.run(self.python, "-m", "pytest", "-m", "not slow", *options, **env)
        seconds = round(time.monotonic() - began)
        last = output.strip().splitlines()[-1]
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped|xfailed)", last)}
        if not counts:
            return f"no result: {last}"
        failed = counts.get("failed", 0) + counts.get("error", 0)
        return f"{counts.get('passed', 0)} passed, {failed} failed, {seconds // 60}:{seconds % 60:02}"


def acl_headers(version: Version) -> Path:
    """The headers of ACL, out of a wheel of torch_npu."""
    folder = FOLDER / "acl"
    if not folder.exists():
        pip = (version.python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", FOLDER)
        version.run(*pip, "--python-version", "3.11", "--only-binary", ":all:", f"torch_npu=={HEADERS_OF}")
        [wheel] = FOLDER.glob(f"torch_npu-{HEADERS_OF}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            headers = [name for name in archive.namelist() if name.startswith("torch_npu/include/acl/")]
            archive.extractall(folder, headers)
        wheel.unlink()
    return folder / "torch_npu/include"


def suites(version: Version, options: list[str]) -> tuple[str, str]:
    """The results of both suites. What one of them lacks is told in its place."""
    core = npu = "-"
    try:
        version.make_environment()
        version.copy_checkout()
        version.build()
        core = version.test(options)
        if version.torch in WITHOUT_NPU:
            return core, f"not run: {WITHOUT_NPU[version.torch]}"
        version.pip("install", "--no-deps", f"torch_npu=={version.torch}")
        version.pip("install", *NPU_DEPENDENCIES)
        version.build()
        headers = acl_headers(version)
        version.run("make", "-C", "tests/ascend_sim", f"PYTHON={version.python}", f"ACL_HEADERS={headers}")
        simulated = {"LD_LIBRARY_PATH": f"{version.tree}/tests/ascend_sim/build", "TORCH_DEVICE_BACKEND_AUTOLOAD": "1"}
        npu = version.test(options, **simulated)
    except RuntimeError as error:
        return core, npu if npu != "-" else str(error)
    return core, npu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION[:PYTHON]")
    parser.add_argument("--keep", action="store_true", help="leave the environments")
    parser.add_argument("--pytest", default="", help="options for pytest")
    arguments = parser.parse_args()
    (FOLDER / "logs").mkdir(parents=True, exist_ok=True)
    print("| torch, torch_npu | Python | core suite | NPU suite |\n| --- | --- | --- | --- |", flush=True)
    good = True
    for name in arguments.versions or VERSIONS:
        torch, _, python = name.partition(":")
        version = Version(torch, python or PYTHON.get(torch, DEFAULT_PYTHON))
        version.log.unlink(missing_ok=True)
        core, npu = suites(version, arguments.pytest.split())
        good = good and all(" 0 failed" in result or result.startswith("not run: ") for result in (core, npu))
        print(f"| {torch} | {version.python_version} | {core} | {npu} |", flush=True)
        if not arguments.keep:
            shutil.rmtree(version.folder)
    sys.exit(not good)


if __name__ == "__main__":
    main()
