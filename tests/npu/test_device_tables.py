# SPDX-License-Identifier: Apache-2.0
"""copy_cache_batch with `copies` on the NPU: the kernel, which a library of the host stands in for, reads them."""

import ascend_sim
import pytest
import torch
from byte_model import HOSTILE
from kernel_stand_in import kernel_in_use
from npu_utils import Made, check_one_replay, made, scattered
from torch import Tensor
from utils import assert_same_bytes, cache, copy_cache_batch, filled, reference_batch, table
from versions import NPUGRAPH_EX

from llm_datadist_torch import skipped_rows

pytestmark = pytest.mark.simulated

PERMUTATION = [((5 * row + 1) % 7, row, 0, -1) for row in range(7)]


@pytest.fixture(autouse=True)
def kernel() -> object:
    with kernel_in_use():
        yield


def check(dst: list[Tensor], src: list[Tensor], copies: list, launches: int, outside: int = 0) -> None:
    """Compares with the reference, which is given the first rows only where the others are outside the caches."""
    dim = dst[0].dim() - 2
    expected = reference_batch(dst, src, copies[: len(copies) - outside], batch_dim=dim)
    on_device, before = table(copies).npu(), skipped_rows()
    cost = made(lambda: copy_cache_batch(dst, src, on_device, batch_dim=dim))
    assert cost == Made(launches=launches)
    assert_same_bytes(dst, expected)
    assert skipped_rows() - before == outside


class TestBytes:
    @pytest.mark.parametrize("make", [scattered, lambda *shape, seed=0: [filled(*shape, device="npu", seed=seed)]])
    def test_between_caches(self, make: object) -> None:
        dst, src = make(6, 9, 50), make(6, 9, 50, seed=1)
        check(dst, src, [(3, 1, 0, -1), (0, 8, 4, 7), (4, 8, 8, 100)], launches=1)

    def test_rows_longer_than_a_tile(self) -> None:
        dst, src = ([filled(2, 3, 70_001, dtype=torch.uint8, device="npu", seed=seed)] for seed in (0, 1))
        check(dst, src, [(1, 2, 0, -1), (0, 0, 5, 65_000)], launches=1)

    def test_rows_of_two_sizes(self) -> None:
        dst, src = (scattered(2, 4, 24, seed=seed) + scattered(2, 4, 5, seed=seed + 2) for seed in (0, 1))
        check(dst, src, [(0, 1, 0, -1), (2, 3, 4, 12)], launches=1)

    @pytest.mark.parametrize("copies", [PERMUTATION, [(i + 1, i, 4, 100) for i in range(6)]])
    def test_sources_are_read_before_destinations_are_written(self, copies: list) -> None:
        held = scattered(5, 7, 64)
        check(held, held, copies, launches=2)

    def test_offsets_for_each_side(self) -> None:
        held = [torch.arange(20, dtype=torch.uint8).view(2, 10).npu()]
        copy_cache_batch(held, held, torch.tensor([[0, 0, 0, 4, 3], [1, 0, 2, -1, 8]]).npu())
        assert held[0].tolist() == [[3, 4, 5, 6, *range(4, 10)], [10, 11, 8, 9, *range(14, 20)]]

    @pytest.mark.parametrize("shared", [False, True])
    def test_rows_outside_the_caches_are_skipped_and_counted(self, shared: bool) -> None:
        """Every number in turn, at its limits and far outside. The memory next to the caches is that of others."""
        buffer = filled(3, 8, 64, dtype=torch.uint8, device="npu")
        dst = [buffer[1, 2:6]]
        src = dst if shared else [filled(4, 64, dtype=torch.uint8, device="npu", seed=1)]
        wrong = [(to, 1, 0, 8) for to in (4, -1, *HOSTILE)] + [(1, of, 0, 8) for of in (4, -1, *HOSTILE)]
        wrong += [(1, 2, at, 8) for at in (57, 64, -1, *HOSTILE)] + [(1, 2, 64, -1)]
        wrong += [(1, 2, 8, size) for size in (0, 57, -2, *HOSTILE) if size != -1]
        before = buffer.cpu()
        check(dst, src, [(0, 3, 1, 63), *wrong], launches=1 + shared, outside=len(wrong))
        after = buffer.cpu()
        after[1, 2] = before[1, 2]
        assert torch.equal(after, before)

    def test_no_copies(self) -> None:
        held = cache(2, 3, 8, device="npu")
        assert made(lambda: copy_cache_batch(held, held, torch.empty(0, 4, dtype=torch.int64, device="npu"))) == Made()


