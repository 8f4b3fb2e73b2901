# SPDX-License-Identifier: Apache-2.0
"""The source distribution, the wheel that is built from it, and that wheel when installed."""

import json
import re
import shutil
import sys
import tarfile
import tempfile
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import torch
from utils import ROOT, TESTS, run

import llm_datadist_torch

VERSION = llm_datadist_torch.__version__
TORCH = llm_datadist_torch._native.library.release(torch.__version__)
pytestmark = pytest.mark.slow


def sources(*folders: str) -> list[str]:
    """The source files of the checkout, by their paths in it."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", *folders, cwd=ROOT).stdout
    return [name for name in listed.splitlines() if (ROOT / name).exists()]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files of a fresh clone. In the checkout, setuptools would add files of earlier builds."""
    clone = tmp_path_factory.mktemp("clone")
    for name in sources():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    run("python", "-c", "from setuptools import build_meta; build_meta.build_sdist('dist')", cwd=clone)
    [archive] = (clone / "dist").iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = ("python", "-m", "pip", "wheel", "--quiet", "--no-index", "--no-build-isolation", "--no-deps")
    run(*pip, "--wheel-dir", folder, sdist, cwd=folder)
    [archive] = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel and, as a second torch takes minutes, the torch of this one.

    A path in a .pth file adds its packages, but not the editable installation of this checkout.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin/python"
    run("python", "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel, cwd=folder)
    [site] = (folder / "lib").glob("python*/site-packages")
    (site / "torch_of_the_tests.pth").write_text(str(Path(torch.__file__).parent.parent))
    return python


def test_sdist_contents(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    top = {"setup.py", "pyproject.toml", "LICENSE", "README.md"}
    assert {*sources("csrc", "llm_datadist_torch", "docs", "examples"), *top} <= files
    assert {link for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())} <= files
    assert not [name for name in files if name.startswith("tests") or name.endswith((".so", ".built_with.json"))]


def test_wheel_contents(wheel: Path, tmp_path: Path) -> None:
    assert re.fullmatch(rf"llm_datadist_torch-{VERSION}-cp310-abi3-linux_\w+\.whl", wheel.name)
    info = f"llm_datadist_torch-{VERSION}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        recorded = archive.read("llm_datadist_torch/libllm_datadist.built_with.json")
        metadata = message_from_string(archive.read(f"{info}/METADATA").decode())
        contents = {name: archive.read(name) for name in files}
        library = archive.extract("llm_datadist_torch/libllm_datadist.so", tmp_path)
    assert files == {
        *sources("llm_datadist_torch"),
        "llm_datadist_torch/libllm_datadist.so",
        "llm_datadist_torch/libllm_datadist.built_with.json",
        *(f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE", "top_level.txt")),
    }
    assert json.loads(recorded) == {"torch": TORCH}
    assert metadata["Version"] == VERSION and metadata["License-Expression"] == "Apache-2.0"
    assert [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r] == [f"torch=={TORCH}"]
    # No paths of the build, of its environment or of this checkout, and nothing that torch does not bring.
    folders = (tempfile.gettempdir(), sys.prefix, ROOT, Path.home())
    assert not [(f, name) for f in folders for name, content in contents.items() if f"{f}/".encode() in content]
    dynamic = run("readelf", "--dynamic", library).stdout
    assert "libtorch_cpu.so" in dynamic
    assert not re.search(r"RPATH|RUNPATH|libpython|libtorch_python|libgomp", dynamic)


SMOKE = """
import sys, numpy, torch
before = {name.partition(".")[0] for name in sys.modules}
import llm_datadist_torch
print(llm_datadist_torch.__file__)
dst, src = torch.zeros(2, 4, 8), torch.rand(2, 4, 8)
torch.ops.llm_datadist.copy_cache([dst], [src], 3, 1, 4, 8, batch_dim=1)
expected = torch.zeros(2, 4, 8)
expected[:, 3, 1:3] = src[:, 1, 1:3]
print(torch.equal(dst, expected), llm_datadist_torch.__version__)
print({name.partition(".")[0] for name in sys.modules} - before - sys.stdlib_module_names)
"""


def test_installed(installed: Path, tmp_path: Path) -> None:
    where, outcome, imported = run(installed, "-c", SMOKE, cwd=tmp_path, PYTHONPATH=None).stdout.splitlines()
    assert Path(where).is_relative_to(installed.parent.parent)
    assert outcome == f"True {VERSION}"
    assert imported == "{'llm_datadist_torch'}"  # only this, beside torch and its own imports
    report = run(installed, "-m", "llm_datadist_torch", cwd=tmp_path, PYTHONPATH=None).stdout
    assert report.startswith(f"llm_datadist_torch {VERSION}, torch {torch.__version__}, ")
    assert f"\n{installed.parent.parent}/lib/" in report


def test_types_for_users(installed: Path, tmp_path: Path) -> None:
    """py.typed is installed, and mypy finds exactly the errors of the sample: an unused ignore is an error."""
    sample = shutil.copy(TESTS / "typing_sample.py", tmp_path)
    mypy = ("python", "-m", "mypy", "--strict", "--python-executable", installed)
    assert "Success" in run(*mypy, "--cache-dir", ROOT / ".mypy_cache", sample, cwd=tmp_path).stdout
