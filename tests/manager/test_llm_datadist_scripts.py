# SPDX-License-Identifier: Apache-2.0
"""Scripts written for LLM-DataDist run with nothing changed but the package that they import."""

import re
from pathlib import Path

import pytest
from utils import run

SCRIPTS = sorted((Path(__file__).parent / "llm_datadist_scripts").glob("*.py"))
RUN = """
import contextlib, importlib.util, runpy, sys
slow_device = contextlib.nullcontext()
if importlib.util.find_spec("torch_npu"):
    import ascend_sim, torch
    slow_device = ascend_sim.delay_tasks(5)  # milliseconds: a copy of many megabytes takes time on the simulated NPU too
with slow_device:
    print("on", runpy.run_path(sys.argv[1], run_name="__main__")["DEVICE"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_only_the_import_changes(script: Path, device: str, tmp_path: Path) -> None:
    code, imports = re.subn(r"^from llm_datadist\b", "from llm_datadist_torch", script.read_text(), flags=re.MULTILINE)
    assert imports > 0
    ported = tmp_path / script.name
    ported.write_text(code)
    done = run("python", "-c", RUN, ported)
    assert done.stdout.splitlines()[-2:] == ["done", f"on {'npu:0' if device == 'npu' else 'cpu'}"]


def test_there_are_scripts() -> None:
    assert [script.stem for script in SCRIPTS] == ["paged_blocks", "prefill_to_batch", "retry_by_status"]
