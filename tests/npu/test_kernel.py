# SPDX-License-Identifier: Apache-2.0
"""Copies within the device by the kernel, which a library of the host stands in for. See csrc/npu/device_kernel.h."""

import struct
import sys
from collections.abc import Iterator

import ascend_sim
import pytest
import torch
from byte_model import BUFFER_BYTES, BUFFERS, Call, apply, calls, writers
from hypothesis import given
from kernel_stand_in import kernel_in_use, stand_in
from npu_utils import CODE, PATIENT, Made, checked_batch, checked_copy, made, run_python, scattered
from torch import Tensor
from utils import assert_same_bytes, cache, copy_cache, copy_cache_batch, filled, reference_batch, reference_copy, table

import llm_datadist_torch
from llm_datadist_torch import Cache
from llm_datadist_torch._native import warm_up
from llm_datadist_torch._native.warm_up import KernelUse

pytestmark = pytest.mark.simulated

LAUNCH = "aclrtLaunchKernelWithHostArgs"


def stacked(*shape: int, seed: int = 0) -> list[Tensor]:
    return [filled(*shape, device="npu", seed=seed)]


@pytest.fixture
def kernel() -> Iterator[None]:
    with kernel_in_use():
        yield


def launches(count: int) -> Made:
    """No copy, and so many launches, each of which is a task."""
    assert ascend_sim.work(LAUNCH) == ascend_sim.Work(count, count, 0)
    return Made(launches=count)


@pytest.mark.usefixtures("kernel")
class TestLaunches:
    @pytest.mark.parametrize("make", [stacked, scattered])
    def test_a_row_is_one_launch(self, make: object) -> None:
        dst, src = make(160, 4, 64), make(160, 4, 64, seed=1)
        assert checked_copy(dst, src, 1, 2, batch_dim=dst[0].dim() - 2) == launches(1)

    @pytest.mark.parametrize("make", [stacked, scattered])
    def test_blocks_are_one_launch(self, make: object) -> None:
        dst, src = make(160, 70, 8), make(160, 70, 8, seed=1)
        pairs = [(3 * i % 64, 5 * i % 64, 0, -1) for i in range(64)]
        assert checked_batch(dst, src, pairs, batch_dim=dst[0].dim() - 2) == launches(1)

    def test_tensors_of_two_row_sizes_are_one_launch(self) -> None:
        dst, src = (scattered(20, 4, 24, seed=seed) + scattered(20, 4, 5, seed=seed + 2) for seed in (0, 1))
        assert checked_batch(dst, src, [(0, 1, 0, -1), (2, 3, 4, 12)]) == launches(1)

    @pytest.mark.parametrize(
        ("copies", "count"),
        [
            ([(i + 1, i, 0, -1) for i in range(6)], 2),  # a chain: gathered, scattered
            ([(0, 1, 0, -1), (1, 0, 0, -1)], 3),  # a swap: one row gathered, one copied, one scattered
            ([((i + 1) % 7, i, 0, -1) for i in range(7)], 2),  # a cycle: one row staged, the others a chain
        ],
    )
    def test_sources_are_read_before_destinations_are_written(self, copies: list, count: int) -> None:
        held = scattered(5, 7, 64)
        assert checked_batch(held, held, copies) == launches(count)

    @pytest.mark.parametrize("size", [1, 3, 32, 4_095, 32_768, 32_769, 1_000_003])
    @pytest.mark.parametrize("offset", [0, 1, 4])
    def test_sizes_and_alignments(self, size: int, offset: int) -> None:
        dst, src = (cache(3, 2, size + 8, dtype=torch.uint8, device="npu", seed=seed) for seed in (0, 1))
        assert checked_copy(dst, src, 1, 0, offset, size) == launches(1)

    def test_the_argument_block(self) -> None:
        """Rows of 6 words in three tensors, byte by byte, as Note [The tables of the kernel] has it."""
        dst, src = (stacked(3, 4, 6, seed=seed) for seed in (0, 1))
        cost = made(lambda: copy_cache(dst, src, 1, 2, 4, 12, batch_dim=1))
        assert cost == launches(1)
        (launch,) = ascend_sim.launches()
        shares = [(0, 0, 1), (1, 0, 1), (2, 0, 1)]
        bases = [(0, 0, 0, 1), (24, 24, 0, 1), (48, 48, 0, 1)]  # in words, from the first tensor
        pieces = [(6 + 1, 12 + 1, 3)]
        tables = [number for rows in (shares, bases, pieces) for row in rows for number in row]
        head = struct.pack("<5Q3Q3ii", 0, 0, 0, dst[0].data_ptr(), src[0].data_ptr(), 0, 0, 0, 3, 1, 1, 0)
        assert (launch.kernel, launch.blocks) == ("copy_pieces", 3)
        assert launch.place_holders == [(40, 80), (48, 80 + 72), (56, 80 + 72 + 96)]
        assert launch.arguments == head + struct.pack(f"<{len(tables)}q", *tables)

    def test_cores_share_the_bytes(self) -> None:
        """One long row among many short ones: no program copies more than its part and a piece."""
        dst, src = (stacked(1, 400, 9000, seed=seed) for seed in (0, 1))
        copies = [(0, 1, 0, 36_000), *((i, i + 1, 0, 16) for i in range(2, 398, 2))]
        assert checked_batch(dst, src, copies, batch_dim=1) == launches(1)
        (launch,) = ascend_sim.launches()
        numbers = struct.unpack(f"<{len(launch.arguments) // 8 - 10}q", launch.arguments[80:])
        shares = [numbers[i : i + 3] for i in range(0, 3 * launch.blocks, 3)]
        lengths = [4 * numbers[i + 2] for i in range(3 * launch.blocks + 4, len(numbers), 3)]
        assert launch.blocks == 40
        assert [piece for _, piece, count in shares for piece in range(piece, piece + count)] == list(
            range(len(lengths))
        )
        costs = [sum(lengths[i] + 4096 for i in range(piece, piece + count)) for _, piece, count in shares]
        assert max(costs) <= sum(costs) / 40 + 2 * 4096


