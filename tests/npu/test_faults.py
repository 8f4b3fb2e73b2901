# SPDX-License-Identifier: Apache-2.0
"""Failures of the runtime: where the error is raised, its text, and what works afterwards."""

import time

import ascend_sim
import pytest
import torch
from npu_utils import CODE, PATIENT, caches, check_manager_copy, needs_two_npus, run_python, scattered
from utils import assert_same_bytes, cache, copy_cache, filled, reference_copy

from llm_datadist_torch import Cache, LLMException, LLMStatusCode


def failed(dst: Cache, src: Cache) -> LLMException:
    with pytest.raises(LLMException) as failure:
        PATIENT.copy_cache(dst, src, 1, 2, req_id=77)
    assert failure.value.status_code is LLMStatusCode.LLM_FAILED
    assert isinstance(failure.value.__cause__, RuntimeError)
    assert "(req_id 77)" in str(failure.value)
    return failure.value


class TestManager:
    """An error ends only its own call. The process, the task queue and the device keep working."""

    @pytest.mark.simulated
    @pytest.mark.parametrize(
        ("kind", "name", "nth", "text"),
        [
            ("plain", "aclrtMemcpyAsync", 1, "device to device of 32 bytes to dst[0]"),
            ("plain", "aclrtMemcpyAsync", 4, "device to device of 32 bytes to dst[3]"),
            ("strided", "aclrtMemcpy2dAsync", 1, "device to device of 6 x 32 bytes to dst[0]"),
            ("batch", "aclrtMemcpyBatchAsync", 1, "host to device of 6 copies"),
            ("plain", "aclrtRecordEvent", 1, "before a blocking copy"),
            ("plain", "aclrtStreamWaitEvent", 1, "before a blocking copy"),
            ("plain", "aclrtRecordEvent", 2, "after a blocking copy"),
            ("plain", "aclrtStreamWaitEvent", 2, "after a blocking copy"),
            ("plain", "aclrtSynchronizeStreamWithTimeout", 1, "after a blocking copy"),
        ],
    )
    def test_every_call_fails_once(self, kind: str, name: str, nth: int, text: str) -> None:
        dst, src = caches(kind)
        check_manager_copy(dst, src)
        torch.npu.synchronize()
        ascend_sim.fail_call(name, CODE, nth)
        error = failed(dst, src)
        assert f"copy_cache: {name} {text}" in str(error)
        assert f"failed with code {CODE}" in str(error)
        assert "ascend_sim" in str(error)  # the runtime's own text
        check_manager_copy(dst, src)

    @pytest.mark.simulated
    def test_earlier_commands_have_ended_when_a_failure_is_raised(self) -> None:
        dst, src = caches("plain")
        check_manager_copy(dst, src)
        expected = reference_copy(dst.tensors, src.tensors, 3, 0)
        torch.npu.synchronize()
        with ascend_sim.delay_tasks(50):
            ascend_sim.fail_call("aclrtMemcpyAsync", CODE, 4)
            with pytest.raises(LLMException):
                PATIENT.copy_cache(dst, src, 3, 0)
            assert_same_bytes([dst.tensors[2]], [expected[2]])  # the last command before the failure

    @pytest.mark.simulated
    def test_a_later_batch_is_refused(self) -> None:
        """Only the first batch tells whether the runtime supports batches. A later one that is refused is an error."""
        dst = Cache.from_tensors(scattered(5000, 4, 2))
        src = Cache.from_tensors(scattered(5000, 4, 2, device="cpu", seed=1, pinned=True, backward=True))
        torch.npu.synchronize()
        ascend_sim.fail_call("aclrtMemcpyBatchAsync", 107000, 2)  # ACL_ERROR_RT_PARAM_INVALID
        assert "aclrtMemcpyBatchAsync host to device of 904 copies" in str(failed(dst, src))

    @pytest.mark.simulated
    @pytest.mark.parametrize("kind", ["plain", "strided", "batch"])
    def test_a_copy_fails_on_the_device(self, kind: str) -> None:
        """The call that submits it succeeds, and events report nothing: only a synchronisation does."""
        names = {"plain": "aclrtMemcpyAsync", "strided": "aclrtMemcpy2dAsync", "batch": "aclrtMemcpyBatchAsync"}
        dst, src = caches(kind)
        check_manager_copy(dst, src)
        ascend_sim.fail_task(names[kind], CODE)
        assert "aclrtSynchronizeStreamWithTimeout after a blocking copy failed" in str(failed(dst, src))
        check_manager_copy(dst, src)

    @pytest.mark.simulated
    @pytest.mark.parametrize(
        ("name", "nth", "left"),
        [
            ("aclrtCreateStream", 1, [2, 2]),
            ("aclrtCreateEventExWithFlag", 1, [1, 3]),
            ("aclrtCreateEventExWithFlag", 2, [1, 3]),
        ],
    )
    def test_stream_or_event_cannot_be_created(self, name: str, nth: int, left: list[int]) -> None:
        done = run_python(f"""
from llm_datadist_torch import *
from utils import *
dst, src = (Cache.from_tensors(cache(1, 4, 8, device="npu", seed=seed)) for seed in (0, 1))
torch.npu.synchronize()
ascend_sim.reset()
ascend_sim.fail_call("{name}", {CODE}, {nth})
try:
    CacheManager().copy_cache(dst, src, 1, 2)
except LLMException as error:
    print(error.status_code.name, "{name} for a blocking copy failed with code {CODE}" in str(error))
expected = reference_copy(dst.tensors, src.tensors, 1, 2)
CacheManager().copy_cache(dst, src, 1, 2)
assert_same_bytes(dst.tensors, expected)
counts = ascend_sim.call_counts()
print([counts[f"aclrtCreate{{what}}"] - counts[f"aclrtDestroy{{thing}}"]
       for what, thing in (("Stream", "Stream"), ("EventExWithFlag", "Event"))])
""")
        # The failed object is created by the second call; the others of the first call were destroyed.
        assert done.stdout == f"LLM_FAILED True\n{left}\n", done.stderr

    def test_a_call_leaks_no_memory(self) -> None:
        before = torch.npu.memory_allocated()
        for pageable in (False, True):
            dst = Cache.from_tensors(filled(3, 4, 1 << 16, device="npu"), batch_dim=1)
            src = Cache.from_tensors(filled(3, 4, 1 << 16, device="cpu" if pageable else "npu"), batch_dim=1)
            PATIENT.copy_cache(dst, src, 1, 2)
            del dst, src
            # A thread of torch_npu releases finished tasks a little later. Memory that an earlier failure kept may be
            # released now as well; these caches are larger than that.
            patience = time.monotonic() + 30
            while torch.npu.memory_allocated() > before and time.monotonic() < patience:
                time.sleep(0.01)
            assert torch.npu.memory_allocated() <= before

    @pytest.mark.simulated
    def test_row_onto_itself(self) -> None:
        held = Cache.from_tensors(cache(2, 4, 8, device="npu"))
        torch.npu.synchronize()
        ascend_sim.reset()
        PATIENT.copy_cache(held, held, 2, 2)
        assert not ascend_sim.copies()
        assert_same_bytes(held.tensors, cache(2, 4, 8))

    @needs_two_npus
    @pytest.mark.assumption("The host copies from and to an NPU that is not the current one")
    @pytest.mark.parametrize("to_host", [True, False])
    def test_host_copies_of_another_device(self, to_host: bool) -> None:
        on_npu = Cache.from_tensors(cache(2, 4, 8, device="npu:1"))
        on_host = Cache.from_tensors([t.pin_memory() for t in cache(2, 4, 8, seed=1)])
        check_manager_copy(*((on_host, on_npu) if to_host else (on_npu, on_host)))

    @pytest.mark.simulated
    def test_failure_of_other_work_is_not_reported(self) -> None:
        dst, src = caches("plain")
        check_manager_copy(dst, src)
        a, b = (filled(4, 8, device="npu", seed=seed) for seed in (5, 6))
        torch.npu.synchronize()
        ascend_sim.fail_task("aclnnInplaceCopy", CODE)
        a.copy_(b)
        PATIENT.copy_cache(dst, src, 1, 2)
        with pytest.raises(RuntimeError):
            torch.npu.synchronize()


