# SPDX-License-Identifier: Apache-2.0
"""The commands that reach the runtime, and their number."""

import ascend_sim
import pytest
import torch
from npu_utils import checked_copy, run_python, scattered
from utils import TESTS, assert_same_bytes, cache, copy_cache, filled, reference_copy

pytestmark = pytest.mark.simulated

REFUSALS = {"invalid parameter": 100000, "runtime parameter": 107000, "not supported": 207000}


class TestHowMany:
    def test_stacked_cache_is_one_command(self) -> None:
        dst, src = [filled(160, 4, 64, device="npu")], [filled(160, 2, 64, device="npu")]
        assert checked_copy(dst, src, 3, 1, batch_dim=1) == {"aclrtMemcpy2dAsync": 1}

    def test_160_views_of_one_buffer_are_one_command(self) -> None:
        dst, src = list(filled(160, 4, 64, device="npu")), list(filled(160, 2, 64, device="npu", seed=1))
        assert checked_copy(dst, src, 3, 1) == {"aclrtMemcpy2dAsync": 1}

    def test_160_scattered_tensors_are_160_commands(self) -> None:
        dst, src = scattered(160, 4, 64), scattered(160, 2, 64, seed=1, backward=True)
        assert checked_copy(dst, src, 3, 1) == {"aclrtMemcpyAsync": 160}

    def test_each_pair_of_ranges_makes_a_strided_copy(self) -> None:
        assert checked_copy(scattered(160, 4, 64), scattered(160, 2, 64, seed=1), 3, 1) == {"aclrtMemcpy2dAsync": 80}

    def test_whole_rows_without_gaps_are_one_plain_copy(self) -> None:
        dst, src = list(filled(160, 1, 64, device="npu")), list(filled(160, 1, 64, device="npu", seed=1))
        assert checked_copy(dst, src) == {"aclrtMemcpyAsync": 1}

    def test_row_onto_itself_is_no_command(self) -> None:
        tensors = cache(3, 4, 8, device="npu")
        assert checked_copy(tensors, tensors, 2, 2) == {}

    @pytest.mark.parametrize("to_device", [True, False])
    def test_scattered_pinned_tensors_are_one_batch(self, to_device: bool) -> None:
        on_npu, on_host = scattered(40, 4, 8), scattered(40, 4, 8, device="cpu", seed=1, pinned=True)
        dst, src = (on_npu, on_host) if to_device else (on_host, on_npu)
        assert checked_copy(dst, src, 3, 1) == {"aclrtMemcpyBatchAsync": 1}

    def test_more_than_4096_copies_are_several_batches(self) -> None:
        on_npu = scattered(5000, 2, 4)
        on_host = scattered(5000, 2, 4, device="cpu", seed=1, pinned=True, backward=True)
        assert checked_copy(on_npu, on_host, 1, 0) == {"aclrtMemcpyBatchAsync": 2}