@pytest.mark.usefixtures("kernel")
class TestOrder:
    def test_launches_wait_for_earlier_work_of_the_stream(self) -> None:
        dst, src = (stacked(3, 4, 8, seed=seed) for seed in (0, 1))
        new = filled(3, 4, 8, seed=5)
        expected = reference_copy([dst[0].cpu()], [new], 1, 2, batch_dim=1)
        pinned = new.pin_memory()
        torch.npu.synchronize()
        with ascend_sim.jitter_tasks(2000):
            src[0].copy_(pinned, non_blocking=True)
            copy_cache(dst, src, 1, 2, batch_dim=1)
            src[0].fill_(0)
            torch.npu.synchronize()
        assert_same_bytes(dst, expected)

    def test_the_arguments_are_copied_during_the_call(self) -> None:
        """The device is late, and what was made for the call is gone."""
        held = scattered(5, 7, 64)
        copies = [((i + 1) % 7, i, 0, -1) for i in range(7)]
        expected = reference_batch(held, held, copies)
        with ascend_sim.stall_device(0):
            copy_cache_batch(held, held, table(copies))
            others = [torch.empty(7 * 64 * 5, dtype=torch.float32, device="npu") for _ in range(8)]
            for other in others:
                other.fill_(7)  # on the stream, after the copies
        torch.npu.synchronize()
        assert_same_bytes(held, expected)

    @pytest.mark.parametrize("copies", [[(1, 2, 0, -1)], [(i + 1, i, 0, -1) for i in range(6)]])
    def test_captured(self, copies: list) -> None:
        held = scattered(5, 7, 64)
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph):
            copy_cache_batch(held, held, table(copies))
        for seed in (3, 4):
            for index, tensor in enumerate(held):
                tensor.copy_(filled(7, 64, seed=seed + index))
            expected = reference_batch(held, held, copies)
            graph.replay()
            torch.npu.synchronize()
            assert_same_bytes(held, expected)
        assert ascend_sim.work("aclrtMemcpy2d").calls == 0

    def test_blocking_copies_use_it_too(self) -> None:
        dst, src = (scattered(5, 7, 64, seed=seed) for seed in (0, 1))
        expected = reference_copy(dst, src, 1, 2)
        cost = made(lambda: PATIENT.copy_cache(Cache.from_tensors(dst), Cache.from_tensors(src), 1, 2))
        assert cost == launches(1)
        assert_same_bytes(dst, expected)


