# SPDX-License-Identifier: Apache-2.0
"""Calls of the runtime that fail: where the error is raised, its text, and what works afterwards."""

from __future__ import annotations

from collections.abc import Callable

import ascend_sim
import pytest
import torch
from npu_utils import CODE, PATIENT, caches, check_manager_copy, needs_two_npus, run_forked, scattered
from torch import Tensor
from utils import assert_same_bytes, cache, filled, reference_batch, reference_copy

from llm_datadist_torch import Cache, LLMException, LLMStatusCode

# A cycle of three rows, of which one is staged, and another copy.
CYCLE = {0: [1], 1: [2], 2: [0, 3]}
COPIES = [(to, of, 0, -1) for of, targets in CYCLE.items() for to in targets]
# The calls of a blocking copy, and what the error says of each.
COPY = r"(device|host) to (device|host) of .* to dst\[\d\],? "
CALLS = {
    "aclrtMemcpyAsync": COPY,
    "aclrtMemcpy2dAsync": COPY,
    "aclrtMemcpyBatchAsync": COPY,
    "aclrtRecordEvent": "(before|after) a blocking copy ",
    "aclrtStreamWaitEvent": "(before|after) a blocking copy ",
    "aclrtSynchronizeStream": "of a blocking copy ",
}


def pinned() -> list[Tensor]:
    return scattered(5, 4, 8, device="cpu", seed=1, pinned=True, backward=True)


# dst, and src if it is another cache
CACHES: dict[str, Callable[[], tuple[list[Tensor], ...]]] = {
    "stacked": lambda: ([filled(3, 4, 8, device="npu")],),
    "separate": lambda: (scattered(5, 4, 8),),
    "from pinned": lambda: (scattered(5, 4, 8), pinned()),
    "from pageable": lambda: (scattered(5, 4, 8), cache(5, 4, 8, seed=1)),
    "to pageable": lambda: (cache(5, 4, 8), scattered(5, 4, 8, seed=1)),
}


def copy(dst: Cache, src: Cache) -> None:
    if dst is src:
        PATIENT.copy_blocks(dst, CYCLE)
    else:
        PATIENT.swap_blocks(src, dst, {0: 1, 1: 2, 2: 0})


def expected(dst: Cache, src: Cache) -> list[Tensor]:
    copies = COPIES if dst is src else COPIES[:3]
    return reference_batch(dst.tensors, src.tensors, copies, batch_dim=dst.batch_dim)


def failed(dst: Cache, src: Cache) -> str:
    with pytest.raises(LLMException) as failure:
        PATIENT.copy_cache(dst, src, 1, 2, req_id=77)
    assert failure.value.status_code is LLMStatusCode.LLM_FAILED
    assert isinstance(failure.value.__cause__, RuntimeError)
    assert "(req_id 77)" in str(failure.value)
    return str(failure.value)


