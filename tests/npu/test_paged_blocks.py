# SPDX-License-Identifier: Apache-2.0
"""The example of paged caches on the NPU. The examples with a model need operators that the simulated runtime lacks."""

import sys

import pytest
from utils import load_example


def test_the_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["paged_blocks.py", "--device=npu"])
    load_example("paged_blocks").main()
    assert capsys.readouterr().out.count("as they were") == 4
