# SPDX-License-Identifier: Apache-2.0
"""The simulated runtime under the real torch_npu: delays, missing operators, the end of the process.

tests/npu and manager/ show the rest: they fail if tensors, streams, events, stalls or faults do not work.
"""

from itertools import pairwise

import pytest
import torch
import torch_npu  # noqa: F401  registers torch.npu
from fresh_process import run_code
from utils import run

import ascend_sim


def test_delays_and_jitter() -> None:
    """A test that slows tasks down shows nothing if they are as fast as ever."""
    events = [torch.npu.Event(enable_timing=True) for _ in range(20)]

    def pauses() -> list[float]:
        for event in events:
            event.record()
        events[-1].synchronize()
        return sorted(one.elapsed_time(other) for one, other in pairwise(events))

    with ascend_sim.delay_tasks(milliseconds=10):
        assert pauses()[0] > 9.9
    with ascend_sim.jitter_tasks(microseconds=20_000):
        shortest, *_, longest = pauses()
        assert shortest < 10 < longest
    assert pauses()[9] < 5  # on a busy machine, some are longer


@pytest.mark.parametrize("task_queue", ["0", "1"])
def test_an_operator_that_is_not_there_fails_loudly(task_queue: str) -> None:
    """In a process of its own: torch_npu drops everything after an error in its task queue.

    A wait that sees the queue empty before torch_npu has noted the error returns without one. A later wait raises it.
    """
    code = "torch.ones(3).npu().atan()\nfor _ in range(1000): torch.npu.synchronize()"
    stderr = run_code(f"import torch\n{code}", 1, TASK_QUEUE_ENABLE=task_queue).stderr
    assert "ascend_sim: the compute operator Atan is not simulated" in stderr
    assert "RuntimeError" in stderr


def test_a_process_ends_though_its_device_is_stalled() -> None:
    code = "import torch, ascend_sim; x, y = torch.ones(2, 4).npu(); stall = ascend_sim.stall_device()"
    assert run("python", "-c", f"{code}; stall.__enter__(); x.copy_(y); print('end')").stdout == "end\n"