class TestOp:
    """The op has returned by then. As for any NPU op, a later call raises the error."""

    RUN = f"""
from utils import *
dst, src = cache(1, 4, 8, device="npu"), cache(1, 4, 8, device="npu", seed=1)
torch.npu.synchronize()
ascend_sim.fail_call("aclrtMemcpyAsync", {CODE})
try:
    copy_cache(dst, src, 1, 2, 0, -1, 77)
    for _ in range(1000):  # a wait can return before torch_npu has noted the error
        torch.npu.synchronize()
    print("no error")
except RuntimeError as error:
    print("RuntimeError", "llm_datadist::copy_cache" in str(error), "(req_id 77)" in str(error))
"""
    TEXT = f"copy_cache: aclrtMemcpyAsync device to device of 32 bytes to dst[0] failed with code {CODE} (req_id 77)"

    @pytest.mark.simulated
    @pytest.mark.parametrize("mode", ["1", "2"])
    def test_in_the_queue(self, mode: str) -> None:
        done = run_python(self.RUN, TASK_QUEUE_ENABLE=mode)
        assert done.stdout == "RuntimeError True False\n", done.stderr
        assert self.TEXT in done.stderr  # torch_npu prints the task's exception, and raises its own text

    @pytest.mark.simulated
    def test_without_the_queue(self) -> None:
        again = """
expected = reference_copy(dst, src, 1, 2)
copy_cache(dst, src, 1, 2)
assert_same_bytes(dst, expected)
"""
        done = run_python(self.RUN + again, TASK_QUEUE_ENABLE="0")
        assert done.stdout == "RuntimeError False True\n", done.stderr

    @pytest.mark.simulated
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

    @pytest.mark.assumption("A process may end with copies in flight")
    def test_exit_with_copies_in_flight(self) -> None:
        done = run_python("""
from utils import *
dst, src = cache(4, 4, 8, device="npu"), cache(4, 4, 8, device="npu", seed=1)
for _ in range(500):
    torch.ops.llm_datadist.copy_cache(dst, src, 1, 2)
    torch.ops.llm_datadist.copy_cache(dst, cache(4, 4, 8), 1, 2)
print("OK")
""")
        assert done.stdout == "OK\n", done.stderr

    @pytest.mark.parametrize("end", ["", "torch.npu.synchronize()"])
    def test_exit_after_copies_to_freed_pageable_memory(self, end: str) -> None:
        """A task is the last owner of such memory. If torch_npu's thread released it while Python exits, Python would
        end that thread, and the process would abort (6 of 10 times)."""
        for _ in range(2):
            done = run_python(f"""
src = [torch.ones(4, 1024).npu()]
for _ in range(300):
    torch.ops.llm_datadist.copy_cache([torch.empty(4, 1024)], src, 1, 2)
{end}
print("OK")
""")
            assert done.stdout == "OK\n", done.stderr

    @pytest.mark.simulated
    def test_failed_queue(self) -> None:
        """torch_npu drops all work queued after an error. The manager detects that without waiting for its timeout."""
        done = run_python(
            f"""
from llm_datadist_torch import *
held = Cache.from_tensors(torch.ones(4, 8).npu())
CacheManager().copy_cache(held, held, 1, 2)
torch.npu.synchronize()
ascend_sim.fail_call("aclrtMemcpyAsync", {CODE})
torch.ops.llm_datadist.copy_cache(held.tensors, held.tensors, 1, 2)
for _ in range(3):
    try:
        CacheManager(LLMConfig(sync_kv_timeout=60_000)).copy_cache(held, held, 1, 2)
    except LLMException as error:
        print(error.status_code.name, end=" ")
        text = str(error)
print("has failed before" in text)
""",
            TASK_QUEUE_ENABLE="1",
        )
        assert done.stdout.startswith("LLM_FAILED LLM_FAILED LLM_FAILED True\n"), done.stdout + done.stderr
