# SPDX-License-Identifier: Apache-2.0
"""Blocking copies after their timeout: order, memory, errors, streams."""

import gc
import threading
import time
import weakref

import ascend_sim
import numpy as np
import pytest
import torch
from npu_utils import PATIENT, caches, check_manager_copy, seconds_to_timeout, stalled_device, wait_for_copies
from utils import assert_same_bytes, cache, copy_cache, filled, reference_copy, table, to_host

from llm_datadist_torch import Cache, CacheManager, LLMConfig, LLMException, LLMStatusCode

pytestmark = pytest.mark.simulated


def whole(value: int, rows: int = 1, width: int = 1 << 12) -> Cache:
    return Cache.from_tensors(torch.full((rows, width), value, dtype=torch.uint8).npu())


class TestUnfinishedCopy:
    """An unfinished copy ends later, and must not affect later work."""

    def late(self, dst: Cache, src: Cache) -> None:
        with pytest.raises(LLMException) as late:
            CacheManager(LLMConfig(sync_kv_timeout=30)).copy_cache(dst, src)
        assert late.value.status_code is LLMStatusCode.LLM_TIMEOUT

    def test_next_copy_waits_for_it(self) -> None:
        """Also on another stream, which is not stalled."""
        dst, first, second = whole(0), whole(1), whole(2)
        PATIENT.copy_cache(dst, dst)
        stalled = torch.npu.current_stream()
        results = []

        def copy_on_another_stream() -> None:
            with torch.npu.stream(torch.npu.Stream()):
                PATIENT.copy_cache(dst, second)
                results.append(to_host(dst.tensors[0]).unique().tolist())

        thread = threading.Thread(target=copy_on_another_stream)
        with ascend_sim.stall_stream(stalled.npu_stream):
            self.late(dst, first)
            thread.start()
            time.sleep(0.1)
            assert not results
        thread.join()
        torch.npu.synchronize()
        assert results == [[2]]
        assert to_host(dst.tensors[0]).unique().tolist() == [2]

    def test_later_work_of_the_stream_waits_for_it(self) -> None:
        """The copy is slow on its side stream; the caller's stream is idle long before."""
        dst, src, other = whole(0), whole(1), whole(9)
        check_manager_copy(*caches("plain"))
        torch.npu.synchronize()
        with ascend_sim.delay_tasks(50):
            self.late(dst, src)
            copy_cache(dst.tensors, other.tensors)
            torch.npu.synchronize()
        assert to_host(dst.tensors[0]).unique().tolist() == [9]

    def test_device_memory_is_kept_until_it_ends(self) -> None:
        """Calls the op itself: an exception of the manager, or its log record, would keep the caches alive."""
        blocking = torch.ops.llm_datadist._copy_cache_blocking
        dst, src = (cache(2, 4, 1 << 12, device="npu", seed=seed) for seed in (0, 1))
        blocking(dst, src, 1, 2, 0, -1, None, batch_dim=0, timeout_ms=60_000)
        torch.npu.synchronize()
        gc.collect()  # tensors that earlier tests left in cycles would be released in between
        ascend_sim.reset()
        with ascend_sim.stall_device(0):
            assert not blocking(dst, src, 1, 2, 0, -1, None, batch_dim=0, timeout_ms=30)
            wait_for_copies(1)
            time.sleep(0.05)  # torch_npu has released the task
            before = torch.npu.memory_allocated()
            del dst, src
            assert torch.npu.memory_allocated() == before
        check_manager_copy(*caches("plain"))
        assert torch.npu.memory_allocated() < before

    def test_staging_memory_is_kept_until_it_ends(self) -> None:
        """That of a swap. It belongs to no tensor of the caller."""
        blocking = torch.ops.llm_datadist._copy_cache_batch_blocking
        tensor, swap = filled(2, 1 << 14, device="npu"), table([(0, 1, 0, -1), (1, 0, 0, -1)])
        blocking([tensor], [tensor], swap, None, batch_dim=0, timeout_ms=60_000)
        torch.npu.synchronize()
        gc.collect()
        before = torch.npu.memory_allocated()
        with ascend_sim.stall_device(0):
            assert not blocking([tensor], [tensor], swap, None, batch_dim=0, timeout_ms=30)
            time.sleep(0.05)  # torch_npu has released the task
            assert torch.npu.memory_allocated() >= before + tensor[0].nbytes
        check_manager_copy(*caches("plain"))
        assert torch.npu.memory_allocated() == before

    @pytest.mark.parametrize("pinned", [True, False])
    def test_host_memory_that_it_reads_is_kept(self, pinned: bool) -> None:
        """The pinned source, or the buffer in which a pageable source was gathered."""
        dst, source = whole(0), torch.full((1, 1 << 12), 1, dtype=torch.uint8)
        src = Cache.from_tensors(source.pin_memory() if pinned else source)
        PATIENT.copy_cache(dst, dst, 0, 0, 0, 1)
        with ascend_sim.stall_device(0):
            self.late(dst, src)
            del src
            time.sleep(0.05)  # torch_npu has released the task
            gc.collect()
            others = [torch.empty(1, 1 << 12, dtype=torch.uint8, pin_memory=True).fill_(7) for _ in range(8)]
        torch.npu.synchronize()
        assert to_host(dst.tensors[0]).unique().tolist() == [1]
        del others

    def test_host_memory_that_it_writes_is_kept(self) -> None:
        """The buffer for a pageable destination."""
        dst, src = Cache.from_tensors(torch.zeros(1, 1 << 12, dtype=torch.uint8)), whole(1)
        PATIENT.copy_cache(src, src, 0, 0, 0, 1)
        with ascend_sim.stall_device(0):
            self.late(dst, src)
            time.sleep(0.05)  # torch_npu has released the task
            others = [torch.empty(1, 1 << 12, dtype=torch.uint8, pin_memory=True).fill_(7) for _ in range(8)]
        torch.npu.synchronize()
        assert torch.cat(others).unique().tolist() == [7]
        assert not dst.tensors[0].any()

    def test_many_timeouts_use_one_stream(self) -> None:
        dst, src = caches("plain")
        check_manager_copy(dst, src)
        torch.npu.synchronize()
        ascend_sim.reset()
        hasty = CacheManager(LLMConfig(sync_kv_timeout=1))
        with ascend_sim.stall_device(0):
            for _ in range(50):
                with pytest.raises(LLMException):
                    hasty.copy_cache(dst, src, 1, 2)
        assert ascend_sim.call_counts()["aclrtCreateStream"] == 0

    def test_two_callers_wait_for_it(self) -> None:
        """Each has its own manager, so both wait for the unfinished copy itself. One of them times out."""
        hasty, patient = (CacheManager(LLMConfig(sync_kv_timeout=ms)) for ms in (50, 60_000))
        (dst, src), first, second = caches("plain"), caches("plain"), caches("plain")
        check_manager_copy(dst, src)
        expected = [reference_copy(to.tensors, of.tensors, 1, 2) for to, of in (first, second)]
        torch.npu.synchronize()
        managers = (patient, CacheManager(LLMConfig(sync_kv_timeout=60_000)))
        threads = [
            threading.Thread(target=manager.copy_cache, args=(to, of, 1, 2))
            for manager, (to, of) in zip(managers, (first, second), strict=True)
        ]
        with stalled_device():
            self.late(dst, src)
            for thread in threads:
                thread.start()
            time.sleep(0.1)
            assert seconds_to_timeout(hasty, dst, src) < 10
        for thread in threads:
            thread.join()
        for (to, _), result in zip((first, second), expected, strict=True):
            assert_same_bytes(to.tensors, result)
        check_manager_copy(dst, src)

    def test_finalizer_of_its_memory_may_copy(self) -> None:
        """Python runs the finalizer where the last owner releases the memory. No lock may be held there."""
        dst, src, done = whole(0), whole(1), []
        array = np.zeros((1, 1 << 12), np.uint8)
        another = CacheManager(LLMConfig(sync_kv_timeout=30_000))
        weakref.finalize(array, lambda: (another.copy_cache(dst, src), done.append(True)))
        PATIENT.copy_cache(dst, dst, 0, 0, 0, 1)
        with ascend_sim.stall_device(0):
            self.late(dst, Cache.from_tensors([torch.from_numpy(array)]))
        del array
        gc.collect()
        PATIENT.copy_cache(dst, whole(2))
        PATIENT.copy_cache(dst, whole(2))
        assert done
