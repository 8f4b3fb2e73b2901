# SPDX-License-Identifier: Apache-2.0
"""Scripts written for LLM-DataDist run with nothing changed but the package that they import."""

import contextlib
import io
from pathlib import Path

import pytest
import torch
from utils import ported

from llm_datadist_torch import CacheManager

FOLDER = Path(__file__).parent / "llm_datadist_scripts"


@pytest.mark.parametrize("script", ["paged_blocks", "prefill_to_batch", "retry_by_status"])
def test_only_the_import_changes(script: str, device: str) -> None:
    slow_device = contextlib.nullcontext()
    if device == "npu":
        import ascend_sim

        torch.npu.synchronize()
        slow_device = ascend_sim.delay_tasks(5)  # milliseconds: a copy of many megabytes takes time there too
    names, output = {"__name__": "__main__"}, io.StringIO()
    with slow_device, contextlib.redirect_stdout(output):
        exec(ported(FOLDER / f"{script}.py"), names)
    assert output.getvalue() == "done\n"
    assert names["DEVICE"] == {"npu": "npu:0", "cpu": "cpu"}[device]


def test_scripts_make_every_local_call() -> None:
    code = "".join(script.read_text() for script in FOLDER.glob("*.py"))
    calls = [name for name in vars(CacheManager) if name[0] != "_" and callable(getattr(CacheManager, name))]
    assert not [name for name in calls if f"manager.{name}(" not in code]
