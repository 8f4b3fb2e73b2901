# SPDX-License-Identifier: Apache-2.0
"""Helpers of the NPU tests."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import ascend_sim
import pytest
import torch
from fresh_process import run_code
from torch import Tensor
from utils import assert_same_bytes, copy_cache, copy_cache_batch, filled, reference_batch, reference_copy, run, table
from versions import SETS_SEED

from llm_datadist_torch import Cache, CacheManager, LLMConfig, LLMException, LLMStatusCode
from llm_datadist_torch._native.counters import runtime_calls

CODE = 507018
"""An error code of the runtime, to inject."""

PATIENT = CacheManager(LLMConfig(sync_kv_timeout=60_000))

needs_two_npus = pytest.mark.skipif(torch.npu.device_count() < 2, reason="this machine has one NPU")


def scattered(
    count: int, *shape: int, device: str = "npu", seed: int = 0, pinned: bool = False, backward: bool = False
) -> list[Tensor]:
    """Views of one buffer with gaps of different sizes.

    Copies between two forward lists make one strided copy for each pair of neighbours. Copies between a forward and a
    backward list make none.
    """
    elements = torch.Size(shape).numel()
    starts = [i * (elements + 80) + 16 * (i * i % 7) for i in range(count)]
    buffer = filled(starts[-1] + elements, device=device, seed=seed)
    buffer = buffer.pin_memory() if pinned else buffer
    tensors = [buffer[start : start + elements].view(shape) for start in starts]
    return tensors[::-1] if backward else tensors


def caches(kind: str) -> tuple[Cache, Cache]:
    """dst and src of a copy that is six plain calls, one strided call, or one batch of six."""
    if kind == "strided":
        dst, src = filled(6, 4, 8, device="npu"), filled(6, 4, 8, seed=1).pin_memory()
        return Cache.from_tensors(dst, batch_dim=1), Cache.from_tensors(src, batch_dim=1)
    dst = scattered(6, 4, 8)
    device, pinned = ("cpu", True) if kind == "batch" else ("npu", False)
    src = scattered(6, 4, 8, device=device, seed=1, pinned=pinned, backward=True)
    return Cache.from_tensors(dst), Cache.from_tensors(src)


def check_manager_copy(dst: Cache, src: Cache) -> None:
    """Copies with a long timeout and compares with the reference."""
    expected = reference_copy(dst.tensors, src.tensors, 1, 2, batch_dim=dst.batch_dim)
    PATIENT.copy_cache(dst, src, 1, 2)
    assert_same_bytes(dst.tensors, expected)


CANN = tuple(map(int, os.environ.get("ASCEND_SIM_CANN", "8.5").split(".")))
"""The version that the simulated runtime has."""


class Made(NamedTuple):
    """What copies cost.

    Attributes:
        plain: Calls of aclrtMemcpyAsync.
        strided: Calls of aclrtMemcpy2dAsync.
        batch: Calls of aclrtMemcpyBatchAsync.
        launches: Launches of the kernel.
        tasks: Tasks of the copies.
    """

    plain: int = 0
    strided: int = 0
    batch: int = 0
    launches: int = 0
    tasks: int = 0


def within(strided: int = 0, rows: int = 0, plain: int = 0) -> Made:
    """Of copies within the device: a task for each row. Before CANN 9.0, strided ones are plain calls."""
    tasks = rows + plain
    return Made(plain, strided, tasks=tasks) if CANN >= (9, 0) else Made(tasks, tasks=tasks)


def strided(calls: int) -> Made:
    """Of strided copies between host and device."""
    return Made(strided=calls, tasks=calls)


def batched(*copies: int) -> Made:
    """Of batches of so many copies. Only a 950 with UB has one task for each. Before CANN 8.3 there are plain calls."""
    if CANN < (8, 3):
        return Made(plain=sum(copies), tasks=sum(copies))
    return Made(batch=len(copies), tasks=len(copies) if os.environ.get("ASCEND_SIM_LINK") == "ub" else sum(copies))


def made(call: Callable[[], None]) -> Made:
    """What a call cost. Waits for the task queue."""
    torch.npu.synchronize()
    ascend_sim.reset()
    before = runtime_calls()
    call()
    torch.npu.synchronize()
    return Made(*runtime_calls() - before, ascend_sim.work().tasks)


def checked_copy(dst: list[Tensor], src: list[Tensor], *args: int, **kwargs: int) -> Made:
    """Calls copy_cache and compares with the reference. Returns what it cost."""
    expected = reference_copy(dst, src, *args, **kwargs)
    cost = made(lambda: copy_cache(dst, src, *args, **kwargs))
    assert_same_bytes(dst, expected)
    return cost


def checked_batch(dst: list[Tensor], src: list[Tensor], copies: list, **kwargs: int) -> Made:
    """Calls copy_cache_batch and compares with the reference. Returns what it cost."""
    expected = reference_batch(dst, src, copies, **kwargs)
    cost = made(lambda: copy_cache_batch(dst, src, table(copies), **kwargs))
    assert_same_bytes(dst, expected)
    return cost


def check_one_replay(call: Callable[[], None]) -> None:
    """The call is the replay of a graph: outside it no operator is called, and nothing is copied to it or from it."""
    torch.npu.synchronize()
    ascend_sim.reset()
    call()
    torch.npu.synchronize()
    counts = ascend_sim.call_counts()
    assert counts["aclmdlRIExecuteAsync"] == 1
    assert counts["aclmdlRICaptureBegin"] == 0
    others = {name for name in counts if name.startswith(("aclnn", "aclrtMemcpy", "aclrtMemset"))}
    assert others <= SETS_SEED


STREAM_DEPTH = 2013
"""The tasks that a stream takes. Then the runtime keeps the thread that submits another one."""


@contextmanager
def blocked_queue() -> Iterator[None]:
    """Blocks torch_npu's task queue until the block ends: its thread submits more tasks to a stream than that takes."""
    rows = STREAM_DEPTH + 100
    full, dst, src = torch.npu.Stream(), *(torch.empty(rows, 1, dtype=torch.uint8, device="npu") for _ in range(2))
    turned = table([(row, rows - 1 - row, 0, -1) for row in range(rows)])
    torch.npu.synchronize()
    with rescued(ascend_sim.stall_stream(full.npu_stream)):
        with torch.npu.stream(full):
            copy_cache_batch([dst], [src], turned)
        patience = time.monotonic() + 30
        while not ascend_sim.blocked_submitters():
            assert time.monotonic() < patience
            time.sleep(0.001)
        yield
    torch.npu.synchronize()


