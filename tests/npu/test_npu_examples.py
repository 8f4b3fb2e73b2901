# SPDX-License-Identifier: Apache-2.0
"""The examples on the NPU, unchanged.

Run by hand for one mode of torch_npu's task queue, and by test_queue_modes.py for all of them.
"""

import contextlib
import re
import runpy
import sys

import ascend_sim
import pytest
import torch
from utils import ROOT

pytestmark = pytest.mark.simulated

SIZES = ["--requests=3", "--prefix=48", "--suffix=5", "--decode=4", "--repeats=1"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    def run(name: str, *args: str) -> str:
        script = str(ROOT / "examples" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [script, *args])
        torch._dynamo.reset()
        ascend_sim.reset()
        with contextlib.suppress(SystemExit):  # after its last line; what it checks raises
            runpy.run_path(script, run_name="__main__")
        assert ascend_sim.call_counts()["aclrtMemcpyAsync"] + ascend_sim.call_counts()["aclrtMemcpy2dAsync"] > 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    "args",
    [["--eager"], ["--backend=aot_eager"], pytest.param(["--backend=npugraph_ex"], marks=pytest.mark.capture)],
)
def test_prefix_sharing(run: object, args: list[str]) -> None:
    out = run("prefix_sharing", *SIZES, *args)
    assert "3 requests on npu" in out
    [found] = re.findall(r"OK: logits equal \(max abs diff (\S+)\)", out)
    assert 0 <= float(found) <= 1e-5
    assert ("(compiled)" in out) == (args != ["--eager"])


def test_beam_search(run: object) -> None:
    assert "the same as with transformers' cache" in run("beam_search")


def test_paged_blocks(run: object) -> None:
    assert run("paged_blocks").count("as they were") == 4
