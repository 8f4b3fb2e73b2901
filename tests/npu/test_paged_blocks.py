# SPDX-License-Identifier: Apache-2.0
"""The example that needs no compute runs on the simulated runtime."""

import runpy
import sys
from pathlib import Path

import ascend_sim
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "paged_blocks.py"


def test_paged_blocks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE)])
    ascend_sim.reset()
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out.count("as they were") == 4
    assert ascend_sim.copies()  # on the NPU, without being told
