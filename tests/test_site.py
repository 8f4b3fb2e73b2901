# SPDX-License-Identifier: Apache-2.0
"""The site that `make docs` makes: every link and name in it leads somewhere, and every public name has its entry."""

import subprocess
import sys
from pathlib import Path

import llm_datadist_torch

DOCS = Path(__file__).parent.parent / "docs"


def test_site(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", DOCS, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api.html").read_text()
    assert not [name for name in llm_datadist_torch.__all__ if f'id="llm_datadist_torch.{name}"' not in page]