@pytest.mark.simulated
class TestManager:
    """An error ends only its own call. The process, the task queue and the device keep working."""

    @pytest.mark.parametrize("kind", CACHES)
    def test_every_call_at_every_position(self, kind: str) -> None:
        """Each error names the runtime call and has the runtime's own text, and the next copy is correct."""
        held = [
            Cache.from_tensors(tensors, batch_dim=tensors[0].dim() - 2, is_blocks_cache=True)
            for tensors in CACHES[kind]()
        ]
        dst, src = held[0], held[-1]
        copy(dst, src)  # creates the side stream
        torch.npu.synchronize()
        ascend_sim.reset()
        copy(dst, src)
        counted = {name: count for name, count in ascend_sim.call_counts().items() if name in CALLS}
        assert len(counted) >= 4, counted
        for name, count in counted.items():
            for nth in range(1, count + 1):
                torch.npu.synchronize()
                ascend_sim.reset()
                ascend_sim.fail_call(name, CODE, nth)
                text = f"{name} {CALLS[name]}failed with code {CODE}: ascend_sim: {name}"
                with pytest.raises(LLMException, match=text) as failure:
                    copy(dst, src)
                assert failure.value.status_code is LLMStatusCode.LLM_FAILED
                assert isinstance(failure.value.__cause__, RuntimeError)
                assert ascend_sim.armed_faults() == 0
                wanted = expected(dst, src)
                copy(dst, src)
                assert_same_bytes(dst.tensors, wanted)

    def test_earlier_copies_have_ended_when_a_failure_is_raised(self) -> None:
        dst, src = caches("plain")
        check_manager_copy(dst, src)
        wanted = reference_copy(dst.tensors, src.tensors, 3, 0)
        torch.npu.synchronize()
        with ascend_sim.delay_tasks(20):
            ascend_sim.fail_call("aclrtMemcpyAsync", CODE, 4)
            with pytest.raises(LLMException):
                PATIENT.copy_cache(dst, src, 3, 0)
            assert_same_bytes([dst.tensors[2]], [wanted[2]])  # the last one before the failure

    def test_a_parameter_of_a_batch_is_refused(self) -> None:
        """That is an error, not a runtime without batches."""
        dst = Cache.from_tensors(scattered(4100, 4, 2))
        src = Cache.from_tensors(scattered(4100, 4, 2, device="cpu", seed=1, pinned=True, backward=True))
        torch.npu.synchronize()
        ascend_sim.fail_call("aclrtMemcpyBatchAsync", 107000, 2)  # ACL_ERROR_RT_PARAM_INVALID
        assert "aclrtMemcpyBatchAsync host to device of 4 copies" in failed(dst, src)

    @pytest.mark.parametrize(
        ("name", "nth", "left"),
        [
            ("aclrtCreateStream", 1, [2, 2]),
            ("aclrtCreateEventExWithFlag", 1, [1, 3]),
            ("aclrtCreateEventExWithFlag", 2, [1, 3]),
        ],
    )
    def test_stream_or_event_cannot_be_created(self, name: str, nth: int, left: list[int]) -> None:
        done = run_forked(f"""
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

    def test_failed_queue(self) -> None:
        """torch_npu drops all work queued after an error. The manager detects that without waiting for its timeout."""
        done = run_forked(
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


@needs_two_npus
@pytest.mark.assumption("The host copies from and to an NPU that is not the current one")
@pytest.mark.parametrize("to_host", [True, False])
def test_blocking_copies_between_the_host_and_another_device(to_host: bool) -> None:
    on_npu = Cache.from_tensors(cache(2, 4, 8, device="npu:1"))
    on_host = Cache.from_tensors([t.pin_memory() for t in cache(2, 4, 8, seed=1)])
    check_manager_copy(*((on_host, on_npu) if to_host else (on_npu, on_host)))


@pytest.mark.simulated
class TestOp:
    """The op has returned by then. As for any NPU op, a later call raises the error."""

    @pytest.mark.parametrize("mode", ["0", "1", "2"])
    def test_a_call_fails(self, mode: str) -> None:
        """In the task queue, torch_npu raises its own text and prints ours. Without the queue, the op raises ours."""
        done = run_forked(
            f"""
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
    print("llm_datadist::copy_cache" in str(error), "(req_id 77)" in str(error))
if os.environ["TASK_QUEUE_ENABLE"] == "0":
    check_copy(dst, src, 1, 2)
""",
            TASK_QUEUE_ENABLE=mode,
        )
        assert done.stdout == ("False True\n" if mode == "0" else "True False\n"), done.stderr
        text = (
            f"copy_cache: aclrtMemcpyAsync device to device of 32 bytes to dst[0] failed with code {CODE} (req_id 77)"
        )
        assert mode == "0" or text in done.stderr

    def test_versions_of_what_a_failed_call_may_have_written(self) -> None:
        dst, src = cache(1, 4, 8, device="npu"), cache(1, 4, 8, device="npu", seed=1)
        ascend_sim.fail_call("aclrtMemcpyAsync", CODE)
        with pytest.raises(RuntimeError, match=f"failed with code {CODE}"):
            torch.ops.llm_datadist._copy_cache_blocking(dst, src, 1, 2, 0, -1, None, batch_dim=0, timeout_ms=60_000)
        assert [tensor._version for tensor in dst + src] == [1, 0]
