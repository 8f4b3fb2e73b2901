# SPDX-License-Identifier: Apache-2.0
"""Scripts written for LLM-DataDist run with nothing changed but the package that they import."""

import contextlib
import io
from pathlib import Path

import pytest
from utils import ported

from llm_datadist_torch import CacheManager

FOLDER = Path(__file__).parent / "llm_datadist_scripts"


@pytest.mark.parametrize("script", ["paged_blocks", "prefill_to_batch"])
def test_only_the_import_changes(script: str, device: str) -> None:
    names, output = {"__name__": "__main__"}, io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(ported(FOLDER / f"{script}.py"), names)
    assert output.getvalue() == "done\n"
    assert names["DEVICE"] == {"npu": "npu:0", "cpu": "cpu"}[device]


def test_scripts_make_every_local_call() -> None:
    code = "".join(script.read_text() for script in FOLDER.glob("*.py"))
    calls = [name for name in vars(CacheManager) if name[0] != "_" and callable(getattr(CacheManager, name))]
    assert not [name for name in calls if f"manager.{name}(" not in code]
