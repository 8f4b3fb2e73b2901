# SPDX-License-Identifier: Apache-2.0
"""The site that `make docs` builds: every link and reference resolves, and every public name has an entry."""

from pathlib import Path

import pytest
from utils import ROOT, run

import llm_datadist_torch


@pytest.mark.slow
def test_site(tmp_path: Path) -> None:
    run("python", "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", ROOT / "docs", tmp_path)
    page = (tmp_path / "api.html").read_text()
    assert not [name for name in llm_datadist_torch.__all__ if f'id="llm_datadist_torch.{name}"' not in page]
