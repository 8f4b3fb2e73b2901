# SPDX-License-Identifier: Apache-2.0
"""Faults in copies of many commands: each runtime call fails once at each position. Also timeouts, exit and fork."""

from __future__ import annotations

import re
from collections.abc import Callable

import ascend_sim
import pytest
import torch
from npu_utils import CODE, PATIENT, run_python, scattered
from torch import Tensor
from utils import assert_same_bytes, cache, copy_cache_batch, filled, reference_batch, to_host

from llm_datadist_torch import Cache, CacheManager, LLMConfig, LLMException, LLMStatusCode

# A cycle of three rows, of which one is staged, and another copy.
CYCLE = {0: [1], 1: [2], 2: [0, 3]}
COPIES = [(to, of, 0, -1) for of, targets in CYCLE.items() for to in targets]
OURS = ("aclrtMemcpy", "aclrtRecordEvent", "aclrtStreamWaitEvent", "aclrtSynchronizeStreamWithTimeout")


def blocks(tensors: list[Tensor]) -> Cache:
    return Cache.from_tensors(tensors, is_blocks_cache=True)


def stacked() -> tuple[Cache, Cache]:
    held = Cache.from_tensors(filled(3, 4, 8, device="npu"), batch_dim=1, is_blocks_cache=True)
    return held, held


def separate() -> tuple[Cache, Cache]:
    held = blocks(scattered(5, 4, 8))
    return held, held


def from_pinned() -> tuple[Cache, Cache]:
    return blocks(scattered(5, 4, 8)), blocks(scattered(5, 4, 8, device="cpu", seed=1, pinned=True, backward=True))


def from_pageable() -> tuple[Cache, Cache]:
    return blocks(scattered(5, 4, 8)), blocks(cache(5, 4, 8, seed=1))


def to_pageable() -> tuple[Cache, Cache]:
    return blocks(cache(5, 4, 8)), blocks(scattered(5, 4, 8, seed=1))


def copy(dst: Cache, src: Cache) -> None:
    if dst is src:
        PATIENT.copy_blocks(dst, CYCLE)
    else:
        PATIENT.swap_blocks(src, dst, {0: 1, 1: 2, 2: 0})


def expected(dst: Cache, src: Cache) -> list[Tensor]:
    copies = COPIES if dst is src else COPIES[:3]
    return reference_batch(dst.tensors, src.tensors, copies, batch_dim=dst.batch_dim)


@pytest.mark.simulated
@pytest.mark.parametrize("make", [stacked, separate, from_pinned, from_pageable, to_pageable])
def test_every_call_at_every_position(make: Callable[[], tuple[Cache, Cache]]) -> None:
    """Each error names the runtime call, and the next copy is correct."""
    dst, src = make()
    copy(dst, src)  # creates the side stream
    torch.npu.synchronize()
    ascend_sim.reset()
    copy(dst, src)
    counted = {name: count for name, count in ascend_sim.call_counts().items() if name.startswith(OURS)}
    assert len(counted) >= 4, counted
    for name, count in counted.items():
        for nth in range(1, count + 1):
            torch.npu.synchronize()
            ascend_sim.reset()
            ascend_sim.fail_call(name, CODE, nth)
            with pytest.raises(LLMException, match=f"{name} .*failed with code {CODE}") as failure:
                copy(dst, src)
            assert failure.value.status_code is LLMStatusCode.LLM_FAILED
            assert isinstance(failure.value.__cause__, RuntimeError)
            assert ascend_sim.armed_faults() == 0
            wanted = expected(dst, src)
            copy(dst, src)
            assert_same_bytes(dst.tensors, wanted)


@pytest.mark.simulated
@pytest.mark.parametrize("make", [stacked, separate, from_pageable])
def test_timeout_on_a_stalled_device(make: Callable[[], tuple[Cache, Cache]]) -> None:
    dst, src = make()
    copy(dst, src)
    hasty = CacheManager(LLMConfig(sync_kv_timeout=30))
    call, args = (hasty.copy_blocks, (dst, CYCLE)) if dst is src else (hasty.swap_blocks, (src, dst, {0: 1}))
    with ascend_sim.stall_device(), pytest.raises(LLMException, match="not done after sync_kv_timeout, 30 ms") as late:
        call(*args)
    assert late.value.status_code is LLMStatusCode.LLM_TIMEOUT
    torch.npu.synchronize()
    wanted = expected(dst, src)
    copy(dst, src)
    assert_same_bytes(dst.tensors, wanted)


