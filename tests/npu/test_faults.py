# SPDX-License-Identifier: Apache-2.0
"""The runtime fails: who is told, with which words, and what works afterwards."""

import threading
import time

import ascend_sim
import pytest
import torch
from npu_utils import block_the_queue, run_python, scattered, wait_for_copies
from torch import Tensor
from utils import assert_same_bytes, cache, copy_cache, filled, reference_copy

from llm_datadist_torch import Cache, CacheManager, LLMConfig, LLMException, LLMStatusCode

CODE = 507018
PATIENT = CacheManager(LLMConfig(sync_kv_timeout=60_000))


def caches(kind: str) -> tuple[Cache, Cache]:
    if kind == "strided":
        return tuple(Cache.from_tensors(filled(6, 4, 8, device="npu", seed=seed), batch_dim=1) for seed in (0, 1))
    dst = scattered(6, 4, 8)
    device, pinned = ("cpu", True) if kind == "batch" else ("npu", False)
    src = scattered(6, 4, 8, device=device, seed=1, pinned=pinned, backward=True)
    return Cache.from_tensors(dst), Cache.from_tensors(src)


def check_copy(dst: Cache, src: Cache) -> None:
    expected = reference_copy(dst.tensors, src.tensors, 1, 2, batch_dim=dst.batch_dim)
    PATIENT.copy_cache(dst, src, 1, 2)
    assert_same_bytes(dst.tensors, expected)


def failed(dst: Cache, src: Cache) -> LLMException:
    with pytest.raises(LLMException) as failure:
        PATIENT.copy_cache(dst, src, 1, 2, req_id=77)
    assert failure.value.status_code is LLMStatusCode.LLM_FAILED
    assert isinstance(failure.value.__cause__, RuntimeError)
    assert "(req_id 77)" in str(failure.value)
    return failure.value


class TestManager:
    """Its errors are its own: the process, the queue and the device go on."""

    @pytest.mark.parametrize(
        ("kind", "name", "nth", "text"),
        [
            ("plain", "aclrtMemcpyAsync", 1, "device to device of 32 bytes to dst[0]"),
            ("plain", "aclrtMemcpyAsync", 4, "device to device of 32 bytes to dst[3]"),
            ("strided", "aclrtMemcpy2dAsync", 1, "device to device of 6 x 32 bytes to dst[0]"),
            ("batch", "aclrtMemcpyBatchAsync", 1, "host to device of 6 copies"),
            ("plain", "aclrtRecordEvent", 1, "before a blocking copy"),
            ("plain", "aclrtStreamWaitEvent", 1, "before a blocking copy"),
            ("plain", "aclrtSynchronizeStreamWithTimeout", 1, "after a blocking copy"),
        ],
    )
    def test_every_call_fails_once(self, kind: str, name: str, nth: int, text: str) -> None:
        dst, src = caches(kind)
        check_copy(dst, src)
        torch.npu.synchronize()
        ascend_sim.fail_call(name, CODE, nth)
        error = failed(dst, src)
        assert f"copy_cache: {name} {text}" in str(error)
        assert f"failed with code {CODE}" in str(error)
        assert "ascend_sim" in str(error)  # the runtime's own words
        check_copy(dst, src)

    @pytest.mark.parametrize("kind", ["plain", "strided", "batch"])
    def test_a_copy_fails_on_the_device(self, kind: str) -> None:
        """The call that enqueues it succeeds, and no event tells: only a synchronisation does."""
        names = {"plain": "aclrtMemcpyAsync", "strided": "aclrtMemcpy2dAsync", "batch": "aclrtMemcpyBatchAsync"}
        dst, src = caches(kind)
        check_copy(dst, src)
        ascend_sim.fail_task(names[kind], CODE)
        assert "aclrtSynchronizeStreamWithTimeout after a blocking copy failed" in str(failed(dst, src))
        check_copy(dst, src)

    @pytest.mark.parametrize("name", ["aclrtCreateStream", "aclrtCreateEventExWithFlag"])
    def test_no_stream_or_event_to_be_had(self, name: str) -> None:
        done = run_python(f"""
from llm_datadist_torch import *
from utils import *
dst, src = (Cache.from_tensors(cache(1, 4, 8, device="npu", seed=seed)) for seed in (0, 1))
torch.npu.synchronize()
ascend_sim.fail_call("{name}", {CODE})
try:
    CacheManager().copy_cache(dst, src, 1, 2)
except LLMException as error:
    print(error.status_code.name, "{name} for a blocking copy failed with code {CODE}" in str(error))
expected = reference_copy(dst.tensors, src.tensors, 1, 2)
CacheManager().copy_cache(dst, src, 1, 2)
assert_same_bytes(dst.tensors, expected)
""")
        assert done.stdout == "LLM_FAILED True\n", done.stderr

    def test_a_stream_whose_state_cannot_be_asked_is_not_used(self) -> None:
        dst, src = caches("plain")
        check_copy(dst, src)
        torch.npu.synchronize()
        ascend_sim.reset()
        ascend_sim.fail_call("aclrtStreamQuery", CODE)
        check_copy(dst, src)
        assert ascend_sim.call_counts()["aclrtStreamQuery"] >= 1

    def test_nothing_is_kept_after_the_call(self) -> None:
        before = torch.npu.memory_allocated()
        for pageable in (False, True):
            dst = Cache.from_tensors(filled(3, 4, 1 << 16, device="npu"), batch_dim=1)
            src = Cache.from_tensors(filled(3, 4, 1 << 16, device="cpu" if pageable else "npu"), batch_dim=1)
            PATIENT.copy_cache(dst, src, 1, 2)
            del dst, src
            # torch_npu drops a task that is done on a thread of its own, a moment later. Less than before is left where
            # an earlier failure had kept something until now; these caches are larger than all of that.
            patience = time.monotonic() + 30
            while torch.npu.memory_allocated() > before and time.monotonic() < patience:
                time.sleep(0.01)
            assert torch.npu.memory_allocated() <= before

    def test_row_onto_itself(self) -> None:
        held = Cache.from_tensors(cache(2, 4, 8, device="npu"))
        torch.npu.synchronize()
        ascend_sim.reset()
        PATIENT.copy_cache(held, held, 2, 2)
        assert not ascend_sim.copies()
        assert_same_bytes(held.tensors, cache(2, 4, 8))

    @pytest.mark.parametrize("to_host", [True, False])
    def test_host_copies_of_another_device(self, to_host: bool) -> None:
        on_npu = Cache.from_tensors(cache(2, 4, 8, device="npu:1"))
        on_host = Cache.from_tensors([t.pin_memory() for t in cache(2, 4, 8, seed=1)])
        check_copy(*((on_host, on_npu) if to_host else (on_npu, on_host)))

    def test_other_work_that_fails_is_not_its_failure(self) -> None:
        dst, src = caches("plain")
        check_copy(dst, src)
        a, b = (filled(4, 8, device="npu", seed=seed) for seed in (5, 6))
        torch.npu.synchronize()
        ascend_sim.fail_task("aclrtMemcpyAsync", CODE)
        a.copy_(b)
        PATIENT.copy_cache(dst, src, 1, 2)
        with pytest.raises(RuntimeError):
            torch.npu.synchronize()


