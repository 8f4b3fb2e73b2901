# SPDX-License-Identifier: Apache-2.0
"""The calls that reach the runtime and the tasks that they put on the stream, on every profile of the runtime."""

from __future__ import annotations

from collections.abc import Callable

import ascend_sim
import pytest
import torch
from ascend_sim import MemcpyKind
from npu_utils import Made, batched, checked_batch, checked_copy, run_forked, scattered, strided, within
from torch import Tensor
from utils import assert_same_bytes, cache, copy_cache, filled, reference_copy, whole_rows

pytestmark = pytest.mark.simulated

Lists = tuple[list[Tensor], list[Tensor]]


def stacked(*shape: int, dtype: torch.dtype = torch.float32) -> Lists:
    return tuple([filled(*shape, dtype=dtype, device="npu", seed=seed)] for seed in (0, 1))


def views(*shape: int) -> Lists:
    return tuple(list(filled(*shape, device="npu", seed=seed)) for seed in (0, 1))


def separate(count: int, *shape: int, backward: bool = False) -> Lists:
    return scattered(count, *shape), scattered(count, *shape, seed=1, backward=backward)


def on_host(count: int, *shape: int, backward: bool = False) -> list[Tensor]:
    return scattered(count, *shape, device="cpu", seed=1, pinned=True, backward=backward)


def stacked_on_host(*shape: int) -> list[Tensor]:
    return [filled(*shape, seed=1).pin_memory()]


@pytest.mark.profiles
class TestARow:
    @pytest.mark.parametrize(
        ("make", "batch_dim", "made"),
        [
            (lambda: stacked(160, 4, 64), 1, within(strided=1, rows=160)),
            (lambda: views(160, 4, 64), 0, within(strided=1, rows=160)),
            (lambda: separate(160, 4, 64, backward=True), 0, within(plain=160)),
            (lambda: separate(160, 4, 64), 0, within(strided=80, rows=160)),
            (lambda: (stacked(160, 4, 64)[0], stacked_on_host(160, 4, 64)), 1, strided(1)),
            (lambda: (stacked_on_host(160, 4, 64), stacked(160, 4, 64)[0]), 1, strided(1)),
            (lambda: (scattered(40, 4, 16), on_host(40, 4, 16, backward=True)), 0, batched(40)),
            (lambda: (on_host(40, 4, 16), scattered(40, 4, 16, backward=True)), 0, batched(40)),
            (lambda: (scattered(4100, 4, 16), on_host(4100, 4, 16, backward=True)), 0, batched(4096, 4)),
        ],
        ids=[
            *("stacked", "views", "scattered", "pairs at equal distances"),
            *("stacked from host", "stacked to host", "scattered from host", "scattered to host", "above 4096 copies"),
        ],
    )
    def test_of_each_tensor(self, make: Callable[[], Lists], batch_dim: int, made: Made) -> None:
        assert checked_copy(*make(), 3, 1, batch_dim=batch_dim) == made

    def test_of_one_tensor_on_the_host_is_one_plain_call(self) -> None:
        assert checked_copy(scattered(1, 4, 16), on_host(1, 4, 16)) == Made(plain=1, tasks=1)

    def test_whole_rows_without_gaps_are_one_plain_call(self) -> None:
        assert checked_copy(*views(160, 1, 64)) == within(plain=1)

    def test_row_onto_itself_is_no_call(self) -> None:
        tensors = cache(3, 4, 8, device="npu")
        assert checked_copy(tensors, tensors, 2, 2) == Made()

    def test_allocations_of_the_host_are_not_strided_over(self) -> None:
        """Two tensors are always at equal distances. The runtime has no strided copy of several allocations."""
        assert checked_copy(views(2, 4, 16)[0], [t.pin_memory() for t in cache(2, 4, 16, seed=1)], 3, 1) == batched(2)


