# SPDX-License-Identifier: Apache-2.0
"""The C++ unit tests of csrc/plan: bases, spans, order and staging of a call."""

import sys

import pytest
from utils import TESTS, run


@pytest.mark.slow  # compiles csrc/plan
def test_plan() -> None:
    run("make", "--silent", "--jobs=2", f"PYTHON={sys.executable}", "plan", cwd=TESTS / "cpp")