class TestGraphs:
    def test_a_replay_follows_the_table(self) -> None:
        """Beam search in one captured step: the rows to keep are computed on the device, and moved."""
        held, rows = scattered(5, 4, 64), torch.arange(4).npu()
        copies = torch.zeros(4, 4, dtype=torch.int64, device="npu")
        copies[:, 3].fill_(-1)
        copies[:, 0].copy_(rows)
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph):
            copies[:, 1].copy_(rows)
            copy_cache_batch(held, held, copies)
        for order in ([1, 0, 3, 2], [2, 2, 0, 0], [3, 1, 9, 0]):
            rows.copy_(torch.tensor(order))
            expected = reference_batch(held, held, [(to, of, 0, -1) for to, of in enumerate(order) if of < 4])
            check_one_replay(graph.replay)
            assert_same_bytes(held, expected)

    @pytest.mark.parametrize("backend", ["aot_eager", *(["npugraph_ex"] if NPUGRAPH_EX else [])])
    @pytest.mark.usefixtures("fresh_dynamo")
    def test_a_compiled_graph_follows_the_table(self, backend: str) -> None:
        held = scattered(5, 4, 64)
        for tensor in held:
            torch._dynamo.mark_static_address(tensor)

        def function(copies: Tensor) -> None:
            copy_cache_batch(held, held, copies)

        compiled = torch.compile(function, fullgraph=True, backend=backend, dynamic=False)
        for to, of in ((0, 1), (2, 3), (1, 3)):
            copies = [(to, of, 0, -1), (of, to, 0, -1)]
            expected = reference_batch(held, held, copies)
            compiled(table(copies).npu())
            torch.npu.synchronize()
            assert_same_bytes(held, expected)

    def test_opcheck(self) -> None:
        dst, src = (cache(2, 3, 8, device="npu", seed=seed) for seed in (0, 1))
        checks = (
            "test_autograd_registration",
            "test_faketensor",
        )  # the others compare with operators that are not simulated
        torch.library.opcheck(copy_cache_batch, (dst, src, table([(0, 1, 0, -1)]).npu()), test_utils=checks)


class TestStreams:
    def test_the_table_is_read_when_the_copies_run(self) -> None:
        dst, src = scattered(5, 4, 64), scattered(5, 4, 64, seed=1)
        expected = reference_batch(dst, src, [(2, 3, 0, -1)])
        copies, late = torch.zeros(1, 4, dtype=torch.int64, device="npu"), table([(2, 3, 0, -1)]).pin_memory()
        torch.npu.synchronize()
        with ascend_sim.delay_tasks(5):
            copies.copy_(late, non_blocking=True)
            copy_cache_batch(dst, src, copies)
            copies.fill_(0)
            torch.npu.synchronize()
        assert_same_bytes(dst, expected)


class TestRefusals:
    def refused(self, match: str, dst: list[Tensor], src: list[Tensor], copies: Tensor) -> None:
        with pytest.raises(ValueError, match=match):
            copy_cache_batch(dst, src, copies)

    def test_caches_elsewhere(self) -> None:
        on_npu, on_host = cache(2, 3, 8, device="npu"), [tensor.pin_memory() for tensor in cache(2, 3, 8)]
        copies = table([(0, 1, 0, -1)]).npu()
        rule = "expected dst and src on npu:0, the device of copies, got cpu"
        self.refused(rule, on_npu, on_host, copies)
        self.refused(rule, on_host, on_npu, copies)
        self.refused(rule, on_host, on_host, copies)

    def test_copies(self) -> None:
        held = cache(2, 3, 8, device="npu")
        self.refused("dtype Long", held, held, torch.zeros(1, 4, dtype=torch.int32, device="npu"))
        self.refused("shape", held, held, torch.zeros(1, 3, dtype=torch.int64, device="npu"))
        self.refused("contiguous", held, held, torch.zeros(4, 2, dtype=torch.int64, device="npu").t())