@pytest.mark.simulated
def test_arguments_may_be_changed_or_freed_after_the_call() -> None:
    """The copies tensor and pageable memory are overwritten; pinned and device memory are freed and reused."""
    dst = scattered(5, 4, 8)
    pageable, device = cache(5, 4, 8, seed=1), scattered(5, 4, 8, seed=2)
    pinned = [tensor.pin_memory() for tensor in cache(5, 4, 8, seed=3)]
    steps = [(pageable, (0, 1)), (device, (1, 2)), (pinned, (2, 3))]
    wanted = [to_host(tensor) for tensor in dst]
    for sources, (to, of) in steps:
        wanted = reference_batch(wanted, sources, [(to, of, 0, -1)])
    torch.npu.synchronize()
    with ascend_sim.stall_device():
        for sources, (to, of) in steps:
            copies = torch.tensor([(to, of, 0, -1)])
            copy_cache_batch(dst, sources, copies)
            copies.fill_(-9)
        for tensor in pageable:
            tensor.fill_(7)
        del pinned, device, sources, steps
        others = [torch.empty(4, 8, pin_memory=True).fill_(7) for _ in range(5)]
        others += [filled(4, 8, seed=9).pin_memory().npu(non_blocking=True) for _ in range(5)]
    torch.npu.synchronize()
    assert_same_bytes(dst, wanted)


@pytest.mark.simulated
@pytest.mark.parametrize("mode", ["0", "1", "2"])
def test_an_error_of_the_op_itself(mode: str) -> None:
    done = run_python(
        f"""
from utils import *
held = filled(3, 4, 8, device="npu")
torch.npu.synchronize()
ascend_sim.fail_call("aclrtMemcpy2dAsync", {CODE}, 2)
try:
    copy_cache_batch([held], [held], torch.tensor([(0, 1, 0, -1), (1, 0, 0, -1)]), 77, batch_dim=1)
    for _ in range(1000):  # a wait can return before torch_npu has noted the error
        torch.npu.synchronize()
    print("no error")
except RuntimeError as error:
    print("RuntimeError", "copy_cache_batch" in str(error))
""",
        TASK_QUEUE_ENABLE=mode,
    )
    assert done.stdout == "RuntimeError True\n", done.stderr
    text = rf"copy_cache_batch: aclrtMemcpy2dAsync .* failed with code {CODE} \(req_id 77\)"
    assert mode == "0" or re.search(text, done.stderr), done.stderr


def test_exit_with_batches_in_flight() -> None:
    done = run_python("""
from utils import *
held, host = filled(3, 64, 8, device="npu"), filled(3, 64, 8)
turned = torch.stack([torch.arange(64), torch.arange(64).roll(1), torch.zeros(64).long(), torch.full((64,), -1)], 1)
for _ in range(200):
    copy_cache_batch([held], [held], turned, batch_dim=1)
    copy_cache_batch([held], [host], turned, batch_dim=1)
print("OK")
""")
    assert done.stdout == "OK\n", done.stderr


@pytest.mark.assumption("torch_npu's task queue runs nothing in a forked child")
def test_fork_after_use() -> None:
    """torch_npu's task queue has no thread in a child, so queued work never runs there: the manager reports a timeout.
    (torch_npu's own synchronize would wait forever.) Copies on the CPU work."""
    done = run_python("""
import os
from utils import *
held = filled(3, 4, 8, device="npu")
copy_cache([held], [held], 0, 1, batch_dim=1)
on_host = torch.zeros(2, 2**22, dtype=torch.uint8)
copy_cache([on_host], [on_host], 0, 1)
torch.npu.synchronize()
child = os.fork()
if child == 0:
    a, b = filled(4, 8), filled(4, 8, seed=1)
    expected = reference_copy([a], [b], 1, 2)
    copy_cache([a], [b], 1, 2)
    assert_same_bytes([a], expected)
    held = llm_datadist_torch.Cache.from_tensors(held, batch_dim=1)
    manager = llm_datadist_torch.CacheManager(llm_datadist_torch.LLMConfig(sync_kv_timeout=100))
    try:
        manager.copy_cache(held, held, 2, 3)
    except RuntimeError as error:
        os.write(1, f"{error}\\n".encode())
        os._exit(3)
    os._exit(4)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    text, code = done.stdout.splitlines()
    assert "not done after sync_kv_timeout, 100 ms" in text
    assert code == "3"
