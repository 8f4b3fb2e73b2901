# SPDX-License-Identifier: Apache-2.0
"""copy_cache_batch on the NPU: number of commands, staging, capture."""

from __future__ import annotations

import ascend_sim
import pytest
import torch
from ascend_sim import MemcpyKind
from npu_utils import checked_batch, scattered
from torch import Tensor
from utils import (
    assert_same_bytes,
    cache,
    copy_cache_batch,
    filled,
    nothing_written,
    reference_batch,
    to_host,
    whole_rows,
)

TENSORS, COPIES = 160, 1000


def merged_ranges(copies: Tensor) -> int:
    """The number of ranges after whole rows that are adjacent in dst and in src have been merged."""
    pairs = sorted(map(tuple, copies[:, :2].tolist()))
    return sum(
        index == 0 or pair != (pairs[index - 1][0] + 1, pairs[index - 1][1] + 1) for index, pair in enumerate(pairs)
    )


def patterns() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(COPIES)
    shuffled = torch.randperm(COPIES, generator=generator)
    pieces = torch.cat([rows[start : start + 10] for start in 10 * torch.randperm(COPIES // 10, generator=generator)])
    return {
        "neighbours": whole_rows(rows + COPIES, rows),
        "neighbours in any order": whole_rows(rows + COPIES, rows)[shuffled],
        "pieces of ten": whole_rows(rows + COPIES, pieces),
        "anywhere": whole_rows(rows + COPIES, shuffled),
    }


def moved_bytes() -> int:
    """The bytes of the copies within the device since the last reset."""
    return sum(copy.width * copy.height for copy in ascend_sim.copies() if copy.kind == MemcpyKind.DEVICE_TO_DEVICE)


@pytest.mark.simulated
class TestPitches:
    """Leading dimensions become one strided copy if and only if the widest range fits into both pitches."""

    def test_src_rows_longer_than_the_dst_pitch(self) -> None:
        dst, src = filled(16, 1, 8, dtype=torch.uint8, device="npu"), filled(16, 2, 16, dtype=torch.uint8, device="npu")
        assert checked_batch([dst], [src], [(0, 1, 0, 8)], batch_dim=1) == {"aclrtMemcpy2dAsync": 1}

    def test_merged_rows_wider_than_the_src_pitch(self) -> None:
        src = filled(64, dtype=torch.uint8, device="npu").as_strided((3, 4, 8), (8, 8, 1))
        dst = filled(3, 4, 8, dtype=torch.uint8, device="npu", seed=1)
        copies = [(row, row, 0, -1) for row in range(4)]
        assert checked_batch([dst], [src], copies, batch_dim=1) == {"aclrtMemcpyAsync": 3}

    def test_rows_that_fit_a_pitch_only_one_by_one(self) -> None:
        """A leading dimension inside the batch. Both rows together are wider than its pitch."""
        dst, src = (filled(4, 3, 8, dtype=torch.uint8, device="npu", seed=seed).transpose(0, 1) for seed in (0, 1))
        copies = [(0, 0, 0, -1), (2, 3, 0, -1)]
        assert checked_batch([dst], [src], copies, batch_dim=1) == {"aclrtMemcpy2dAsync": 2}


@pytest.mark.simulated
class TestRuns:
    """Only ranges of one width, at one distance on each side, become one strided copy."""

    @pytest.mark.parametrize(
        ("copies", "calls"),
        [
            ([(0, 1, 0, 8), (2, 4, 0, 8), (4, 7, 0, 8)], {"aclrtMemcpy2dAsync": 1}),
            ([(0, 1, 0, 8), (2, 4, 0, 8), (5, 7, 0, 8)], {"aclrtMemcpy2dAsync": 1, "aclrtMemcpyAsync": 1}),
            ([(0, 1, 0, 8), (2, 4, 0, 8), (4, 6, 0, 8)], {"aclrtMemcpy2dAsync": 1, "aclrtMemcpyAsync": 1}),
            ([(0, 1, 0, 8), (2, 4, 0, 8), (4, 7, 0, 4)], {"aclrtMemcpy2dAsync": 1, "aclrtMemcpyAsync": 1}),
            ([(0, 7, 0, 8), (2, 4, 0, 8), (4, 1, 0, 8)], {"aclrtMemcpyAsync": 3}),
            ([(0, 1, 0, 8), (2, 1, 0, 8), (4, 1, 0, 8)], {"aclrtMemcpyAsync": 3}),
        ],
        ids=["equal", "dst", "src", "width", "backward", "one source"],
    )
    def test_of_one_tensor(self, copies: list[tuple[int, ...]], calls: dict[str, int]) -> None:
        dst, src = (filled(8, 16, dtype=torch.uint8, device="npu", seed=seed) for seed in (0, 1))
        assert checked_batch([dst], [src], copies) == calls

    def test_strided_over_layers_where_that_is_fewer(self) -> None:
        """Over rows: one run in the first pair, and three in each of four layers of the second. Over layers: 3 + 9."""
        copies = [(row, row, 0, -1) for row in (0, 1, 2, 6, 7, 8, 12, 13, 14)]
        dst, src = (
            [filled(1, 16, 8, device="npu", seed=seed), filled(4, 16, 16, device="npu", seed=seed)[:, :, :8]]
            for seed in (0, 1)
        )
        calls = checked_batch(dst, src, copies, batch_dim=1)
        assert calls == {"aclrtMemcpyAsync": 3, "aclrtMemcpy2dAsync": 9}


class TestThousandBlocks:
    @pytest.mark.simulated
    @pytest.mark.parametrize("pattern", patterns())
    def test_stacked(self, pattern: str) -> None:
        copies = patterns()[pattern]
        stacked = filled(TENSORS, 2 * COPIES, 4, device="npu")
        calls = checked_batch([stacked], [stacked], copies.tolist(), batch_dim=1)
        assert calls == {"aclrtMemcpy2dAsync": merged_ranges(copies)}
        assert moved_bytes() == TENSORS * COPIES * 16

    def test_patterns_merge_to_different_numbers_of_ranges(self) -> None:
        """The patterns above test what their names say."""
        assert [merged_ranges(copies) for copies in patterns().values()] == [1, 1, 100, 998]

    @pytest.mark.simulated
    @pytest.mark.parametrize("pattern", ["neighbours in any order", "pieces of ten"])
    def test_separate_tensors(self, pattern: str) -> None:
        copies = patterns()[pattern]
        tensors = scattered(16, 2 * COPIES, 2)
        calls = checked_batch(tensors, tensors, copies.tolist())
        assert sum(calls.values()) <= merged_ranges(copies) * 16

    @pytest.mark.simulated
    @pytest.mark.parametrize("to_device", [True, False])
    def test_between_pinned_host_memory_and_the_device(self, to_device: bool) -> None:
        copies = patterns()["pieces of ten"] - torch.tensor([COPIES, 0, 0, 0])
        on_npu, on_host = scattered(4, COPIES, 2), scattered(4, COPIES, 2, device="cpu", seed=1, pinned=True)
        dst, src = (on_npu, on_host) if to_device else (on_host, on_npu)
        calls = checked_batch(dst, src, copies.tolist())
        assert sum(calls.values()) <= merged_ranges(copies) * 4
        assert set(calls) <= {"aclrtMemcpyBatchAsync", "aclrtMemcpy2dAsync", "aclrtMemcpyAsync"}


@pytest.mark.simulated
class TestStaging:
    """Stacked: 3 tensors, 6 rows of 32 bytes."""

    @pytest.mark.parametrize(
        ("pairs", "staged"),
        [
            ([(1, 0), (2, 1), (3, 2), (4, 3)], 0),
            ([(0, 1), (1, 2), (2, 3)], 0),
            ([(0, 1), (1, 0)], 1),
            ([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0)], 1),
            ([(0, 1), (1, 0), (2, 3), (3, 2), (4, 0), (5, 1)], 2),
            ([(0, 0), (1, 1)], None),
        ],
    )
    def test_only_cycles_are_staged(self, pairs: list[tuple[int, int]], staged: int | None) -> None:
        stacked = filled(3, 6, 8, device="npu")
        checked_batch([stacked], [stacked], [(dst, src, 0, -1) for dst, src in pairs], batch_dim=1)
        assert moved_bytes() == 3 * 32 * (0 if staged is None else len(pairs) + staged)


class TestCapture:
    @pytest.mark.assumption(
        "A captured batch is replayed on the bytes that are there then, and owns its staging buffer"
    )
    @pytest.mark.parametrize("make", [lambda: [filled(3, 4, 8, device="npu")], lambda: scattered(3, 4, 8)])
    def test_graph_owns_its_copies_and_its_staging_buffer(self, make: object) -> None:
        held = make()
        batch_dim = held[0].dim() - 2
        copies = torch.tensor([(0, 1, 0, -1), (1, 2, 0, -1), (2, 0, 0, -1), (3, 0, 4, 8)])
        rows = copies.tolist()
        graph = torch.npu.NPUGraph()
        before = [to_host(tensor) for tensor in held]
        with torch.npu.graph(graph):
            copy_cache_batch(held, held, copies, batch_dim=batch_dim)
        copies.fill_(-7)  # they were read at capture
        torch.npu.synchronize()
        assert_same_bytes(held, before)
        others = [torch.empty(2**20, dtype=torch.uint8, device="npu") for _ in range(4)]
        for _ in range(3):
            expected = reference_batch(held, held, rows, batch_dim=batch_dim)
            for other in others:
                other.copy_(
                    torch.full((2**20,), 255, dtype=torch.uint8)
                )  # none may get the staging buffer of the graph
            graph.replay()
            torch.npu.synchronize()
            assert_same_bytes(held, expected)

    def test_pageable_memory_is_refused(self) -> None:
        dst, src = cache(2, 4, 8, device="npu"), cache(2, 4, 8)
        graph = torch.npu.NPUGraph()
        with pytest.raises(ValueError, match="expected src to be in pinned memory"), torch.npu.graph(graph):
            copy_cache_batch(dst, src, torch.tensor([(0, 1, 0, -1)]))


@pytest.mark.simulated
def test_order_on_the_stream() -> None:
    """After earlier work and before later work, without a wait in between."""
    held = filled(2, 4, 8, device="npu")
    first, last = (filled(2, 4, 8, seed=seed) for seed in (5, 6))
    pinned = [t.pin_memory() for t in (first, last)]
    swap = torch.tensor([(0, 1, 0, -1), (1, 0, 0, -1)])
    with ascend_sim.stall_device():
        held.copy_(pinned[0], non_blocking=True)
        copy_cache_batch([held], [held], swap, batch_dim=1)
        result = torch.empty_like(held)
        result.copy_(held, non_blocking=True)
        held.copy_(pinned[1], non_blocking=True)
    torch.npu.synchronize()
    assert_same_bytes([result], reference_batch([first], [first], swap.tolist(), batch_dim=1))
    assert_same_bytes([held], [last])


@pytest.mark.parametrize("device", ["npu", "cpu"])
def test_copies_on_the_device_are_refused(device: str) -> None:
    """Reading them would wait for the device."""
    dst, src = cache(2, 4, 8, device=device), cache(2, 4, 8, device=device, seed=1)
    copies = torch.tensor([(1, 0, 0, -1)]).to("npu")
    with nothing_written(*dst, *src), pytest.raises(ValueError, match="expected copies on the CPU, got npu:0"):
        copy_cache_batch(dst, src, copies)
