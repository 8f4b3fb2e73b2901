# SPDX-License-Identifier: Apache-2.0
"""Graph capture and compiled graphs on NPU tensors."""

import pytest
import torch
from npu_utils import check_one_replay, scattered
from torch import Tensor
from utils import assert_same_bytes, cache, copy_cache, copy_cache_batch, filled, reference_batch, reference_copy
from versions import NPUGRAPH_EX

from llm_datadist_torch import Cache, CacheManager, LLMException, LLMStatusCode

SMALL = (4, 64)
SWAPS = [torch.tensor([(to, of, 0, -1), (of, to, 0, -1)]) for to, of in ((0, 1), (2, 3), (1, 3))]


def write(tensors: list[Tensor], seed: int) -> None:
    for index, tensor in enumerate(tensors):
        tensor.copy_(filled(*tensor.shape, seed=seed + index))


class TestNPUGraph:
    @pytest.mark.assumption("A captured copy is replayed on the bytes that are there then")
    @pytest.mark.parametrize(
        "make", [lambda seed: cache(3, *SMALL, device="npu", seed=seed), lambda seed: scattered(9, *SMALL, seed=seed)]
    )
    def test_replays_on_new_data(self, make: object) -> None:
        dst, src = make(0), make(1)
        graph = torch.npu.NPUGraph()
        before = reference_copy(dst, dst)
        with torch.npu.graph(graph):
            copy_cache(dst, src, 1, 2)
        torch.npu.synchronize()
        assert_same_bytes(dst, before)  # capture runs nothing
        for seed in (10, 20):
            write(src, seed)
            expected = reference_copy(dst, src, 1, 2)
            graph.replay()
            torch.npu.synchronize()
            assert_same_bytes(dst, expected)

    def test_range_that_partly_overlaps_its_source(self) -> None:
        buffer = filled(1, 200, device="npu")
        dst, src = [buffer[:, 10:110]], [buffer[:, :100]]
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph):
            copy_cache(dst, src)
        write([buffer], 5)
        expected = reference_copy(dst, src)
        graph.replay()
        torch.npu.synchronize()
        assert_same_bytes(dst, expected)

    @pytest.mark.assumption("A copy between pinned memory and the device can be captured")
    @pytest.mark.parametrize("to_device", [True, False])
    def test_pinned_host_memory(self, to_device: bool) -> None:
        on_npu, on_host = cache(2, *SMALL, device="npu"), [t.pin_memory() for t in cache(2, *SMALL, seed=1)]
        dst, src = (on_npu, on_host) if to_device else (on_host, on_npu)
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph):
            copy_cache(dst, src, 1, 2)
        write(src, 7)
        torch.npu.synchronize()
        expected = reference_copy(dst, src, 1, 2)
        graph.replay()
        torch.npu.synchronize()
        assert_same_bytes(dst, expected)

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
    def test_aot_eager(self) -> None:
        def function(dst: list[Tensor], src: list[Tensor], row: int) -> None:
            copy_cache(dst, src, row, 1)

        dst, src = cache(2, *SMALL, device="npu"), cache(2, *SMALL, device="npu", seed=1)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for row in (2, 3, 0):
            expected = reference_copy(dst, src, row, 1)
            compiled(dst, src, row)
            assert_same_bytes(dst, expected)

    def check_npugraph_ex(self, dst: list[Tensor], src: list[Tensor], batch_dim: int, function: object) -> None:
        """Compiles and calls. From the second call on, each is one graph replay without a copy command."""
        compiled = torch.compile(function, fullgraph=True, backend="npugraph_ex", dynamic=False)
        compiled()
        for seed in (3, 4, 5):
            write(src, seed)
            expected = reference_copy(dst, src, 3, 1, batch_dim=batch_dim)
            check_one_replay(compiled)
            assert_same_bytes(dst, expected)

    @pytest.mark.simulated
    @pytest.mark.skipif(not NPUGRAPH_EX, reason="its torchair binds functions of CANN that are not simulated")
    def test_npugraph_ex_with_caches(self) -> None:
        """Cache objects mark the addresses of their tensors as static, so users need not."""
        dst, src = (Cache.from_tensors(filled(3, *SMALL, device="npu", seed=seed), batch_dim=1) for seed in (0, 1))

        def function() -> None:
            copy_cache(dst.tensors, src.tensors, 3, 1, batch_dim=dst.batch_dim)

        self.check_npugraph_ex(dst.tensors, src.tensors, 1, function)

    @pytest.mark.simulated
    @pytest.mark.skipif(not NPUGRAPH_EX, reason="its torchair binds functions of CANN that are not simulated")
    def test_npugraph_ex_with_bare_tensors(self) -> None:
        """As docs/contract.md tells users who hold the tensors themselves."""
        dst, src = cache(2, *SMALL, device="npu"), cache(2, *SMALL, device="npu", seed=1)
        for tensor in dst + src:
            torch._dynamo.mark_static_address(tensor)

        def function() -> None:
            copy_cache(dst, src, 3, 1)

        self.check_npugraph_ex(dst, src, 0, function)

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

    def test_batches_in_aot_eager(self) -> None:
        self.run_batches(SWAPS, "aot_eager")

    @pytest.mark.skipif(not NPUGRAPH_EX, reason="its torchair binds functions of CANN that are not simulated")
    def test_npugraph_ex_with_the_same_copies(self) -> None:
        self.run_batches([SWAPS[0]] * 3, "npugraph_ex")

    @pytest.mark.xfail(strict=True, reason="npugraph_ex captures once for all values of a tensor on the host")
    def test_npugraph_ex_with_other_copies(self) -> None:
        """A limit of npugraph_ex that docs/contract.md documents."""
        self.run_batches(SWAPS, "npugraph_ex")
