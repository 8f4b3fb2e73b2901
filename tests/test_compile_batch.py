# SPDX-License-Identifier: Apache-2.0
"""copy_cache_batch under torch.compile, torch.export and torch.library.opcheck."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compile_utils import OPCHECKS, assert_no_cache_is_cloned, check_compiled
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from utils import assert_same_bytes, cache, copy_cache_batch, filled, reference_batch, whole_rows

SWAP = torch.tensor([[0, 1, 0, -1], [1, 0, 0, -1], [3, 2, 4, 8]])
NONE = torch.empty(0, 4, dtype=torch.int64)


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class TestOpcheck:
    @pytest.mark.parametrize("copies", [SWAP, NONE], ids=["swap", "none"])
    def test_list(self, copies: Tensor) -> None:
        torch.library.opcheck(copy_cache_batch, (cache(3, 4, 8), cache(3, 4, 8), copies, 7), test_utils=OPCHECKS)

    def test_one_stacked_cache(self) -> None:
        stacked = filled(3, 4, 8)
        torch.library.opcheck(copy_cache_batch, ([stacked], [stacked], SWAP), {"batch_dim": 1}, test_utils=OPCHECKS[:3])
        # The last one clones each argument: two tensors where there was one.
        torch.library.opcheck(
            copy_cache_batch, ([stacked], [filled(3, 4, 8)], SWAP), {"batch_dim": 1}, test_utils=OPCHECKS
        )

    def test_blocking_op(self) -> None:
        args = (cache(2, 4, 8), cache(2, 4, 8), SWAP, None)
        op = torch.ops.llm_datadist._copy_cache_batch_blocking.default
        # It blocks, so it has no fake kernel and is not traceable.
        torch.library.opcheck(op, args, {"batch_dim": 0, "timeout_ms": 1000}, test_utils=OPCHECKS[:2])


def keys_and_values(layers: list[Tensor], copies: Tensor) -> None:
    for part in (0, 1):
        views = [kv[part] for kv in layers]
        copy_cache_batch(views, views, copies)


@pytest.mark.slow
class TestNoClone:
    @pytest.mark.parametrize(
        ("function", "args"),
        [
            (copy_cache_batch, (cache(3, 4, 8), cache(3, 4, 8, seed=1))),
            (lambda tensors, copies: copy_cache_batch(tensors, tensors, copies), (cache(3, 4, 8),)),
            (lambda stack, copies: copy_cache_batch([stack], [stack], copies, batch_dim=1), (filled(3, 4, 8),)),
            (keys_and_values, (cache(3, 2, 4, 8),)),
        ],
        ids=["two lists", "one list", "one stack", "keys and values sliced in the graph"],
    )
    def test_graph(self, function: Any, args: tuple[Any, ...]) -> None:
        assert_no_cache_is_cloned(check_compiled(function, *args, SWAP))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
class TestOrder:
    def test_copies_computed_in_the_graph(self, backend: str) -> None:
        """As in beam search: the new order depends on the scores of the same step."""

        def function(stacked: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
            beams = scores.topk(4).indices
            stacked.add_(1)
            copy_cache_batch([stacked], [stacked], whole_rows(torch.arange(4), beams), batch_dim=1)
            after = stacked * 2
            stacked.mul_(3)
            return beams, after

        check_compiled(function, torch.rand(3, 4, 8), torch.tensor([3.0, 1.0, 4.0, 2.0]), backend=backend)

    def test_clone_taken_before_a_call(self, backend: str) -> None:
        """With pytorch issue 198031, dst and its earlier clone may be one tensor in the kernel. One call is safe."""

        def function(tensor: Tensor, copies: Tensor) -> Tensor:
            earlier = tensor + 0  # Inductor drops this as a no-op
            copy_cache_batch([tensor], [earlier], copies)
            return tensor * 1

        copies = whole_rows(torch.arange(4), torch.tensor([1, 2, 0, 2]))
        check_compiled(function, torch.rand(4, 8), copies, backend=backend)


@pytest.mark.slow
def test_other_copies_do_not_recompile() -> None:
    def function(tensors: list[Tensor], copies: Tensor, req_id: int) -> None:
        copy_cache_batch(tensors, tensors, copies, req_id)

    tensors = cache(3, 40, 8)
    generator = torch.Generator().manual_seed(0)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for call in range(2, 40):
        copies = whole_rows(torch.randperm(40, generator=generator)[:call], torch.arange(call))
        expected = reference_batch(tensors, tensors, copies.tolist())
        compiled(tensors, copies, call)
        assert_same_bytes(tensors, expected)
    compiled(tensors, copies[:0], 40)  # a size of 0 is another graph, as for any op
    assert_same_bytes(tensors, expected)
    assert counter.frame_count <= 3


@pytest.mark.slow
def test_refusal_inside_a_graph() -> None:
    compiled = torch.compile(lambda dst, src, copies: copy_cache_batch(dst, src, copies), fullgraph=True)
    dst, src = cache(2, 4, 8), cache(2, 4, 8, seed=1)
    compiled(dst, src, SWAP)
    expected = [d.clone() for d in dst]
    with pytest.raises(ValueError, match=r"copies\[1\]: src_batch_index \(4\) out of range \[0, 4\)"):
        compiled(dst, src, whole_rows(torch.arange(3), torch.tensor([0, 4, 1])))
    assert_same_bytes(dst, expected)


def test_copies_are_checked_while_tracing() -> None:
    compiled = torch.compile(lambda dst, src, copies: copy_cache_batch(dst, src, copies), fullgraph=True)
    with pytest.raises(Exception, match=r"expected copies of shape \[n, 4\], got \[3, 5\]"):
        compiled(cache(1, 4, 8), cache(1, 4, 8), torch.zeros(3, 5, dtype=torch.int64))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.arange(64.0).view(2, 4, 8))

    def forward(self, beams: Tensor) -> Tensor:
        copy_cache_batch([self.cache], [self.cache], whole_rows(torch.arange(4), beams), batch_dim=1)
        return self.cache.sum(-1)


@pytest.mark.slow
def test_export_and_aot_inductor(tmp_path: Any) -> None:
    program = torch.export.export(Model(), (torch.arange(4),))
    assert "llm_datadist.copy_cache_batch" in str(program.graph)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    compiled = torch._inductor.aoti_load_package(package)
    exported, eager = program.module(), Model()
    for beams in (torch.tensor([1, 0, 3, 3]), torch.tensor([2, 2, 1, 0])):
        expected = eager(beams)
        assert torch.equal(exported(beams), expected)
        assert torch.equal(compiled(beams), expected)
