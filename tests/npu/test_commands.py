# SPDX-License-Identifier: Apache-2.0
"""The commands that reach the runtime: how many, how large, and what replaces one that the runtime refuses."""

from __future__ import annotations

from collections.abc import Callable

import ascend_sim
import pytest
import torch
from ascend_sim import MemcpyKind
from npu_utils import CODE, checked_batch, checked_copy, run_forked, run_python, scattered
from torch import Tensor
from utils import TESTS, assert_same_bytes, cache, copy_cache, filled, reference_copy, whole_rows

pytestmark = pytest.mark.simulated

PLAIN, STRIDED, BATCH = "aclrtMemcpyAsync", "aclrtMemcpy2dAsync", "aclrtMemcpyBatchAsync"
Lists = tuple[list[Tensor], list[Tensor]]


def stacked(*shape: int, dtype: torch.dtype = torch.float32) -> Lists:
    return tuple([filled(*shape, dtype=dtype, device="npu", seed=seed)] for seed in (0, 1))


def views(*shape: int) -> Lists:
    return tuple(list(filled(*shape, device="npu", seed=seed)) for seed in (0, 1))


def separate(count: int, *shape: int, backward: bool = False) -> Lists:
    return scattered(count, *shape), scattered(count, *shape, seed=1, backward=backward)


def on_host(count: int, *shape: int, backward: bool = False) -> list[Tensor]:
    return scattered(count, *shape, device="cpu", seed=1, pinned=True, backward=backward)


class TestHowMany:
    @pytest.mark.parametrize(
        ("make", "batch_dim", "calls"),
        [
            (lambda: stacked(160, 4, 64), 1, {STRIDED: 1}),
            (lambda: views(160, 4, 64), 0, {STRIDED: 1}),
            (lambda: separate(160, 4, 64, backward=True), 0, {PLAIN: 160}),
            (lambda: separate(160, 4, 64), 0, {STRIDED: 80}),
            (lambda: (scattered(40, 4, 8), on_host(40, 4, 8)), 0, {BATCH: 1}),
            (lambda: (on_host(40, 4, 8), scattered(40, 4, 8)), 0, {BATCH: 1}),
            (lambda: (scattered(4100, 4, 1), on_host(4100, 4, 1, backward=True)), 0, {BATCH: 2}),
        ],
        ids=["stacked", "views", "scattered", "pairs at equal distances", "from host", "to host", "above 4096 copies"],
    )
    def test_a_row(self, make: Callable[[], Lists], batch_dim: int, calls: dict[str, int]) -> None:
        assert checked_copy(*make(), 3, 1, batch_dim=batch_dim) == calls

    def test_whole_rows_without_gaps_are_one_plain_copy(self) -> None:
        assert checked_copy(*views(160, 1, 64)) == {PLAIN: 1}

    def test_row_onto_itself_is_no_command(self) -> None:
        tensors = cache(3, 4, 8, device="npu")
        assert checked_copy(tensors, tensors, 2, 2) == {}


