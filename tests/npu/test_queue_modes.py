# SPDX-License-Identifier: Apache-2.0
"""The tests of streams, order and directions, in the modes of torch_npu's task queue that the test run does not use."""

import os

import ascend_sim
import pytest
from utils import TESTS, run


@pytest.mark.parametrize(("mode", "selection"), [("0", "not task_queue"), ("2", "not capture")])
def test_mode(mode: str, selection: str) -> None:
    """The test run itself uses mode 1, the default."""
    assert os.environ.get("TASK_QUEUE_ENABLE", "1") == "1"
    selection += "" if ascend_sim.available else " and not simulated"
    files = [f"test_{name}.py" for name in ("streams", "busy_streams", "order", "directions")]
    pytest_ = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", selection)
    done = run(*pytest_, *files, cwd=TESTS / "npu", TASK_QUEUE_ENABLE=mode)
    assert "skipped" not in done.stdout
