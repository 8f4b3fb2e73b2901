# SPDX-License-Identifier: Apache-2.0
"""The simulated runtime under the real torch_npu: tensors, streams, events, graphs, errors, end of the process."""

import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch_npu  # noqa: F401  registers torch.npu
from fresh_process import run_code
from versions import OUT_OF_MEMORY

import ascend_sim
from ascend_sim import MemcpyKind

PREAMBLE = "import torch, torch_npu, ascend_sim; x = torch.arange(64); y = x.npu(); z = torch.empty_like(y)\n"


@pytest.fixture
def numbers() -> torch.Tensor:
    return torch.randint(-(2**62), 2**62, (1000,))


def start_python(code: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + code],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_pageable_tensors_there_and_back(numbers):
    assert torch.equal(numbers.npu().cpu(), numbers)
    kinds = [(copy.name, copy.kind, copy.width * copy.height) for copy in ascend_sim.copies()]
    assert kinds == [("aclrtMemcpy", MemcpyKind.HOST_TO_DEVICE, 8000), ("aclrtMemcpy", MemcpyKind.DEVICE_TO_HOST, 8000)]


def test_pinned_tensors_there_and_back(numbers):
    pinned = numbers.pin_memory()
    device = torch.empty_like(pinned, device="npu")
    back = torch.empty_like(pinned, pin_memory=True)
    before = ascend_sim.pinned_memory()
    with ascend_sim.stall_device():
        device.copy_(pinned, non_blocking=True)
        back.copy_(device, non_blocking=True)
        while ascend_sim.call_counts()["aclrtMemcpyAsync"] < 2:
            time.sleep(0.001)
        assert not torch.npu.current_stream().query()
        assert not torch.equal(back, numbers)
    torch.npu.synchronize()
    assert torch.equal(back, numbers)
    assert ascend_sim.call_counts()["aclrtMemcpyAsync"] == 2
    assert ascend_sim.pinned_memory() == before


def test_two_devices(numbers):
    first = numbers.npu()
    second = first.to("npu:1")
    assert second.device == torch.device("npu:1")
    assert torch.equal(second.cpu(), numbers)
    assert ascend_sim.device_memory(1).allocations >= 1
    (copy,) = [copy for copy in ascend_sim.copies() if copy.kind == MemcpyKind.DEVICE_TO_DEVICE]
    assert (copy.src, copy.dst) == (first.data_ptr(), second.data_ptr())


def test_memory_from_the_allocator_is_poisoned_and_returned():
    torch.npu.empty_cache()
    before = ascend_sim.device_memory()
    tensor = torch.empty(64 << 20, dtype=torch.uint8, device="npu")
    assert ascend_sim.device_memory().bytes >= before.bytes + tensor.numel()
    assert tensor[-16:].cpu().tolist() == [0xA5] * 16
    del tensor
    torch.npu.empty_cache()
    assert ascend_sim.device_memory().bytes <= before.bytes


def test_a_stalled_stream_holds_its_own_work_and_what_waits_for_it(numbers):
    source = numbers.npu()
    on_side = torch.empty_like(source)
    after_wait = torch.empty_like(source)
    side, main = torch.npu.Stream(), torch.npu.current_stream()
    torch.npu.synchronize()
    with ascend_sim.stall_stream(side.npu_stream):
        with torch.npu.stream(side):
            on_side.copy_(source)
            event = side.record_event()
        main.synchronize()
        main.wait_event(event)
        after_wait.copy_(on_side)
        later = main.record_event()
        assert not event.query()
        assert not later.query()
    later.synchronize()
    assert event.query()
    assert torch.equal(after_wait.cpu(), numbers)


def test_delays_and_elapsed_time(numbers):
    tensor = numbers.npu()
    start, end = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
    with ascend_sim.delay_tasks(milliseconds=20):
        start.record()
        tensor.clone()
        end.record()
        end.synchronize()
    assert start.elapsed_time(end) >= 40


def test_jitter_is_random_and_ends(numbers):
    tensor = numbers.npu()
    events = [torch.npu.Event(enable_timing=True) for _ in range(20)]
    with ascend_sim.jitter_tasks(microseconds=20_000):
        for event in events:
            event.record()
        events[-1].synchronize()
    pauses = [one.elapsed_time(other) for one, other in pairwise(events)]
    assert min(pauses) < 10 < max(pauses)
    started = time.monotonic()
    for _ in range(100):  # they would take a second
        tensor.clone()
    torch.npu.synchronize()
    assert time.monotonic() - started < 0.7


def test_a_failed_task_is_raised_by_the_next_synchronise_and_the_device_goes_on(numbers):
    source = numbers.npu()
    result = torch.empty_like(source)
    ascend_sim.fail_task("aclnnInplaceCopy", code=507899)
    result.copy_(source)
    event = torch.npu.current_stream().record_event()
    event.synchronize()  # an event tells nothing of errors
    with pytest.raises(RuntimeError, match="507899"):
        torch.npu.synchronize()
    result.copy_(source)
    torch.npu.synchronize()
    assert torch.equal(result.cpu(), numbers)
    assert ascend_sim.armed_faults() == 0


def test_an_allocation_that_fails_is_out_of_memory():
    ascend_sim.fail_call("aclrtMallocAlign32", code=207001, nth=1)
    ascend_sim.fail_call("aclrtMallocAlign32", code=207001, nth=2)  # torch frees its cache and tries again
    with pytest.raises(OUT_OF_MEMORY, match="out of memory"):
        torch.empty(1 << 30, dtype=torch.uint8, device="npu")
    assert ascend_sim.armed_faults() == 0


@pytest.mark.parametrize("task_queue", ["0", "1"])
def test_an_operator_that_is_not_there_fails_loudly(task_queue: str) -> None:
    """In a process of its own: torch_npu drops everything after an error in its task queue.

    A wait that sees the queue empty before torch_npu has noted the error returns without one. A later wait raises it.
    """
    code = "torch.ones(3).npu().atan()\nfor _ in range(1000): torch.npu.synchronize()"
    stderr = run_code(f"import torch\n{code}", 1, TASK_QUEUE_ENABLE=task_queue).stderr
    assert "ascend_sim: the compute operator Atan is not simulated" in stderr
    assert "RuntimeError" in stderr


def test_processes_end_cleanly_side_by_side():
    """Two at once: one with a stream still stalled, one with thousands of copies still queued."""
    stalled = start_python("stall = ascend_sim.stall_device(); stall.__enter__(); z.copy_(y); print('end')")
    busy = start_python("for _ in range(3000): z.copy_(y)\nprint('end')")
    for process in (stalled, busy):
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout.splitlines()[-1]) == (0, "end"), stderr
