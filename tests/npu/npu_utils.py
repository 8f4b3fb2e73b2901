# SPDX-License-Identifier: Apache-2.0
"""Helpers of the NPU tests."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ascend_sim
import pytest
import torch
from fresh_process import run_code
from torch import Tensor
from utils import assert_same_bytes, copy_cache, copy_cache_batch, filled, reference_batch, reference_copy, run, table

from llm_datadist_torch import Cache, CacheManager, LLMConfig, LLMException, LLMStatusCode

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
    starts = [i * (elements + 16) + i * i % 7 for i in range(count)]
    buffer = filled(starts[-1] + elements, device=device, seed=seed)
    buffer = buffer.pin_memory() if pinned else buffer
    tensors = [buffer[start : start + elements].view(shape) for start in starts]
    return tensors[::-1] if backward else tensors


def caches(kind: str) -> tuple[Cache, Cache]:
    """dst and src of a copy that is six commands, one strided command, or one batch of six."""
    if kind == "strided":
        return tuple(Cache.from_tensors(filled(6, 4, 8, device="npu", seed=seed), batch_dim=1) for seed in (0, 1))
    dst = scattered(6, 4, 8)
    device, pinned = ("cpu", True) if kind == "batch" else ("npu", False)
    src = scattered(6, 4, 8, device=device, seed=1, pinned=pinned, backward=True)
    return Cache.from_tensors(dst), Cache.from_tensors(src)


def check_manager_copy(dst: Cache, src: Cache) -> None:
    """Copies with a long timeout and compares with the reference."""
    expected = reference_copy(dst.tensors, src.tensors, 1, 2, batch_dim=dst.batch_dim)
    PATIENT.copy_cache(dst, src, 1, 2)
    assert_same_bytes(dst.tensors, expected)


def copy_calls() -> dict[str, int]:
    """The number of copy commands since the last reset, by name. Waits for the task queue."""
    torch.npu.synchronize()
    return {name: n for name, n in ascend_sim.call_counts().items() if name.startswith("aclrtMemcpy")}


def checked_copy(dst: list[Tensor], src: list[Tensor], *args: int, **kwargs: int) -> dict[str, int]:
    """Calls copy_cache and compares with the reference. Returns the number of copy commands by name."""
    expected = reference_copy(dst, src, *args, **kwargs)
    torch.npu.synchronize()
    ascend_sim.reset()
    copy_cache(dst, src, *args, **kwargs)
    calls = copy_calls()
    assert_same_bytes(dst, expected)
    return calls


def checked_batch(dst: list[Tensor], src: list[Tensor], copies: list, **kwargs: int) -> dict[str, int]:
    """Calls copy_cache_batch and compares with the reference. Returns the number of copy commands by name."""
    expected = reference_batch(dst, src, copies, **kwargs)
    torch.npu.synchronize()
    ascend_sim.reset()
    copy_cache_batch(dst, src, table(copies), **kwargs)
    calls = copy_calls()
    assert_same_bytes(dst, expected)
    return calls


def check_one_replay(call: Callable[[], None]) -> None:
    """The call is the replay of a graph: outside it no operator is called, and nothing is copied to it or from it."""
    torch.npu.synchronize()
    ascend_sim.reset()
    call()
    torch.npu.synchronize()
    counts = ascend_sim.call_counts()
    assert counts["aclmdlRIExecuteAsync"] == 1
    assert counts["aclmdlRICaptureBegin"] == 0
    assert not [name for name in counts if name.startswith(("aclnn", "aclrtMemcpy", "aclrtMemset"))]


def block_the_queue() -> None:
    """Blocks torch_npu's task queue while the device is stalled: its thread waits in a copy to pageable memory."""
    copy_cache([torch.empty(4, 8)], [torch.empty(4, 8, device="npu")])


@contextmanager
def stalled_device() -> Iterator[None]:
    """Stalls the device, but for at most 20 seconds: a call that wrongly waits for it would wait forever."""
    rescue = threading.Timer(20, ascend_sim.reset)
    rescue.start()
    try:
        with ascend_sim.stall_device(0):
            yield
    finally:
        rescue.cancel()


def wait_for_copies(count: int) -> None:
    """Waits until the queue has submitted that many copy commands, which may still be pending."""
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
