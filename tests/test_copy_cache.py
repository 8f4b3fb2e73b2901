# SPDX-License-Identifier: Apache-2.0
"""What both ops copy, compared with the plain PyTorch reference. See test_refusals.py for refused calls."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from utils import (
    assert_same_bytes,
    cache,
    check_batch,
    check_copy,
    copy_cache,
    filled,
    intra_op_threads,
    reference_copy,
)


@pytest.mark.parametrize(
    "numbers", [(), (0, 1), (1, 0), (3, 1), *((1, 0, 0, -1, req) for req in (0, 7, -1, 2**63 - 1))]
)
def test_rows(device: str, numbers: tuple[int, ...]) -> None:
    check_copy(cache(3, 4, 8, device=device), cache(3, 2, 8, device=device, seed=1), *numbers)


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 1), (1, 1), (3, 7), (0, 32), (5, 27), (31, 1), (0, -1), (5, -1), (31, -1)]
)
def test_byte_ranges(device: str, offset: int, size: int) -> None:
    check_copy(cache(3, 4, 8, device=device), cache(3, 4, 8, device=device, seed=1), 2, 1, offset, size)


def layouts(device: str) -> dict[str, tuple[list[Tensor], list[Tensor], int]]:
    """dst, src and batch_dim by what is special about them."""

    def one(*shape: int, seed: int = 0) -> Tensor:
        return filled(*shape, device=device, seed=seed)

    def several(count: int, *shape: int) -> list[Tensor]:
        return cache(count, *shape, device=device, seed=9)

    def both(view: object, *shape: int) -> tuple[list[Tensor], list[Tensor]]:
        return [view(one(*shape))], [view(one(*shape, seed=1))]

    def parts(begins: tuple[int, int], shape: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor]]:
        """Views of one buffer, from these bytes on."""
        buffer = filled(160, dtype=torch.uint8, device=device)
        return tuple([buffer[begin:][: torch.Size(shape).numel()].view(shape)] for begin in begins)

    def ranges(width: int, *sides: tuple[int, int]) -> tuple[list[Tensor], list[Tensor]]:
        """Three ranges of one buffer for each side, from this byte on, at this distance."""
        buffer = filled(80, dtype=torch.uint8, device=device)
        return tuple([buffer[begin:].as_strided((3, 1, width), (pitch, width, 1))] for begin, pitch in sides)

    layers, more_layers, tokens = one(7, 4, 6), one(7, 4, 6, seed=1), one(4, 5, 6)
    stack, swapped = one(3, 8, 4), several(2, 4, 8)
    transposed = one(4, 3, 5, 2).transpose(0, 1)
    padded, plain = [one(4, 8), one(4, 16)[:, :8]], several(2, 4, 8)
    ranks = [[a.as_strided((4, 8, 2), (16, 1, 8)), b[:, :8]] for a, b in (several(2, 4, 16), several(2, 4, 16))]
    return {
        # Rows
        "shorter rows of src": (several(2, 4, 8), several(2, 4, 5), 0),
        "rows of other shapes": ([one(4, 2, 6)], [one(4, 3, 4)], 0),
        "rows of one element": ([one(5)], [one(5, seed=1)], 0),
        "tensors of several shapes": (
            [one(6, 8), one(4, 3), one(7, 2, 2)],
            [one(6, 8, seed=1), one(5, 3, seed=1), one(6, 4, seed=1)],
            0,
        ),
        "rows further apart than their size": ([one(4, 16)[:, 3:11]], [one(6, 10)[:, 1:9]], 0),
        "every second row": ([one(8, 6)[1::2]], [one(8, 6, seed=1)[::2]], 0),
        "permuted dimensions in a row": (*both(lambda t: t.transpose(1, 2), 4, 3, 5), 0),
        # A product with such a stride could overflow, which UndefinedBehaviorSanitizer reports.
        "a batch of one with any stride": ([one(1, 8).as_strided((1, 8), (1, 1))], [one(4, 8, seed=1)], 0),
        "a row dimension of one with any stride": (*both(lambda t: t.as_strided((4, 1, 8), (16, 3, 1)), 4, 16), 0),
        "a leading dimension of one with any stride": (*both(lambda t: t.as_strided((1, 2, 4), (2**62, 4, 1)), 8), 1),
        # Lists
        "many tensors": (several(300, 2, 6)[::-1], several(300, 3, 6), 0),
        "tensors that differ in strides": (padded, plain, 0),
        "sources that differ in strides": (plain, padded, 0),
        # The second one begins like the first, and its rows are shorter.
        "tensors that differ in rank": (*ranks, 0),
        "one source for many": (several(3, 4, 8), [one(2, 8)] * 3, 0),
        "interleaved layers": (list(one(4, 5, 6).unbind(1)), list(one(4, 5, 6, seed=1).unbind(1)), 0),
        **{
            f"layers of one buffer, {order}": ([layers[i] for i in order], [more_layers[i] for i in order], 0)
            for order in ((0, 1, 2, 3), (3, 2, 1, 0), (3, 0, 6, 1))
        },
        # Dimensions before the batch, which act like separate tensors
        "stacked": ([one(5, 4, 8)], [one(5, 2, 8, seed=1)], 1),
        **{
            f"stacked, {d} and {s} rows": ([one(5, d, 8)], [one(5, s, 8, seed=1)], 1)
            for d, s in ((1, 2), (2, 1), (1, 1))
        },
        "keys and values": (several(3, 2, 6, 4), several(3, 2, 6, 4), 1),
        "the batch is the last dimension": (*both(lambda t: t, 3, 4), 1),
        "heads before the batch": (*both(lambda t: t.transpose(0, 1), 4, 3, 5, 2), 1),
        "a broadcast source": ([one(3, 4, 8)], [one(2, 8).expand(3, 2, 8)], 1),
        **{
            f"two leading dimensions, {order}": (
                *both(lambda t, order=order: t.permute(order), *((2, 3, 4, 6)[order.index(dim)] for dim in range(4))),
                2,
            )
            for order in ((0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 1, 3), (2, 1, 0, 3))
        },
        # dst and src in one buffer
        "one list": (plain, plain, 0),
        "one stack": ([stack], [stack], 1),
        "one cache of interleaved layers": (list(tokens.unbind(1)), list(tokens.unbind(1)), 0),
        "one cache of heads before the batch": ([transposed], [transposed], 1),
        "two parts of one stack": ([stack[:, :4]], [stack[:, 4:]], 1),
        "tensors swapped between the lists": (swapped, swapped[::-1], 0),
        "ranges of which only the first is in place": (*ranges(8, (0, 16), (0, 24)), 1),
        "ranges that interleave": (*ranges(4, (0, 16), (4, 8)), 1),
        **{f"rows {shift} bytes on": (*parts((0, shift), (8, 8)), 0) for shift in (1, 7, 8, 12)},
    }


@pytest.mark.parametrize("name", layouts("cpu"))
def test_layouts(device: str, name: str) -> None:
    dst, src, batch_dim = layouts(device)[name]
    batch = min(tensor.shape[batch_dim] for tensor in dst + src)
    last = (batch - 1, min(1, batch - 1))
    check_copy(dst, src, *last, batch_dim=batch_dim)
    check_copy(dst, src, *last[::-1], 1, 3, batch_dim=batch_dim)
    cycle = [(row, (row + 1) % batch, 0, -1) for row in range(batch)]
    check_batch(dst, src, cycle, batch_dim=batch_dim)


class TestRangesThatOverlapTheirSources:
    """The result is as if every source were read before any destination is written."""

    @pytest.mark.parametrize("shift", [1, -1, 4, -4, 31, -31])
    @pytest.mark.parametrize("rows", [1, 6])
    def test_small(self, device: str, shift: int, rows: int) -> None:
        buffer = filled(rows, 200, dtype=torch.uint8, device=device)
        check_copy(*([buffer[:, begin : begin + 32].unsqueeze(1)] for begin in (50 + shift, 50)), batch_dim=1)

    @pytest.mark.parametrize("shift", [1, -1, 64, -4096])
    @pytest.mark.parametrize("size", [5_000, 1_000_000])
    @pytest.mark.parametrize("rows", [1, 3])
    def test_large(self, size: int, shift: int, rows: int) -> None:
        """Large enough for several threads, and for a wrong direction of the copy to show."""
        buffer = filled(rows, size + 10_000, dtype=torch.uint8)
        check_copy(*([buffer[:, begin:][:, :size].unsqueeze(1)] for begin in (5_000 + shift, 5_000)), batch_dim=1)

    def test_range_in_place_that_another_copy_reads(self, device: str) -> None:
        a, b = cache(2, 4, 8, device=device)
        check_copy([a, b], [a, a], 1, 1)


@pytest.mark.parametrize(
    ("count", "row_bytes"),
    [
        *((1, size) for size in (262_144, 2_097_151, 2_097_152, 5_000_001, 17_000_001)),
        *((3, 1_000_003), (160, 16_381), (7, 331_777), (2, 3_000_000)),
    ],
)
def test_large_copies(count: int, row_bytes: int) -> None:
    """From 2 MiB on several threads copy: sizes around every border between their parts."""
    for threads in (1, 2, 3):
        dst, src = (cache(count, 2, row_bytes, dtype=torch.uint8, seed=seed) for seed in (0, 1))
        with intra_op_threads(threads):
            check_copy(dst, src, 1, 0, 1)


@contextmanager
def needs_no_memory() -> Iterator[None]:
    def peak() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")  # resets the peak to the resident memory
    before = peak()
    yield
    assert peak() - before < 16 * 2**20


def test_a_copy_needs_no_memory() -> None:
    dst, src = (torch.full((2, 128 * 2**20), seed, dtype=torch.uint8) for seed in (0, 1))
    with needs_no_memory():
        copy_cache([dst], [src], 1, 0)
    assert dst[1].all()


def test_many_indices_of_a_leading_dimension_need_no_memory() -> None:
    """Each index is a place of its own: places are not listed, whether the call is refused or legal."""
    count = 2**24
    dst, src = torch.zeros(2 * count, dtype=torch.uint8), torch.ones(1, dtype=torch.uint8)
    one, twice = (
        src.as_strided((count, 1, 1), (0, 1, 1)),
        dst.as_strided((count // 2, count // 2, 1, 1), (1, 1, 1, 1)),
    )
    with needs_no_memory():
        for overlapping, batch_dim in ((dst.as_strided((count, 1, 1), (0, 1, 1)), 1), (twice, 2)):
            with pytest.raises(ValueError, match=r"the ranges of dst\[0\] overlap one another"):
                copy_cache([overlapping], [overlapping], batch_dim=batch_dim)
        copy_cache([dst.view(count, 1, 2)], [one], 0, 0, 0, 1, batch_dim=1)
    assert dst.view(count, 2).sum(0).tolist() == [count, 0]


def test_timeouts_that_no_clock_reaches(device: str) -> None:
    dst, src = [filled(4, 8, device=device)], [filled(4, 8, device=device, seed=1)]
    expected = reference_copy(dst, src, 1, 2)
    for timeout_ms in (2**31, 2**62, 2**63 - 1):
        assert torch.ops.llm_datadist._copy_cache_blocking(
            dst, src, 1, 2, 0, -1, None, batch_dim=0, timeout_ms=timeout_ms
        )
    assert_same_bytes(dst, expected)
