# SPDX-License-Identifier: Apache-2.0
"""The worker on an NPU: transfers come after the work that was on the compute stream, and their results after them.

The simulated runtime holds streams still, so that what does not wait comes too early.
"""

import logging
import threading
from collections.abc import Iterator

import ascend_sim
import pytest
import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, GPULoadStoreSpec
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from worker_utils import BLOCKS, finished, make_caches, make_worker

from llm_datadist_torch import LLMException
from llm_datadist_torch.vllm import CopyCacheOffloadingWorker

LAYERS, WIDTH = 4, 64


@pytest.fixture
def caches() -> CanonicalKVCaches:
    return make_caches([WIDTH] * LAYERS, [[(layer, WIDTH) for layer in range(LAYERS)]], "npu")


@pytest.fixture
def worker(caches: CanonicalKVCaches) -> Iterator[CopyCacheOffloadingWorker]:
    worker = make_worker(caches, 1)
    yield worker
    ascend_sim.reset()
    worker.shutdown()


def store(worker: CopyCacheOffloadingWorker, job: int, block: int, chunk: int) -> None:
    assert worker.submit_store(job, GPULoadStoreSpec([block], [1], [0]), CPULoadStoreSpec([chunk]))


def load(worker: CopyCacheOffloadingWorker, job: int, chunk: int, block: int) -> None:
    assert worker.submit_load(job, CPULoadStoreSpec([chunk]), GPULoadStoreSpec([block], [1], [0]))


def compute(caches: CanonicalKVCaches, block: int, value: int) -> None:
    """The model's work: enqueued on the current stream."""
    for cache in caches.tensors:
        cache.tensor[block].copy_(torch.full((WIDTH,), value, dtype=torch.int8).pin_memory(), non_blocking=True)


def check(caches: CanonicalKVCaches, block: int, value: int) -> None:
    for cache in caches.tensors:
        assert cache.tensor[block].tolist() == [value] * WIDTH


def compute_stream() -> int:
    return torch.npu.current_stream().npu_stream


def test_no_memory_to_pin(caches: CanonicalKVCaches) -> None:
    """The engine does not start, instead of ending at the first transfer."""
    ascend_sim.fail_call("aclrtMallocHost", 507899)
    with pytest.raises(LLMException, match="no pinned memory"):
        make_worker(caches, 4093)


def test_store_waits_for_the_model(caches: CanonicalKVCaches, worker: CopyCacheOffloadingWorker) -> None:
    compute(caches, 3, 1)
    torch.npu.synchronize()
    with ascend_sim.stall_stream(compute_stream()):
        compute(caches, 3, 2)
        store(worker, 1, 3, 0)
        assert worker.get_finished() == []
    finished(worker, {1})
    load(worker, 2, 0, 5)
    finished(worker, {2})
    check(caches, 5, 2)


def test_load_waits_for_the_model(caches: CanonicalKVCaches, worker: CopyCacheOffloadingWorker) -> None:
    """The block of a load may have been cleared or written by work that is still on the stream."""
    compute(caches, 3, 1)
    store(worker, 1, 3, 0)
    finished(worker, {1})
    with ascend_sim.stall_stream(compute_stream()):
        compute(caches, 5, 0)
        load(worker, 2, 0, 5)
        assert worker.get_finished() == []
    finished(worker, {2})
    torch.npu.synchronize()
    check(caches, 5, 1)


@pytest.mark.parametrize("direction", ["store", "load"])
def test_results_come_after_the_copies(
    caches: CanonicalKVCaches, worker: CopyCacheOffloadingWorker, direction: str
) -> None:
    """vLLM computes with loaded blocks, and overwrites stored ones, as soon as it has the result or wait() returns."""
    compute(caches, 3, 1)
    store(worker, 1, 3, 0)
    finished(worker, {1})
    with ascend_sim.stall_device():
        store(worker, 2, 3, 1) if direction == "store" else load(worker, 2, 0, 5)
        waiting = threading.Thread(target=worker.wait, args=({2},))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive() and worker.get_finished() == []
    waiting.join()
    assert [result.job_id for result in worker.get_finished()] == [2]
    if direction == "load":
        check(caches, 5, 1)


def test_one_direction_in_order(caches: CanonicalKVCaches, worker: CopyCacheOffloadingWorker) -> None:
    """Of several stores to one chunk, and of loads to one block, the last one counts."""
    for block in range(8):
        compute(caches, block, block)
    with ascend_sim.jitter_tasks(20_000):
        for job in range(8):
            store(worker, job, job, job // 4)
        assert [result.job_id for result in finished(worker, set(range(8)))] == list(range(8))
        for job in range(8, 16):
            load(worker, job, job % 2, 9)
        assert [result.job_id for result in finished(worker, set(range(8, 16)))] == list(range(8, 16))
    check(caches, 9, 7)


def test_one_call_for_all_layers() -> None:
    """Layers at equal distances, as vLLM 0.32 allocates them: one strided copy for each block."""
    buffer = torch.zeros(LAYERS, BLOCKS, WIDTH, dtype=torch.int8, device="npu")
    caches = make_caches([WIDTH] * LAYERS, [[(layer, WIDTH) for layer in range(LAYERS)]], "npu")
    for cache, layer in zip(caches.tensors, buffer, strict=True):
        cache.tensor = layer
    worker = make_worker(caches, 1)
    torch.npu.synchronize()
    ascend_sim.reset()
    worker.submit_store(1, GPULoadStoreSpec([3, 9, 6], [3], [0]), CPULoadStoreSpec([0, 4, 2]))
    finished(worker, {1})
    assert {(copy.name, copy.height) for copy in ascend_sim.copies()} == {("aclrtMemcpy2dAsync", LAYERS)}
    assert len(ascend_sim.copies()) == 3
    worker.shutdown()


def test_failure_on_the_device(
    caches: CanonicalKVCaches, worker: CopyCacheOffloadingWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that the runtime reports after the call. A line of the log names the job."""
    store(worker, 1, 3, 0)
    finished(worker, {1})
    [query] = [name for name in ascend_sim.call_counts() if "QueryEvent" in name]
    load(worker, 7, 0, 5)
    ascend_sim.fail_call(query, 507018)
    [result] = finished(worker, {7})
    assert not result.success
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == ["KV offloading job 7 failed: a load"]
