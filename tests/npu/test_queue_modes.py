# SPDX-License-Identifier: Apache-2.0
"""The tests of streams and directions, once for each mode of torch_npu's task queue."""

import os

import pytest
from utils import TESTS, run


@pytest.mark.parametrize(("mode", "selection"), [("0", "not task_queue"), ("2", "")])
def test_mode(mode: str, selection: str) -> None:
    """Mode 1, the default, is what the test run itself has; asserted, so that nobody moves it away unseen."""
    assert os.environ.get("TASK_QUEUE_ENABLE", "1") == "1"
    pytest_ = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", selection)
    done = run(*pytest_, "test_streams.py", "test_directions.py", cwd=TESTS / "npu", TASK_QUEUE_ENABLE=mode)
    assert "skipped" not in done.stdout