class TestLimits:
    """A strided copy is at most 5,000,000 bytes wide and 32,768 rows high. (The runtime takes 5,242,880 rows.)"""

    @pytest.mark.profiles
    @pytest.mark.unaligned
    @pytest.mark.parametrize(("offset", "made"), [(0, within(plain=2)), (1, within(strided=1, rows=2))])
    def test_width(self, offset: int, made: Made) -> None:
        assert checked_copy(*stacked(2, 2, 5_000_001, dtype=torch.uint8), 1, 0, offset, batch_dim=1) == made

    @pytest.mark.profiles
    @pytest.mark.parametrize(("height", "calls"), [(32_768, 1), (32_769, 2)])
    def test_height(self, height: int, calls: int) -> None:
        dst, src = stacked(height, 2, 16)[0], stacked_on_host(height, 2, 16)
        assert checked_copy(dst, src, 1, 0, batch_dim=1) == strided(calls)

    @pytest.mark.parametrize("shift", [4, -4])
    def test_no_call_overlaps_itself(self, shift: int) -> None:
        buffer = filled(200, dtype=torch.uint8, device="npu")
        made = checked_copy([buffer[50 + shift : 82 + shift].view(1, 32)], [buffer[50:82].view(1, 32)])
        assert made == within(plain=2)
        for copy in ascend_sim.copies():
            assert copy.dst + copy.width <= copy.src or copy.src + copy.width <= copy.dst

    def test_copies_above_1_gib_are_split(self) -> None:
        """The runtime writes a length of 4 GiB as 0. The stalled device moves no bytes."""
        done = run_forked("""
from npu_utils import *
dst, src = (torch.empty(1, 5 * 2**30 + 1, dtype=torch.uint8, device="npu") for _ in range(2))
torch.npu.synchronize()
ascend_sim.reset()
with ascend_sim.stall_device(0):
    copy_cache([dst], [src])
    wait_for_copies(6)
    parts = [(copy.dst - dst.data_ptr(), copy.src - src.data_ptr(), copy.width) for copy in ascend_sim.copies()]
    os.write(1, repr(parts).encode())
    os._exit(0)
""")
        assert done.stdout == f"{[(part * 2**30, part * 2**30, 2**30 if part < 5 else 1) for part in range(6)]}"


@pytest.mark.profiles
@pytest.mark.unaligned
class TestPitches:
    """Leading dimensions become one strided copy if and only if the widest range fits into both pitches."""

    def test_src_rows_longer_than_the_dst_pitch(self) -> None:
        dst, src = filled(16, 1, 8, dtype=torch.uint8, device="npu"), filled(16, 2, 16, dtype=torch.uint8, device="npu")
        assert checked_batch([dst], [src], [(0, 1, 0, 8)], batch_dim=1) == within(strided=1, rows=16)

    def test_merged_rows_wider_than_the_src_pitch(self) -> None:
        src = filled(64, dtype=torch.uint8, device="npu").as_strided((3, 4, 8), (8, 8, 1))
        dst = filled(3, 4, 8, dtype=torch.uint8, device="npu", seed=1)
        copies = [(row, row, 0, -1) for row in range(4)]
        assert checked_batch([dst], [src], copies, batch_dim=1) == within(plain=3)

    def test_rows_that_fit_a_pitch_only_one_by_one(self) -> None:
        """A leading dimension inside the batch. Both rows together are wider than its pitch."""
        dst, src = (filled(4, 3, 8, dtype=torch.uint8, device="npu", seed=seed).transpose(0, 1) for seed in (0, 1))
        copies = [(0, 0, 0, -1), (2, 3, 0, -1)]
        assert checked_batch([dst], [src], copies, batch_dim=1) == within(strided=2, rows=6)


