# SPDX-License-Identifier: Apache-2.0
"""Copies within one cache or buffer, and copies large enough for several threads."""

import pytest
import torch
from utils import assert_same_bytes, cache, check_copy, copy_cache, filled, to_host


class TestSameCache:
    """dst and src may be one cache. The result is as if every source were read before any destination is written."""

    @pytest.mark.parametrize(("dst_index", "src_index"), [(0, 3), (3, 0), (2, 2)])
    def test_row_to_row(self, device: str, dst_index: int, src_index: int) -> None:
        tensors, stacked = cache(3, 4, 8, device=device), filled(5, 4, 8, device=device)
        check_copy(tensors, tensors, dst_index, src_index, 4, 20)
        check_copy([stacked], [stacked], dst_index, src_index, batch_dim=1)

    def test_row_to_row_of_interleaved_layers(self, device: str) -> None:
        layers = list(filled(4, 5, 6, device=device).unbind(1))
        check_copy(layers, layers, 3, 1)

    def test_only_the_first_range_is_in_place(self, device: str) -> None:
        buffer = filled(80, dtype=torch.uint8, device=device)
        expected = to_host(buffer)
        expected[16:24], expected[32:40] = expected[24:32].clone(), expected[48:56].clone()
        dst, src = (buffer.as_strided((3, 1, 8), (pitch, 8, 1)) for pitch in (16, 24))
        copy_cache([dst], [src], batch_dim=1)
        assert_same_bytes([buffer], [expected])

    def test_range_in_place_that_another_copy_reads(self, device: str) -> None:
        a, b = filled(4, 8, device=device), filled(4, 8, device=device, seed=1)
        check_copy([a, b], [a, a], 1, 1)

    @pytest.mark.parametrize("shift", [1, -1, 4, -4, 31, -31])
    def test_ranges_that_partly_overlap_their_sources(self, device: str, shift: int) -> None:
        buffer = filled(6, 200, dtype=torch.uint8, device=device)
        for rows in (1, 6):
            expected = to_host(buffer)
            expected[:rows, 50 + shift : 82 + shift] = expected[:rows, 50:82].clone()
            dst, src = (buffer[:rows, begin : begin + 32].unsqueeze(1) for begin in (50 + shift, 50))
            copy_cache([dst], [src], batch_dim=1)
            assert_same_bytes([buffer], [expected])

    @pytest.mark.parametrize("shift", [1, -1, 64, -4096])
    @pytest.mark.parametrize("size", [5_000, 1_000_000])
    @pytest.mark.parametrize("rows", [1, 3])
    def test_large_ranges_that_partly_overlap_their_sources(self, size: int, shift: int, rows: int) -> None:
        """Large enough for several threads, and for a wrong direction of the copy to show."""
        buffer = filled(rows, size + 10_000, dtype=torch.uint8)
        expected = buffer.clone()
        expected[:, 5_000 + shift : 5_000 + shift + size] = buffer[:, 5_000 : 5_000 + size]
        dst, src = (buffer[:, start : start + size].unsqueeze(1) for start in (5_000 + shift, 5_000))
        copy_cache([dst], [src], batch_dim=1)
        assert_same_bytes([buffer], [expected])

    def test_disjoint_slices_of_one_buffer_with_other_strides(self, device: str) -> None:
        """src ranges begin at 4, 12, 20, 28 and dst ranges at 0, 16, 32, 48: they interleave without overlap."""
        buffer = filled(64, dtype=torch.uint8, device=device)
        expected = to_host(buffer)
        dst, src = (buffer.as_strided((4, 1, 2), (pitch, 2, 1), begin) for pitch, begin in ((16, 0), (8, 4)))
        expected.as_strided((4, 1, 2), (16, 2, 1), 0).copy_(to_host(src))
        copy_cache([dst], [src], batch_dim=1)
        assert_same_bytes([buffer], [expected])


class TestLargeCopies:
    """From 2 MiB on several threads copy: sizes around every border between their parts."""

    @pytest.mark.parametrize(
        ("count", "row_bytes"),
        [
            *((1, size) for size in (262_144, 2_097_151, 2_097_152, 5_000_001, 17_000_001)),
            *((3, 1_000_003), (160, 16_381), (7, 331_777), (2, 3_000_000)),
        ],
    )
    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_copied_by_several_threads(self, count: int, row_bytes: int, threads: int) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            dst, src = (cache(count, 2, row_bytes, dtype=torch.uint8, seed=seed) for seed in (0, 1))
            check_copy(dst, src, 1, 0, 1)
        finally:
            torch.set_num_threads(before)

    def test_a_copy_needs_no_memory(self) -> None:
        def peak() -> int:
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

        size = 128 * 2**20
        dst, src = (torch.full((2, size), seed, dtype=torch.uint8) for seed in (0, 1))
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")  # resets the peak to the resident memory
        before = peak()
        copy_cache([dst], [src], 1, 0)
        overlapping = dst[:, 1:].as_strided((2, size - 1), (size, 1), 1)
        copy_cache([dst], [overlapping], 0, 0, 0, size - 1)
        assert peak() - before < size // 8
        assert dst[1].all()