class TestChoice:
    @pytest.mark.parametrize(("rows", "launched"), [(2, 0), (160, 1)])
    def test_where_it_is_expected_to_be_faster(self, rows: int, launched: int) -> None:
        dst, src = (scattered(rows, 4, 64, seed=seed, backward=bool(seed)) for seed in (0, 1))
        with kernel_in_use(KernelUse.WHERE_FASTER):
            assert checked_copy(dst, src, 1, 2).launches == launched

    def test_a_kernel_that_is_not_approved_is_not_used(self) -> None:
        dst, src = (scattered(160, 4, 64, seed=seed) for seed in (0, 1))
        with kernel_in_use(KernelUse.NEVER):
            assert checked_copy(dst, src, 1, 2).launches == 0

    def test_the_check_finds_wrong_copies(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with kernel_in_use(KernelUse.NEVER):
            warm_up.check_kernel(0)
            warm_up.use_kernel(0, KernelUse.NEVER)
            # A kernel that copies elements of one byte where four are meant.
            warm_up.load_kernel(0, stand_in(1), stand_in(1), stand_in(1), 32_768)
            with pytest.raises(RuntimeError, match="wrong"):
                warm_up.check_kernel(0)
            dst, src = (scattered(160, 4, 64, seed=seed) for seed in (0, 1))
            assert checked_copy(dst, src, 1, 2).launches == 0

    @pytest.mark.parametrize("function", ["aclrtBinaryLoadFromData", "aclrtBinaryGetFunction", "aclrtGetDeviceInfo"])
    def test_what_cannot_be_loaded_is_said(self, function: str) -> None:
        ascend_sim.fail_call(function, CODE)
        with pytest.raises(RuntimeError, match=f"{function} .* failed with code {CODE}"), kernel_in_use():
            pass

    def test_no_kernel_before_cann_8_5(self) -> None:
        program = """
from kernel_stand_in import load_stand_in
torch.zeros(1, device="npu")
load_stand_in()
"""
        failed = run_python(program, ASCEND_SIM_CANN="8.1", code=1)
        assert "this version of CANN has no aclrtLaunchKernelWithHostArgs" in failed.stderr


class TestFaults:
    """In processes of their own: the queue of torch_npu drops all that follows."""

    PROGRAM = """
from kernel_stand_in import kernel_in_use
from npu_utils import scattered
from utils import copy_cache
dst, src = scattered(5, 7, 64), scattered(5, 7, 64, seed=1)
with kernel_in_use():
    torch.npu.synchronize()
    ascend_sim.{fault}
    try:
        copy_cache(dst, src, 1, 2)
        torch.npu.synchronize()
    except RuntimeError as error:
        print(error)
    ascend_sim.reset()
"""

    def test_a_refused_launch(self) -> None:
        done = run_python(self.PROGRAM.format(fault=f"fail_call({LAUNCH!r}, {CODE})"), TASK_QUEUE_ENABLE="0")
        assert f"copy_cache: {LAUNCH} of 5 programs with" in done.stdout
        assert f"failed with code {CODE}" in done.stdout

    def test_a_failed_task(self) -> None:
        done = run_python(self.PROGRAM.format(fault=f"fail_task({LAUNCH!r}, {CODE})"), ASCEND_SIM_CANN="9.1")
        assert str(CODE) in done.stdout


@given(calls(batch=True))
def test_any_call_by_the_kernel(call: Call) -> None:
    ranges = call.ranges()
    if ranges is None or any(call.reasons()) or writers(ranges) is None or min(call.storage_bytes) < BUFFER_BYTES:
        return
    whole = [filled(BUFFER_BYTES, dtype=torch.uint8, seed=seed) for seed in range(BUFFERS)]
    buffers: list[Tensor] = [buffer.npu() for buffer in whole]
    dst, src = call.tensors(buffers)
    with kernel_in_use(), torch.no_grad():
        copy_cache_batch(dst, src, table(call.copies), batch_dim=call.batch_dim)
    assert_same_bytes(buffers, apply(ranges, whole))


class TestWarmUp:
    """Without triton-ascend. With it: tests/kernel/test_kernel_and_op.py."""

    @pytest.fixture(autouse=True)
    def no_triton(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "triton", None)

    def test_what_is_missing_is_said(self, caplog: pytest.LogCaptureFixture) -> None:
        assert not llm_datadist_torch.warm_up()
        assert caplog.messages == [
            "warm_up: copies within the NPU do not use the kernel: triton-ascend is not installed"
        ]

    def test_always(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLM_DATADIST_KERNEL", "always")
        with pytest.raises(RuntimeError, match="triton-ascend is not installed"):
            llm_datadist_torch.warm_up()

    def test_never(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setenv("LLM_DATADIST_KERNEL", "never")
        assert not llm_datadist_torch.warm_up()
        assert caplog.messages == []

    def test_another_word(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLM_DATADIST_KERNEL", "1")
        with pytest.raises(ValueError, match="expected LLM_DATADIST_KERNEL to be never or always, got 1"):
            llm_datadist_torch.warm_up()
