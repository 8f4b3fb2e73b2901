# SPDX-License-Identifier: Apache-2.0
"""The tests of streams and directions, in the modes of torch_npu's task queue that the test run does not use."""

import os

import pytest
from utils import TESTS, run


@pytest.mark.parametrize(("mode", "selection"), [("0", "not task_queue"), ("2", "")])
def test_mode(mode: str, selection: str) -> None:
    """The test run itself uses mode 1, the default."""
    assert os.environ.get("TASK_QUEUE_ENABLE", "1") == "1"
    pytest_ = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", selection)
    done = run(*pytest_, "test_streams.py", "test_directions.py", cwd=TESTS / "npu", TASK_QUEUE_ENABLE=mode)
    assert "skipped" not in done.stdout