@contextmanager
def rescued(stall: AbstractContextManager[None]) -> Iterator[None]:
    """Ends a stall after 20 seconds: a call that wrongly waits for the device would wait forever."""
    rescue = threading.Timer(20, ascend_sim.reset)
    rescue.start()
    try:
        with stall:
            yield
    finally:
        rescue.cancel()


def stalled_device() -> AbstractContextManager[None]:
    return rescued(ascend_sim.stall_device(0))


def wait_for_copies(count: int) -> None:
    """Waits until the runtime has accepted that many copies, which may still be pending."""
    patience = time.monotonic() + 30
    while len(ascend_sim.copies()) < count:
        assert time.monotonic() < patience
        time.sleep(0.001)


def seconds_to_timeout(manager: CacheManager, dst: Cache, src: Cache) -> float:
    """Makes a copy that must time out. Returns how long that took."""
    started = time.monotonic()
    with pytest.raises(LLMException, match=r"ms; what the destination range holds is undefined \(req_id 77\)") as late:
        manager.copy_cache(dst, src, 1, 2, req_id=77)
    assert late.value.status_code is LLMStatusCode.LLM_TIMEOUT
    return time.monotonic() - started


IMPORTS = "import torch, ascend_sim, llm_datadist_torch\n"


def run_forked(program: str, code: int = 0, **env: str | None) -> subprocess.CompletedProcess[str]:
    """Runs a Python program in a process that has not used the runtime yet. It ends without torch_npu's exit handlers."""
    return run_code(IMPORTS + program, code, **env)


def run_python(program: str, **env: str | None) -> subprocess.CompletedProcess[str]:
    """Runs a Python program that depends on how a process starts or ends. That takes seconds."""
    return run("python", "-c", IMPORTS + program, **env)
