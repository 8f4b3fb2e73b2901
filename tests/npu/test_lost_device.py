# SPDX-License-Identifier: Apache-2.0
"""A task that fails on the device: torch_npu makes the runtime end all work of the process there, for good.

ascend_sim.reset() alone revives the device, which the quiet_runtime fixture calls after each test.
"""

import time

import ascend_sim
import pytest
import torch
from npu_utils import CODE, PATIENT, caches, check_manager_copy, needs_two_npus, run_forked, run_python, stalled_device
from utils import assert_same_bytes, cache, filled, reference_copy

from llm_datadist_torch import Cache, CacheManager, LLMConfig, LLMException, LLMStatusCode

pytestmark = pytest.mark.simulated

NAMES = {"plain": "aclrtMemcpyAsync", "strided": "aclrtMemcpy2dAsync", "batch": "aclrtMemcpyBatchAsync"}
LOST = rf"failed with code {CODE} \(req_id 77\): ascend_sim: the context of device 0 is lost .*; npu:0 is lost to this process"


def check_lost(dst: Cache, src: Cache) -> None:
    """The manager says that the device is lost, with the runtime's code and text."""
    with pytest.raises(LLMException, match=LOST) as failure:
        PATIENT.copy_cache(dst, src, 1, 2, req_id=77)
    assert failure.value.status_code is LLMStatusCode.LLM_FAILED
    assert isinstance(failure.value.__cause__, RuntimeError)


@pytest.mark.parametrize("kind", NAMES)
def test_a_copy_fails(kind: str) -> None:
    """The call that submits it succeeds, and events report nothing. Later calls say at once what has happened."""
    dst, src = caches(kind)
    check_manager_copy(dst, src)
    ascend_sim.fail_task(NAMES[kind], CODE)
    for _ in range(3):
        check_lost(dst, src)


def test_a_copy_fails_halfway() -> None:
    """Of six tasks, the fourth."""
    dst, src = caches("plain")
    check_manager_copy(dst, src)
    before, wanted = [tensor.cpu() for tensor in dst.tensors], reference_copy(dst.tensors, src.tensors, 1, 2)
    wanted = reference_copy(dst.tensors, src.tensors, 3, 0)
    ascend_sim.fail_task("aclrtMemcpyAsync", CODE, 4)
    with pytest.raises(LLMException, match="is lost"):
        PATIENT.copy_cache(dst, src, 3, 0)
    ascend_sim.reset()
    assert_same_bytes(dst.tensors, wanted[:3] + before[3:])


def test_other_work_fails() -> None:
    dst, src = caches("plain")
    check_manager_copy(dst, src)
    a, b = (filled(4, 8, device="npu", seed=seed) for seed in (5, 6))
    torch.npu.synchronize()
    ascend_sim.fail_task("aclnnInplaceCopy", CODE)
    a.copy_(b)
    check_lost(dst, src)


def test_a_late_copy_fails() -> None:
    dst, src = caches("plain")
    check_manager_copy(dst, src)
    with stalled_device():
        ascend_sim.fail_task("aclrtMemcpyAsync", CODE)
        with pytest.raises(LLMException, match="sync_kv_timeout"):
            CacheManager(LLMConfig(sync_kv_timeout=30)).copy_cache(dst, src, 1, 2)
    check_lost(dst, src)


def test_the_synchronise_of_the_runtime_does_not_return() -> None:
    """After a failure it may wait for all streams, one of which is stalled. The copy behind the failed task must not."""
    dst, src = caches("plain")
    check_manager_copy(dst, src)
    busy, other = torch.npu.Stream(), filled(4, 8, device="npu")
    torch.npu.synchronize()
    with ascend_sim.unbounded_synchronize(), ascend_sim.stall_stream(busy.npu_stream):
        with torch.npu.stream(busy):
            other.copy_(filled(4, 8, device="npu"), non_blocking=True)
        ascend_sim.fail_task("aclrtMemcpyAsync", CODE)
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(LLMException, match="npu:0 is lost to this process"):
                CacheManager(LLMConfig(sync_kv_timeout=20_000)).copy_cache(dst, src, 1, 2)
            assert time.monotonic() - started < 10


@needs_two_npus
def test_the_other_device_goes_on() -> None:
    dst, src = caches("plain")
    check_manager_copy(dst, src)
    ascend_sim.fail_task("aclrtMemcpyAsync", CODE)
    check_lost(dst, src)
    with torch.npu.device(1):
        held = [Cache.from_tensors(cache(2, 4, 8, device="npu:1", seed=seed)) for seed in (0, 1)]
        PATIENT.copy_cache(*held, 1, 2)


def test_the_op_fails_as_those_of_torch_npu() -> None:
    """A synchronize raises the runtime's error. Without the task queue, so does the next call."""
    done = run_forked(
        f"""
from utils import *
dst, src = cache(1, 4, 8, device="npu"), cache(1, 4, 8, device="npu", seed=1)
torch.npu.synchronize()
ascend_sim.fail_task("aclrtMemcpyAsync", {CODE})
copy_cache(dst, src, 1, 2)
for call in (torch.npu.synchronize, lambda: copy_cache(dst, src, 1, 2)):
    try:
        call()
    except RuntimeError as error:
        print("{CODE}" in str(error))
""",
        TASK_QUEUE_ENABLE="0",
    )
    assert done.stdout == "True\nTrue\n", done.stderr


@pytest.mark.slow
def test_the_process_can_say_so_and_end() -> None:
    done = run_python(f"""
from llm_datadist_torch import *
held = Cache.from_tensors(torch.ones(4, 8).npu())
CacheManager().copy_cache(held, held, 1, 2)
ascend_sim.fail_task("aclrtMemcpyAsync", {CODE})
try:
    CacheManager().copy_cache(held, held, 1, 2)
except LLMException as error:
    print(error.status_code.name, "npu:0 is lost" in str(error))
""")
    assert done.stdout == "LLM_FAILED True\n", done.stderr
