# SPDX-License-Identifier: Apache-2.0
<<<<<<< HEAD
"""The tests of streams and directions, in the modes of torch_npu's task queue that the test run does not use."""
=======
"""The tests of streams, directions and models, once for each mode of torch_npu's task queue."""
>>>>>>> 907094f (A Llama decoder on the simulated NPU: the examples, eager, captured and compiled, and thousands of steps in order)

import os

import pytest
from utils import TESTS, run


@pytest.mark.parametrize(("mode", "selection"), [("0", "not task_queue"), ("2", "not capture")])
def test_mode(mode: str, selection: str) -> None:
    """The test run itself uses mode 1, the default."""
    assert os.environ.get("TASK_QUEUE_ENABLE", "1") == "1"
<<<<<<< HEAD
    pytest_ = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", selection)
    done = run(*pytest_, "test_streams.py", "test_directions.py", cwd=TESTS / "npu", TASK_QUEUE_ENABLE=mode)
=======
    names = ("streams", "directions", "decoder", "npu_examples")
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", selection, *files],
        env={**os.environ, "TASK_QUEUE_ENABLE": mode},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:]
>>>>>>> 907094f (A Llama decoder on the simulated NPU: the examples, eager, captured and compiled, and thousands of steps in order)
    assert "skipped" not in done.stdout
