# SPDX-License-Identifier: Apache-2.0
"""The tests of streams, order and directions, in the modes of torch_npu's task queue that the test run does not use."""

import os

import ascend_sim
import pytest
from fresh_process import run_code
from utils import TESTS


@pytest.mark.parametrize(("mode", "selection"), [("0", "not task_queue"), ("2", "not capture")])
def test_mode(mode: str, selection: str) -> None:
    """The test run itself uses mode 1, the default."""
    assert os.environ.get("TASK_QUEUE_ENABLE", "1") == "1"
    selection += "" if ascend_sim.available else " and not simulated"
    files = [str(TESTS / "npu" / f"test_{name}.py") for name in ("streams", "busy_streams", "order", "directions")]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", selection]
    done = run_code(f"import pytest, sys; sys.exit(pytest.main({options + files!r}))", TASK_QUEUE_ENABLE=mode)
    assert "passed" in done.stdout and "skipped" not in done.stdout