class TestLimits:
    """A strided copy is at most 5,000,000 bytes wide and 5,242,880 rows high."""

    @pytest.mark.parametrize(
        ("shape", "offset", "calls"),
        [
            ((2, 2, 5_000_001), 0, {PLAIN: 2}),
            ((2, 2, 5_000_001), 1, {STRIDED: 1}),
            ((5_242_881, 2, 1), 0, {STRIDED: 2}),
            ((5_242_880, 2, 1), 0, {STRIDED: 1}),
        ],
        ids=["too wide", "wide enough", "too high", "low enough"],
    )
    def test_strided_copy(self, shape: tuple[int, ...], offset: int, calls: dict[str, int]) -> None:
        assert checked_copy(*stacked(*shape, dtype=torch.uint8), 1, 0, offset, batch_dim=1) == calls

    @pytest.mark.parametrize("shift", [4, -4])
    def test_no_command_overlaps_itself(self, shift: int) -> None:
        buffer = filled(200, dtype=torch.uint8, device="npu")
        assert checked_copy([buffer[50 + shift : 82 + shift].view(1, 32)], [buffer[50:82].view(1, 32)]) == {PLAIN: 2}
        for copy in ascend_sim.copies():
            assert copy.dst + copy.width <= copy.src or copy.src + copy.width <= copy.dst

    def test_copies_above_1_gib_are_split(self) -> None:
        """The runtime writes a length of 4 GiB as 0. Checks the parts without moving bytes: each task fails before that."""
        dst, src = (torch.empty(1, 5 * 2**30 + 1, dtype=torch.uint8, device="npu") for _ in range(2))
        torch.npu.synchronize()
        ascend_sim.reset()
        for nth in range(1, 7):
            ascend_sim.fail_task(PLAIN, CODE, nth)
        copy_cache([dst], [src])
        with pytest.raises(RuntimeError):
            torch.npu.synchronize()
        parts = [(copy.dst - dst.data_ptr(), copy.src - src.data_ptr(), copy.width) for copy in ascend_sim.copies()]
        assert parts == [(part * 2**30, part * 2**30, 2**30 if part < 5 else 1) for part in range(6)]


class TestPitches:
    """Leading dimensions become one strided copy if and only if the widest range fits into both pitches."""

    def test_src_rows_longer_than_the_dst_pitch(self) -> None:
        dst, src = filled(16, 1, 8, dtype=torch.uint8, device="npu"), filled(16, 2, 16, dtype=torch.uint8, device="npu")
        assert checked_batch([dst], [src], [(0, 1, 0, 8)], batch_dim=1) == {STRIDED: 1}

    def test_merged_rows_wider_than_the_src_pitch(self) -> None:
        src = filled(64, dtype=torch.uint8, device="npu").as_strided((3, 4, 8), (8, 8, 1))
        dst = filled(3, 4, 8, dtype=torch.uint8, device="npu", seed=1)
        assert checked_batch([dst], [src], [(row, row, 0, -1) for row in range(4)], batch_dim=1) == {PLAIN: 3}

    def test_rows_that_fit_a_pitch_only_one_by_one(self) -> None:
        """A leading dimension inside the batch. Both rows together are wider than its pitch."""
        dst, src = (filled(4, 3, 8, dtype=torch.uint8, device="npu", seed=seed).transpose(0, 1) for seed in (0, 1))
        assert checked_batch([dst], [src], [(0, 0, 0, -1), (2, 3, 0, -1)], batch_dim=1) == {STRIDED: 2}