@pytest.mark.profiles
@pytest.mark.unaligned
class TestBatches:
    """Only ranges of one width, at one distance on each side, become one strided copy."""

    @pytest.mark.parametrize(
        ("copies", "made"),
        [
            ([(0, 1, 0, 8), (2, 4, 0, 8), (4, 7, 0, 8)], within(strided=1, rows=3)),
            ([(0, 1, 0, 8), (2, 4, 0, 8), (5, 7, 0, 8)], within(strided=1, rows=2, plain=1)),
            ([(0, 1, 0, 8), (2, 4, 0, 8), (4, 6, 0, 8)], within(strided=1, rows=2, plain=1)),
            ([(0, 1, 0, 8), (2, 4, 0, 8), (4, 7, 0, 4)], within(strided=1, rows=2, plain=1)),
            ([(0, 7, 0, 8), (2, 4, 0, 8), (4, 1, 0, 8)], within(plain=3)),
            ([(0, 1, 0, 8), (2, 1, 0, 8), (4, 1, 0, 8)], within(plain=3)),
        ],
        ids=["equal", "dst", "src", "width", "backward", "one source"],
    )
    def test_of_one_tensor(self, copies: list[tuple[int, ...]], made: Made) -> None:
        assert checked_batch(*stacked(8, 16, dtype=torch.uint8), copies) == made

    def test_strided_over_rows_or_over_layers(self) -> None:
        """Whichever is fewer. Over rows: one run in the first pair, three in each of four layers of the second. Over
        layers: 3 and 9."""
        copies = [(row, row, 0, -1) for row in (0, 1, 2, 6, 7, 8, 12, 13, 14)]
        dst, src = (
            [filled(1, 16, 8, device="npu", seed=seed), filled(4, 16, 16, device="npu", seed=seed)[:, :, :8]]
            for seed in (0, 1)
        )
        assert checked_batch(dst, src, copies, batch_dim=1) == within(strided=1 + 9, rows=3 + 36)

    @pytest.mark.parametrize("piece", [1000, 10])
    def test_neighbours_are_merged(self, piece: int) -> None:
        """1,000 blocks in pieces, in any order: a strided copy for each piece of all 16 tensors."""
        pieces = torch.randperm(1000 // piece, generator=torch.Generator().manual_seed(0))
        source = torch.cat([torch.arange(start, start + piece) for start in (piece * pieces).tolist()])
        tensors = [filled(16, 2000, 4, device="npu")]
        copies = whole_rows(torch.arange(1000, 2000), source)[torch.randperm(1000)].tolist()
        made = within(strided=1000 // piece, rows=16 * 1000 // piece)
        assert checked_batch(tensors, tensors, copies, batch_dim=1) == made

    @pytest.mark.parametrize("to_host", [True, False])
    def test_blocks_between_host_and_device(self, to_host: bool) -> None:
        """64 blocks anywhere in 160 tensors: a task for each block of a stacked cache, one for each copy of a list."""
        copies = [(block, 127 - 2 * block, 0, -1) for block in range(64)]
        on_npu, of_host = stacked(160, 128, 16)[0], stacked_on_host(160, 128, 16)
        pair = (of_host, on_npu) if to_host else (on_npu, of_host)
        assert checked_batch(*pair, copies, batch_dim=1) == strided(64)
        on_npu, of_host = scattered(5, 128, 16), on_host(5, 128, 16, backward=True)
        pair = (of_host, on_npu) if to_host else (on_npu, of_host)
        widths = [(to, of, offset, 32 + offset) for to, of, offset, _ in copies for offset in (to % 2,)]
        assert checked_batch(*pair, widths) == batched(5 * 64)

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


class TestRefusals:
    """Other calls replace a function that the runtime refuses. It is not called again for that direction."""

    @pytest.mark.parametrize("code", [100000, 207000], ids=["parameter", "not supported"])
    @pytest.mark.parametrize(
        ("name", "make", "counts"),
        [
            ("aclrtMemcpy2dAsync", "stacked(6, 4, 8)[0], stacked_on_host(6, 4, 8)", "1 0 0 1\n1 0 0 1\n2 0 1 0\n"),
            (
                "aclrtMemcpyBatchAsync",
                "scattered(6, 4, 8), on_host(6, 4, 8, backward=True)",
                "1 6 0 0\n1 6 0 0\n2 0 0 1\n",
            ),
        ],
    )
    def test_a_refusal_is_remembered(self, name: str, make: str, counts: str, code: int) -> None:
        done = run_forked(f"""
from npu_utils import *
from test_calls import *
from utils import check_copy
dst, src = {make}
torch.npu.synchronize()
ascend_sim.reset()
ascend_sim.fail_call("{name}", {code})
for pair in ((dst, src), (dst, src), (src, dst)):
    before = runtime_calls()
    check_copy(*pair, 3, 1, batch_dim=dst[0].dim() - 2)
    print(ascend_sim.call_counts()["{name}"], *(runtime_calls() - before)[:3])
""")
        assert done.stdout == counts, done.stderr
        assert done.stderr.count(f"does not support {name} host to device (code {code})") == 1, done.stderr

    def test_strided_rows_of_several_allocations(self) -> None:
        """The runtime refuses them as a parameter. That says nothing of other copies."""
        dst, src = scattered(6, 4, 8), scattered(6, 4, 8, device="cpu", pinned=True, seed=1)
        expected = reference_copy(dst, src, 3, 1)
        ascend_sim.fail_call("aclrtMemcpy2dAsync", 107000)
        copy_cache(dst, src, 3, 1)
        assert_same_bytes(dst, expected)
        assert checked_copy(stacked(6, 4, 8)[0], stacked_on_host(6, 4, 8), 3, 1, batch_dim=1) == strided(1)
