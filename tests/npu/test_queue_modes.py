# SPDX-License-Identifier: Apache-2.0
"""The tests of streams and directions, once for each mode of torch_npu's task queue."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("mode", "selection"), [("0", "not task_queue"), ("2", "")])
def test_mode(mode: str, selection: str) -> None:
    """Mode 1, the default, is what the test run itself has; asserted, so that nobody moves it away unseen."""
    assert os.environ.get("TASK_QUEUE_ENABLE", "1") == "1"
    files = [str(Path(__file__).with_name(name)) for name in ("test_streams.py", "test_directions.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", selection, *files],
        env={**os.environ, "TASK_QUEUE_ENABLE": mode},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout
