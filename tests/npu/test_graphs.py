# SPDX-License-Identifier: Apache-2.0
"""Graph capture and compiled graphs on NPU tensors."""

import pytest
import torch
from npu_utils import scattered
from torch import Tensor
from utils import (
    assert_same_bytes,
    cache,
    copy_cache,
    copy_cache_batch,
    filled,
    reference_batch,
    reference_copy,
    to_host,
)
from versions import NPUGRAPH_EX

from llm_datadist_torch import (
    Cache,
    CacheManager,
    LLMException,
    LLMStatusCode,
    copy_blocks,
    copy_tokens,
    swap_blocks,
)

SMALL = (4, 64)
SWAPS = [torch.tensor([(to, of, 0, -1), (of, to, 0, -1)]) for to, of in ((0, 1), (2, 3), (1, 3))]

needs_npugraph_ex = pytest.mark.skipif(
    not NPUGRAPH_EX, reason="its torchair binds functions of CANN that are not simulated"
)


def write(tensors: list[Tensor], seed: int) -> None:
    for index, tensor in enumerate(tensors):
        tensor.copy_(filled(*tensor.shape, seed=seed + index))


class TestNPUGraph:
    def check(self, dst: list[Tensor], src: list[Tensor], *rows: int) -> None:
        graph = torch.npu.NPUGraph()
        before = [to_host(tensor) for tensor in dst]
        with torch.npu.graph(graph):
            copy_cache(dst, src, *rows)
        torch.npu.synchronize()
        assert_same_bytes(dst, before)  # capture runs nothing
        for seed in (10, 20):
            write(src, seed)
            torch.npu.synchronize()
            expected = reference_copy(dst, src, *rows)
            graph.replay()
            torch.npu.synchronize()
            assert_same_bytes(dst, expected)

    @pytest.mark.assumption("A captured copy is replayed on the bytes that are there then")
    @pytest.mark.parametrize(
        "make", [lambda seed: cache(3, *SMALL, device="npu", seed=seed), lambda seed: scattered(9, *SMALL, seed=seed)]
    )
    def test_replays_on_new_data(self, make: object) -> None:
        self.check(make(0), make(1), 1, 2)

    def test_range_that_partly_overlaps_its_source(self) -> None:
        buffer = filled(1, 200, device="npu")
        self.check([buffer[:, 10:110]], [buffer[:, :100]], 0, 0)

    @pytest.mark.assumption("A copy between pinned memory and the device can be captured")
    @pytest.mark.parametrize("to_device", [True, False])
    def test_pinned_host_memory(self, to_device: bool) -> None:
        on_npu, on_host = cache(2, *SMALL, device="npu"), [t.pin_memory() for t in cache(2, *SMALL, seed=1)]
        self.check(*((on_npu, on_host) if to_device else (on_host, on_npu)), 1, 2)

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
        with torch.npu.graph(graph):
            copy_cache_batch(held, held, copies, batch_dim=batch_dim)
        copies.fill_(-7)  # they were read at capture
        others = [torch.empty(2**20, dtype=torch.uint8, device="npu") for _ in range(4)]
        for _ in range(3):
            expected = reference_batch(held, held, rows, batch_dim=batch_dim)
            for other in others:  # none may get the staging buffer of the graph
                other.copy_(torch.full((2**20,), 255, dtype=torch.uint8))
            graph.replay()
            torch.npu.synchronize()
            assert_same_bytes(held, expected)

    def test_blocks_and_tokens(self) -> None:
        """The functions over the ops: what they make for a call lives no longer than the capture."""
        held, host = cache(2, 4, 2, 8, 3, device="npu"), [t.pin_memory() for t in cache(2, 4, 2, 8, 3, seed=1)]

        def call(caches: list[Tensor], other: list[Tensor]) -> None:
            copy_blocks(caches, [(0, 1), (1, 0)])
            copy_tokens(caches, caches, [(1, 2), (2, 3)], slice(2, 5), token_dim=2)
            swap_blocks(caches, other, torch.tensor([(3, 0), (1, 2)]))

        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph):
            call(held, host)
        for seed in (10, 20):
            write(held, seed)
            torch.npu.synchronize()
            on_cpu, other = [to_host(tensor) for tensor in held], [to_host(tensor) for tensor in host]
            call(on_cpu, other)
            graph.replay()
            torch.npu.synchronize()
            assert_same_bytes([*held, *host], [*on_cpu, *other])

    @pytest.mark.parametrize("name", ["dst", "src"])
    def test_pageable_host_memory_is_refused(self, name: str) -> None:
        on_npu, on_host = cache(2, *SMALL, device="npu"), cache(2, *SMALL, seed=1)
        dst, src = (on_host, on_npu) if name == "dst" else (on_npu, on_host)
        with (
            torch.npu.graph(torch.npu.NPUGraph()),
            pytest.raises(ValueError, match=f"expected {name} to be in pinned memory, as a graph is being captured"),
        ):
            copy_cache(dst, src, 1, 2)

    def test_the_blocking_call_is_refused(self) -> None:
        held = Cache.from_tensors(cache(2, *SMALL, device="npu"))
        with torch.npu.graph(torch.npu.NPUGraph()), pytest.raises(LLMException, match="cannot be captured") as failure:
            CacheManager().copy_cache(held, held, 1, 2)
        assert failure.value.status_code is LLMStatusCode.LLM_FAILED


