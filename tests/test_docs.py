# SPDX-License-Identifier: Apache-2.0
"""README.md and docs/: their code blocks run, the files that they name exist, and `make docs` can build the site.

A text block right after a code block is its expected output. The Python blocks of one page share their names. The first
line of a block that cannot run says why.
"""

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from utils import ROOT, run

import llm_datadist_torch

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
NOT_RUN = re.compile(r"# not run by the tests: \w")
FOLDERS = ("benchmarks", "csrc", "docs", "examples", "llm_datadist_torch", "tests")
FILE = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./]*|\w+\.(?:cpp|h|py))`")
TEST = re.compile(r"`((?:test_|Test)\w+)`")


def run_python(code: str, names: dict) -> str:
    output = StringIO()
    with redirect_stdout(output):
        exec(code, names)
    return output.getvalue()


def run_bash(code: str) -> str:
    return run("bash", "-euo", "pipefail", "-c", code, cwd=ROOT).stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_runs(page: Path) -> None:
    text = page.read_text()
    names: dict = {}
    fences = 0
    for language, code, printed in BLOCK.findall(text):
        fences += 4 if printed else 2
        assert language in ("bash", "python", "text"), f"unknown language of a code block: {language}"
        if language == "text" or NOT_RUN.match(code):
            continue
        output = run_python(code, names) if language == "python" else run_bash(code)
        assert not printed or output == printed
    assert fences == text.count("```")  # every block was found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_exist(page: Path) -> None:
    """Files named with their folder, and files named alone, which may be in any folder."""
    names = set(FILE.findall(page.read_text()))
    alone = {file.name for folder in FOLDERS for file in (ROOT / folder).rglob("*.*")}
    assert not {name for name in names if not (ROOT / name).exists() and name not in alone}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_exist(page: Path) -> None:
    """Tests named by their functions and classes."""
    code = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name in TEST.findall(page.read_text()) if not re.search(rf"(def|class) {name}\b", code)]


@pytest.mark.slow
def test_site(tmp_path: Path) -> None:
    """Every link and reference resolves, and every public name has an entry."""
    run("python", "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", ROOT / "docs", tmp_path)
    page = (tmp_path / "api.html").read_text()
    assert not [name for name in llm_datadist_torch.__all__ if f'id="llm_datadist_torch.{name}"' not in page]
    errors = re.sub("<.*?>", "", (tmp_path / "errors.html").read_text())
    for text in ("expected src to have the dtype of dst", "no cache has the key", "failed with code", "no kernel for"):
        assert text in errors