def seconds_to_timeout(manager: CacheManager, dst: Cache, src: Cache) -> float:
    started = time.monotonic()
    with pytest.raises(LLMException, match=r"ms; what the destination range holds is undefined \(req_id 77\)") as late:
        manager.copy_cache(dst, src, 1, 2, req_id=77)
    assert late.value.status_code is LLMStatusCode.LLM_TIMEOUT
    return time.monotonic() - started


class TestTimeout:
    @pytest.mark.parametrize("kind", ["plain", "strided", "batch"])
    def test_stalled_stream(self, kind: str) -> None:
        manager, (dst, src) = CacheManager(LLMConfig(sync_kv_timeout=50)), caches(kind)
        check_copy(dst, src)
        with ascend_sim.stall_device(0):
            assert 0.05 <= seconds_to_timeout(manager, dst, src) < 10
        torch.npu.synchronize()
        check_copy(dst, src)

    def test_caches_freed_after_a_timeout(self) -> None:
        """The late copy must not write to memory that has gone to another tensor meanwhile."""
        manager, (dst, src) = CacheManager(LLMConfig(sync_kv_timeout=20)), caches("plain")
        stream = torch.npu.current_stream()
        with ascend_sim.stall_stream(stream.npu_stream):
            with pytest.raises(LLMException):
                manager.copy_cache(dst, src, 1, 2)
            del dst, src
        others: list[Tensor] = scattered(6, 4, 8, seed=9)
        torch.npu.synchronize()
        check_copy(*caches("plain"))
        assert_same_bytes(others, scattered(6, 4, 8, device="cpu", seed=9))

    def test_the_task_itself_is_late(self) -> None:
        """The queue is held up, so that two calls time out before their copies are even on a stream."""
        manager, first, second = CacheManager(LLMConfig(sync_kv_timeout=20)), caches("plain"), caches("plain")
        check_copy(*first)
        expected = reference_copy(second[0].tensors, second[1].tensors, 1, 2)
        torch.npu.synchronize()
        rescue = threading.Timer(20, ascend_sim.reset)  # a call that waits for its task would wait for ever
        rescue.start()
        with ascend_sim.stall_device(0):
            block_the_queue()
            for dst, src in (first, second):
                assert seconds_to_timeout(manager, dst, src) < 10
            del first
        rescue.cancel()
        others = scattered(6, 4, 8, seed=9)
        check_copy(*caches("plain"))
        torch.npu.synchronize()
        assert_same_bytes(second[0].tensors, expected)
        assert_same_bytes(others, scattered(6, 4, 8, device="cpu", seed=9))

    def test_nothing_is_freed_while_the_late_copy_may_run(self) -> None:
        """By the op itself: an exception, or a log record of it, would keep the caches alive."""
        dst, src = (cache(2, 4, 1 << 12, device="npu", seed=seed) for seed in (0, 1))
        blocking = torch.ops.llm_datadist._copy_cache_blocking
        blocking(dst, src, 1, 2, 0, -1, None, batch_dim=0, timeout_ms=60_000)
        torch.npu.synchronize()
        ascend_sim.reset()
        with ascend_sim.stall_device(0):
            assert not blocking(dst, src, 1, 2, 0, -1, None, batch_dim=0, timeout_ms=50)
            wait_for_copies(1)
            time.sleep(0.05)  # torch_npu has dropped the task
            before = torch.npu.memory_allocated()
            del dst, src
            assert torch.npu.memory_allocated() == before
        torch.npu.synchronize()

    def test_gathering_pageable_memory_takes_too_long(self) -> None:
        dst = Cache.from_tensors(torch.empty(1, 2**28, dtype=torch.uint8, device="npu"))
        src = Cache.from_tensors(torch.empty(1, 2**28, dtype=torch.uint8))
        with pytest.raises(LLMException) as late:
            CacheManager(LLMConfig(sync_kv_timeout=1)).copy_cache(dst, src)
        assert late.value.status_code is LLMStatusCode.LLM_TIMEOUT
        torch.npu.synchronize()
        assert ascend_sim.call_counts()["aclrtMemcpyAsync"] == 0

    def test_streams_are_used_again(self) -> None:
        manager, (dst, src) = CacheManager(LLMConfig(sync_kv_timeout=10)), caches("plain")
        check_copy(dst, src)
        ascend_sim.reset()
        for _ in range(5):
            with ascend_sim.stall_device(0), pytest.raises(LLMException):
                manager.copy_cache(dst, src, 1, 2)
            torch.npu.synchronize()
            time.sleep(0.01)
        assert ascend_sim.call_counts()["aclrtCreateStream"] <= 2

    def test_waits_for_its_own_copies_only(self) -> None:
        """Work that others queue on the stream, after the copy, is not waited for."""
        dst, src = caches("plain")
        check_copy(dst, src)
        busy = torch.npu.Stream()
        torch.npu.synchronize()
        with ascend_sim.stall_stream(busy.npu_stream):
            with torch.npu.stream(busy):
                filled(4, 8, device="cpu").pin_memory().npu(non_blocking=True)
            PATIENT.copy_cache(dst, src, 1, 2)
            assert torch.npu.current_stream().query()