@pytest.mark.usefixtures("fresh_dynamo")
class TestCompile:
    """Batches, blocks and tokens. See test_order.py for single copies."""

    def run_batches(self, batches: list[Tensor], backend: str) -> None:
        held = Cache.from_tensors(filled(3, *SMALL, device="npu"), batch_dim=1)

        def function(copies: Tensor) -> None:
            copy_cache_batch(held.tensors, held.tensors, copies, batch_dim=1)

        compiled = torch.compile(function, fullgraph=True, backend=backend, dynamic=False)
        for seed, copies in enumerate(batches):
            write(held.tensors, seed)
            expected = reference_batch(held.tensors, held.tensors, copies.tolist(), batch_dim=1)
            compiled(copies)
            torch.npu.synchronize()
            assert_same_bytes(held.tensors, expected)

    def test_aot_eager(self) -> None:
        self.run_batches(SWAPS, "aot_eager")

    @needs_npugraph_ex
    def test_npugraph_ex_with_the_same_copies(self) -> None:
        self.run_batches([SWAPS[0]] * 3, "npugraph_ex")

    @pytest.mark.parametrize("backend", ["aot_eager", pytest.param("npugraph_ex", marks=needs_npugraph_ex)])
    def test_blocks_and_tokens(self, backend: str) -> None:
        held = cache(2, 4, 2, 8, 3, device="npu")

        def function(tensors: list[Tensor], pairs: Tensor, stop: int) -> None:
            copy_tokens(tensors, tensors, pairs, slice(1, stop), token_dim=2)
            copy_blocks(tensors, [(0, 1), (1, 0)])

        pairs, compiled = (
            torch.tensor([(0, 1), (1, 2), (3, 0)]),
            torch.compile(function, fullgraph=True, backend=backend),
        )
        for stop in (4, 4, 7):
            on_cpu = [to_host(tensor) for tensor in held]
            function(on_cpu, pairs, stop)
            compiled(held, pairs, stop)
            torch.npu.synchronize()
            assert_same_bytes(held, on_cpu)

    @pytest.mark.xfail(strict=True, reason="npugraph_ex captures once for all values of a tensor on the host")
    def test_npugraph_ex_with_other_copies(self) -> None:
        """A limit of npugraph_ex that docs/contract.md documents."""
        self.run_batches(SWAPS, "npugraph_ex")