class TestBatches:
    """Only ranges of one width, at one distance on each side, become one strided copy."""

    @pytest.mark.parametrize(
        ("copies", "calls"),
        [
            ([(0, 1, 0, 8), (2, 4, 0, 8), (4, 7, 0, 8)], {STRIDED: 1}),
            ([(0, 1, 0, 8), (2, 4, 0, 8), (5, 7, 0, 8)], {STRIDED: 1, PLAIN: 1}),
            ([(0, 1, 0, 8), (2, 4, 0, 8), (4, 6, 0, 8)], {STRIDED: 1, PLAIN: 1}),
            ([(0, 1, 0, 8), (2, 4, 0, 8), (4, 7, 0, 4)], {STRIDED: 1, PLAIN: 1}),
            ([(0, 7, 0, 8), (2, 4, 0, 8), (4, 1, 0, 8)], {PLAIN: 3}),
            ([(0, 1, 0, 8), (2, 1, 0, 8), (4, 1, 0, 8)], {PLAIN: 3}),
        ],
        ids=["equal", "dst", "src", "width", "backward", "one source"],
    )
    def test_of_one_tensor(self, copies: list[tuple[int, ...]], calls: dict[str, int]) -> None:
        assert checked_batch(*stacked(8, 16, dtype=torch.uint8), copies) == calls

    def test_strided_over_rows_or_over_layers(self) -> None:
        """Whichever is fewer. Over rows: one run in the first pair, three in each of four layers of the second. Over
        layers: 3 and 9."""
        copies = [(row, row, 0, -1) for row in (0, 1, 2, 6, 7, 8, 12, 13, 14)]
        dst, src = (
            [filled(1, 16, 8, device="npu", seed=seed), filled(4, 16, 16, device="npu", seed=seed)[:, :, :8]]
            for seed in (0, 1)
        )
        assert checked_batch(dst, src, copies, batch_dim=1) == {STRIDED: 1 + 9}

    @pytest.mark.parametrize("piece", [1000, 10])
    def test_neighbours_are_merged(self, piece: int) -> None:
        """1,000 blocks in pieces, in any order: a strided copy for each piece of all 16 tensors."""
        pieces = torch.randperm(1000 // piece, generator=torch.Generator().manual_seed(0))
        source = torch.cat([torch.arange(start, start + piece) for start in (piece * pieces).tolist()])
        tensors = [filled(16, 2000, 4, device="npu")]
        copies = whole_rows(torch.arange(1000, 2000), source)[torch.randperm(1000)].tolist()
        assert checked_batch(tensors, tensors, copies, batch_dim=1) == {STRIDED: 1000 // piece}

    @pytest.mark.parametrize(
        ("pairs", "staged"),
        [
            ([(1, 0), (2, 1), (3, 2), (4, 3)], 0),
            ([(0, 1), (1, 2), (2, 3)], 0),
            ([(0, 1), (1, 0)], 1),
            ([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0)], 1),
            ([(0, 1), (1, 0), (2, 3), (3, 2), (4, 0), (5, 1)], 2),
        ],
    )
    def test_only_cycles_are_staged(self, pairs: list[tuple[int, int]], staged: int) -> None:
        held = [filled(3, 6, 8, device="npu")]
        checked_batch(held, held, [(dst, src, 0, -1) for dst, src in pairs], batch_dim=1)
        within = [copy for copy in ascend_sim.copies() if copy.kind == MemcpyKind.DEVICE_TO_DEVICE]
        assert sum(copy.width * copy.height for copy in within) == 3 * 32 * (len(pairs) + staged)


class TestFallbacks:
    """Plain copies replace a command that the runtime refuses or does not have."""

    @pytest.mark.parametrize("code", [100000, 107000, 207000], ids=["parameter", "runtime parameter", "not supported"])
    @pytest.mark.parametrize("name", [STRIDED, BATCH])
    def test_refused(self, name: str, code: int) -> None:
        dst, src = views(6, 4, 8) if name == STRIDED else (scattered(6, 4, 8), on_host(6, 4, 8, backward=True))
        expected = reference_copy(dst, src, 3, 1)
        ascend_sim.fail_call(name, code)
        copy_cache(dst, src, 3, 1)
        assert_same_bytes(dst, expected)

    PROGRAM = """
from npu_utils import *
from test_commands import *
host = on_host(6, 4, 8, backward=True)
print(checked_copy(*stacked(6, 4, 8), 3, 1, batch_dim=1), checked_copy(scattered(6, 4, 8), host, 3, 1))
"""

    def test_a_runtime_without_the_newer_functions(self) -> None:
        done = run_python(self.PROGRAM, LD_LIBRARY_PATH=str(TESTS / "ascend_sim/build/old-cann"))
        assert done.stdout == f"{ ({PLAIN: 6}) } { ({PLAIN: 6}) }\n", done.stderr

    def test_a_chip_without_strided_device_copies(self) -> None:
        done = run_forked(self.PROGRAM, ASCEND_SIM_SOC="Ascend310P3")
        assert done.stdout == f"{ ({STRIDED: 1, PLAIN: 6}) } { ({PLAIN: 6, BATCH: 1}) }\n", done.stderr