class TestOp:
    """The op cannot tell its caller, who is gone: the error comes with a later call, at the latest when it synchronises,
    as for any NPU op."""

    RUN = f"""
from utils import *
dst, src = cache(1, 4, 8, device="npu"), cache(1, 4, 8, device="npu", seed=1)
torch.npu.synchronize()
ascend_sim.fail_call("aclrtMemcpyAsync", {CODE})
try:
    copy_cache(dst, src, 1, 2, 0, -1, 77)
    torch.npu.synchronize()
    print("no error")
except RuntimeError as error:
    print("RuntimeError", "llm_datadist::copy_cache" in str(error), "(req_id 77)" in str(error))
"""
    TEXT = f"copy_cache: aclrtMemcpyAsync device to device of 32 bytes to dst[0] failed with code {CODE} (req_id 77)"

    @pytest.mark.parametrize("mode", ["1", "2"])
    def test_in_the_queue(self, mode: str) -> None:
        done = run_python(self.RUN, TASK_QUEUE_ENABLE=mode)
        assert done.stdout == "RuntimeError True False\n", done.stderr
        assert self.TEXT in done.stderr  # torch_npu prints what the task threw, and raises a text of its own

    def test_without_the_queue(self) -> None:
        again = """
expected = reference_copy(dst, src, 1, 2)
copy_cache(dst, src, 1, 2)
assert_same_bytes(dst, expected)
"""
        done = run_python(self.RUN + again, TASK_QUEUE_ENABLE="0")
        assert done.stdout == "RuntimeError False True\n", done.stderr
        assert done.returncode == 0, done.stderr

    def test_a_copy_fails_on_the_device(self) -> None:
        dst, src = cache(1, 4, 8, device="npu"), cache(1, 4, 8, device="npu", seed=1)
        torch.npu.synchronize()
        ascend_sim.fail_task("aclrtMemcpyAsync", CODE)
        copy_cache(dst, src, 1, 2)
        with pytest.raises(RuntimeError):
            torch.npu.synchronize()
        expected = reference_copy(dst, src, 1, 2)
        copy_cache(dst, src, 1, 2)
        assert_same_bytes(dst, expected)

    def test_exit_with_copies_in_flight(self) -> None:
        done = run_python("""
from utils import *
dst, src = cache(4, 4, 8, device="npu"), cache(4, 4, 8, device="npu", seed=1)
for _ in range(500):
    torch.ops.llm_datadist.copy_cache(dst, src, 1, 2)
    torch.ops.llm_datadist.copy_cache(dst, cache(4, 4, 8), 1, 2)
print("OK")
""")
        assert (done.stdout, done.returncode) == ("OK\n", 0), done.stderr