class TestLimits:
    def test_too_wide_for_a_strided_copy(self) -> None:
        dst, src = (filled(2, 2, 5_000_001, dtype=torch.uint8, device="npu", seed=seed) for seed in (0, 1))
        assert checked_copy([dst], [src], 1, 0, batch_dim=1) == {"aclrtMemcpyAsync": 2}

    def test_just_wide_enough_for_a_strided_copy(self) -> None:
        dst, src = (filled(2, 2, 5_000_001, dtype=torch.uint8, device="npu", seed=seed) for seed in (0, 1))
        assert checked_copy([dst], [src], 1, 0, 1, batch_dim=1) == {"aclrtMemcpy2dAsync": 1}

    def test_too_high_for_a_strided_copy(self) -> None:
        dst, src = (filled(5_242_881, 2, 1, dtype=torch.uint8, device="npu", seed=seed) for seed in (0, 1))
        assert checked_copy([dst], [src], 1, 0, batch_dim=1) == {"aclrtMemcpy2dAsync": 2}

    def test_just_low_enough_for_a_strided_copy(self) -> None:
        dst, src = (filled(5_242_880, 2, 1, dtype=torch.uint8, device="npu", seed=seed) for seed in (0, 1))
        assert checked_copy([dst], [src], 1, 0, batch_dim=1) == {"aclrtMemcpy2dAsync": 1}

    @pytest.mark.parametrize("shift", [4, -4])
    def test_no_command_overlaps_itself(self, shift: int) -> None:
        buffer = filled(200, dtype=torch.uint8, device="npu")
        torch.npu.synchronize()
        ascend_sim.reset()
        copy_cache([buffer[50 + shift : 82 + shift].view(1, 32)], [buffer[50:82].view(1, 32)])
        torch.npu.synchronize()
        assert len(ascend_sim.copies()) == 2
        for copy in ascend_sim.copies():
            assert copy.dst + copy.width <= copy.src or copy.src + copy.width <= copy.dst

    def test_copies_above_4_gib_are_split(self) -> None:
        """Checks the parts without moving their bytes: each task fails before it copies."""
        dst, src = (torch.empty(1, 5 * 2**30 + 1, dtype=torch.uint8, device="npu") for _ in range(2))
        torch.npu.synchronize()
        ascend_sim.reset()
        for nth in (1, 2):
            ascend_sim.fail_task("aclrtMemcpyAsync", 507018, nth)
        copy_cache([dst], [src])
        with pytest.raises(RuntimeError):
            torch.npu.synchronize()
        parts = [(copy.dst - dst.data_ptr(), copy.src - src.data_ptr(), copy.width) for copy in ascend_sim.copies()]
        assert parts == [(0, 0, 4 * 2**30), (4 * 2**30, 4 * 2**30, 2**30 + 1)]


class TestFallbacks:
    """Plain copies replace a command that the runtime refuses or does not have."""

    @pytest.mark.parametrize("code", REFUSALS.values(), ids=REFUSALS)
    def test_strided_copy_refused(self, code: int) -> None:
        dst, src = filled(6, 4, 64, device="npu"), filled(6, 2, 64, device="npu", seed=1)
        expected = reference_copy([dst], [src], 3, 1, batch_dim=1)
        ascend_sim.fail_call("aclrtMemcpy2dAsync", code)
        copy_cache([dst], [src], 3, 1, batch_dim=1)
        assert_same_bytes([dst], expected)

    @pytest.mark.parametrize("code", REFUSALS.values(), ids=REFUSALS)
    def test_batch_refused(self, code: int) -> None:
        dst, src = scattered(6, 4, 8), scattered(6, 4, 8, device="cpu", seed=1, pinned=True, backward=True)
        expected = reference_copy(dst, src, 3, 1)
        ascend_sim.fail_call("aclrtMemcpyBatchAsync", code)
        copy_cache(dst, src, 3, 1)
        assert_same_bytes(dst, expected)

    CODE = """
from npu_utils import *
from utils import *
dst, src = [filled(6, 4, 64, device="npu")], [filled(6, 2, 64, device="npu", seed=1)]
expected = reference_copy(dst, src, 3, 1, batch_dim=1)
host = scattered(6, 4, 8, device="cpu", pinned=True)
npu = scattered(6, 4, 8, seed=1, backward=True)
expected_npu = reference_copy(npu, host, 3, 1)
torch.npu.synchronize()
ascend_sim.reset()
copy_cache(dst, src, 3, 1, batch_dim=1)
copy_cache(npu, host, 3, 1)
print(copy_calls())
assert_same_bytes(dst, expected)
assert_same_bytes(npu, expected_npu)
"""

    def test_a_runtime_without_the_newer_functions(self) -> None:
        done = run_python(self.CODE, LD_LIBRARY_PATH=str(TESTS / "ascend_sim/build/old-cann"))
        assert done.stdout == "{'aclrtMemcpyAsync': 12}\n", done.stderr

    def test_a_chip_without_strided_device_copies(self) -> None:
        done = run_python(self.CODE, ASCEND_SIM_SOC="Ascend310P3")
        tried_once = "{'aclrtMemcpy2dAsync': 1, 'aclrtMemcpyAsync': 12, 'aclrtMemcpyBatchAsync': 1}\n"
        assert done.stdout == tried_once, done.stderr
