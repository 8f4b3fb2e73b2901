# SPDX-License-Identifier: Apache-2.0
"""Blocking copies that time out: when the call returns, and what it leaves. See also test_unfinished_copies.py."""

import threading
import time
from collections.abc import Callable

import ascend_sim
import pytest
import torch
from npu_utils import (
    PATIENT,
    blocked_queue,
    caches,
    check_manager_copy,
    scattered,
    seconds_to_timeout,
    stalled_device,
)
from utils import assert_same_bytes, cache, copy_cache, reference_copy, to_host

from llm_datadist_torch import Cache, CacheManager, LLMConfig, LLMException, LLMStatusCode


@pytest.mark.simulated
class TestTimeout:
    def test_timeout_before_the_task_runs(self) -> None:
        """The task queue is blocked, so the first call times out before its copies are on a stream. The second call
        waits for the first, and times out before it has begun.
        """
        manager, first, second = CacheManager(LLMConfig(sync_kv_timeout=20)), caches("plain"), caches("plain")
        check_manager_copy(*first)
        unchanged = [to_host(tensor) for tensor in second[0].tensors]
        torch.npu.synchronize()
        with blocked_queue():
            for dst, src in (first, second):
                assert seconds_to_timeout(manager, dst, src) < 10
            del first
        others = scattered(6, 4, 8, seed=9)
        check_manager_copy(*caches("plain"))
        torch.npu.synchronize()
        assert_same_bytes(second[0].tensors, unchanged)
        assert_same_bytes(others, scattered(6, 4, 8, device="cpu", seed=9))

    def test_deadline_in_the_past(self) -> None:
        """The runtime takes a timeout of -1 ms as no timeout."""
        dst, src = (cache(2, 4, 8, device="npu", seed=seed) for seed in (0, 1))
        blocking = torch.ops.llm_datadist._copy_cache_blocking
        blocking(dst, src, 1, 2, 0, -1, None, batch_dim=0, timeout_ms=60_000)
        with stalled_device():
            assert not blocking(dst, src, 1, 2, 0, -1, None, batch_dim=0, timeout_ms=50)
            started = time.monotonic()
            assert not blocking(dst, src, 1, 2, 0, -1, None, batch_dim=0, timeout_ms=-1)
            assert time.monotonic() - started < 10
        torch.npu.synchronize()

    def test_timeout_while_gathering_pageable_memory(self) -> None:
        dst = Cache.from_tensors(torch.empty(1, 2**28, dtype=torch.uint8, device="npu"))
        src = Cache.from_tensors(torch.empty(1, 2**28, dtype=torch.uint8))
        with pytest.raises(LLMException) as late:
            CacheManager(LLMConfig(sync_kv_timeout=1)).copy_cache(dst, src)
        assert late.value.status_code is LLMStatusCode.LLM_TIMEOUT
        torch.npu.synchronize()
        assert ascend_sim.call_counts()["aclrtMemcpyAsync"] == 0


@pytest.mark.assumption("Copies of pageable memory run during a capture in another thread")
@pytest.mark.parametrize("to_host", [True, False])
@pytest.mark.parametrize("call", [copy_cache, PATIENT.copy_cache], ids=["op", "manager"])
def test_a_capture_in_another_thread(call: Callable[..., None], to_host: bool) -> None:
    """A refusal within torch_npu's queue would end all later work of the process."""
    on_npu, on_host = cache(2, 4, 8, device="npu"), cache(2, 4, 8, seed=1)
    dst, src = (on_host, on_npu) if to_host else (on_npu, on_host)
    expected = reference_copy(dst, src, 1, 2)
    captured, other = (cache(2, 4, 8, device="npu", seed=seed) for seed in (2, 3))
    wanted = reference_copy(captured, other, 1, 2)
    torch.npu.synchronize()

    def copy() -> None:
        with torch.npu.stream(torch.npu.Stream()):
            call(*((dst, src) if call is copy_cache else map(Cache.from_tensors, (dst, src))), 1, 2)

    thread, graph = threading.Thread(target=copy), torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        copy_cache(captured, other, 1, 2)
        thread.start()
        thread.join()
    torch.npu.synchronize()
    assert_same_bytes(dst, expected)
    graph.replay()
    torch.npu.synchronize()
    assert_same_bytes(captured, wanted)
