# SPDX-License-Identifier: Apache-2.0
"""The op under torch.compile, torch.export and torch.library.opcheck."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compile_utils import OPCHECKS, assert_no_cache_is_cloned, check_compiled
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code
from utils import assert_same_bytes, cache, copy_cache, filled, reference_copy
from versions import STRIDES_TAG

from llm_datadist_torch import Cache

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class TestOpcheck:
    def test_list(self) -> None:
        torch.library.opcheck(copy_cache, (cache(3, 4, 8), cache(3, 2, 8), 3, 1, 4, 8, 7), test_utils=OPCHECKS)

    def test_stacked(self) -> None:
        args = ([filled(3, 4, 8)], [filled(3, 2, 8)], 3, 1)
        torch.library.opcheck(copy_cache, args, {"batch_dim": 1}, test_utils=OPCHECKS)

    def test_defaults(self) -> None:
        torch.library.opcheck(copy_cache, (cache(1, 4, 8), cache(1, 4, 8)), test_utils=OPCHECKS)

    def test_tags(self) -> None:
        for op in (copy_cache, torch.ops.llm_datadist.copy_cache_batch.default):
            assert {torch.Tag.pt2_compliant_tag, STRIDES_TAG} <= set(op.tags)

    def test_blocking_op(self) -> None:
        args = (cache(2, 4, 8), cache(2, 2, 8), 3, 1, 0, -1, None)
        op = torch.ops.llm_datadist._copy_cache_blocking.default
        # It blocks, so it has no fake kernel and is not traceable.
        torch.library.opcheck(op, args, {"batch_dim": 0, "timeout_ms": 1000}, test_utils=OPCHECKS[:2])


def lists(dst: list[Tensor], src: list[Tensor], row: int) -> None:
    copy_cache(dst, src, row, 1)


def one_list(tensors: list[Tensor], row: int) -> None:
    copy_cache(tensors, tensors, row, 1)


def stacked(dst: Tensor, src: Tensor, row: int) -> None:
    copy_cache([dst], [src], row, 1, batch_dim=1)


def one_stack(stack: Tensor, row: int) -> None:
    copy_cache([stack], [stack], row, 1, batch_dim=1)


def keys_and_values(layers: list[Tensor], row: int) -> None:
    keys, values = [kv[0] for kv in layers], [kv[1] for kv in layers]
    copy_cache(keys, keys, row, 1)
    copy_cache(values, values, row, 1)


def values_to_keys(dst: list[Tensor], src: list[Tensor], row: int) -> None:
    copy_cache([kv[0] for kv in dst], [kv[1] for kv in src], row, 1)


def two_calls(tensors: list[Tensor], row: int) -> None:
    copy_cache(tensors, tensors, row, 0)
    copy_cache(tensors, tensors, row + 1, row)


def new_keys(layers: list[Tensor], keys: Tensor, position: Tensor, row: int) -> None:
    """As in a model: new keys are written to the cache at a position, then a row is copied."""
    for layer in layers:
        layer.index_copy_(1, position, keys)
    copy_cache(layers, layers, row, 1)


def interleaved_layers(whole: Tensor, row: int) -> None:
    layers = [whole[:, layer] for layer in range(3)]
    copy_cache(layers, layers, row, 1)


# The function, and its arguments.
GRAPHS: dict[str, tuple[Any, ...]] = {
    "two lists": (lists, cache(3, 4, 8), cache(3, 4, 8, seed=1), 2),
    "one list": (one_list, cache(3, 4, 8), 2),
    "stacked": (stacked, filled(3, 4, 8), filled(3, 4, 8, seed=1), 2),
    "one stack": (one_stack, filled(3, 4, 8), 2),
    "keys and values sliced in the graph": (keys_and_values, cache(3, 2, 4, 8), 2),
    "slices of two caches": (values_to_keys, cache(3, 2, 4, 8), cache(3, 2, 4, 8, seed=1), 2),
    "two calls in a row": (two_calls, cache(3, 4, 8), 1),
    "update and copy": (new_keys, cache(2, 4, 8, 3), filled(4, 1, 3, seed=1), torch.tensor([2]), 3),
    "layers of one buffer": (lists, list(filled(3, 4, 8)), list(filled(3, 4, 8, seed=1)), 2),
    "interleaved layers sliced in the graph": (interleaved_layers, filled(4, 3, 8), 2),
}


@pytest.mark.slow
class TestNoClone:
    """A compiled graph passes the caches themselves to the op, and no copies of them."""

    @pytest.mark.parametrize("name", GRAPHS)
    def test_graph(self, name: str) -> None:
        function, *args = GRAPHS[name]
        assert_no_cache_is_cloned(check_compiled(function, *args))

    @pytest.mark.xfail(strict=True, reason="Inductor clones all but one of the mutated inputs that share a storage")
    def test_interleaved_layers_sliced_outside_the_graph(self) -> None:
        """A limit of Inductor. docs/contract.md documents it, and how to avoid it."""
        whole = filled(4, 3, 8)
        expected = reference_copy([whole[:, 1]], [whole[:, 1]], 2, 1)
        _, code = run_and_get_code(torch.compile(one_list, fullgraph=True), list(whole.unbind(1)), 2)
        assert_same_bytes([whole[:, 1]], expected)
        assert_no_cache_is_cloned("\n".join(code))

    def test_cache_objects(self) -> None:
        dst, src = (Cache.from_tensors(filled(3, 4, 8, seed=seed), batch_dim=1) for seed in (0, 1))
        expected = reference_copy(dst.tensors, src.tensors, 2, 1, batch_dim=1)

        def function(row: int) -> None:
            copy_cache(dst.tensors, src.tensors, row, 1, batch_dim=dst.batch_dim)

        _, code = run_and_get_code(torch.compile(function, fullgraph=True), 2)
        assert_no_cache_is_cloned("\n".join(code))
        assert_same_bytes(dst.tensors, expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
class TestOrder:
    """A graph keeps the order of the op and the writes before and after it."""

    def test_after_an_in_place_op_and_before_another(self, backend: str) -> None:
        def function(dst: list[Tensor], src: list[Tensor], row: int) -> Tensor:
            src[0].add_(1)
            copy_cache(dst, src, row, 1)
            dst[0].mul_(2)
            return dst[0] + src[0]

        check_compiled(function, [torch.ones(4, 8)], [torch.rand(4, 8)], 2, backend=backend)

    def test_reads_on_both_sides_of_it(self, backend: str) -> None:
        def function(tensors: list[Tensor], row: int) -> tuple[Tensor, Tensor]:
            before = tensors[0] * 2
            copy_cache(tensors, tensors, row, 1)
            return before, tensors[0] * 2

        check_compiled(function, [torch.rand(4, 8)], 2, backend=backend)

    def test_source_made_in_the_graph(self, backend: str) -> None:
        def function(dst: list[Tensor], x: Tensor) -> Tensor:
            y = x.relu()
            copy_cache(dst, [y], 1, 2)
            return dst[0] + y

        check_compiled(function, [torch.rand(4, 8)], torch.randn(4, 8), backend=backend)

    def test_clone_taken_before_one_call(self, backend: str) -> None:
        """With pytorch issue 198031, dst and its earlier clone may be one tensor in the kernel. One call is safe."""

        def function(tensor: Tensor) -> Tensor:
            earlier = tensor + 0  # Inductor drops this as a no-op
            copy_cache([tensor], [earlier], 0, 1)
            return tensor * 1

        check_compiled(function, torch.rand(4, 8), backend=backend)


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="pytorch issue 198031: a mutated argument is merged with its earlier clone")
def test_clone_taken_before_two_calls() -> None:
    """When this passes, pytorch issue 198031 is fixed and the warning in the docs can be removed."""

    def function(tensor: Tensor) -> Tensor:
        earlier = tensor + 0
        copy_cache([tensor], [earlier], 0, 1)
        copy_cache([tensor], [earlier], 2, 0)
        return tensor * 1

    check_compiled(function, torch.rand(4, 8))


@pytest.mark.slow
class TestRecompiles:
    """Numbers are SymInt: a new value does not recompile."""

    @pytest.mark.parametrize("stacked", [False, True])
    def test_50_calls_compile_at_most_4_times(self, stacked: bool) -> None:
        def function(
            dst: list[Tensor], src: list[Tensor], to: int, source: int, offset: int, size: int, req_id: int | None
        ) -> None:
            copy_cache(dst, src, to, source, offset, size, req_id, batch_dim=int(stacked))

        shape = (3, 8, 16) if stacked else (8, 16)
        dst, src = (cache(1 if stacked else 3, *shape, seed=seed) for seed in (0, 1))
        counter = CompileCounterWithBackend("inductor")
        compiled = torch.compile(function, fullgraph=True, backend=counter)
        for call in range(50):
            numbers = (call % 8, (call * 3 + 1) % 8, call % 31, -1 if call % 10 == 9 else 1 + call % 33)
            expected = reference_copy(dst, src, *numbers, batch_dim=int(stacked))
            compiled(dst, src, *numbers, None if call == 20 else call)
            assert_same_bytes(dst, expected)
        assert counter.frame_count <= 4

    def test_refusal_inside_a_graph(self) -> None:
        compiled = torch.compile(lambda dst, src, row: copy_cache(dst, src, row), fullgraph=True)
        dst, src = cache(2, 4, 8), cache(2, 4, 8, seed=1)
        compiled(dst, src, 1)
        compiled(dst, src, 2)
        expected = [d.clone() for d in dst]
        with pytest.raises(ValueError, match=r"dst_batch_index \(4\) out of range \[0, 4\)"):
            compiled(dst, src, 4)
        assert_same_bytes(dst, expected)

    def test_lists_are_checked_while_tracing(self) -> None:
        compiled = torch.compile(lambda dst, src: copy_cache(dst, src), fullgraph=True)
        with pytest.raises(Exception, match=r"expected src\[0\] to have the dtype of dst\[0\]"):
            compiled([torch.zeros(4, 8)], [torch.zeros(4, 8, dtype=torch.int32)])


class TestExport:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("cache", torch.zeros(2, 4, 8))

        def forward(self, prefilled: Tensor) -> Tensor:
            copy_cache([self.cache], [prefilled * 2], 3, 0, batch_dim=1)
            return self.cache.sum(-1)

    def test_export_runs_the_op(self) -> None:
        program = torch.export.export(self.Model(), (torch.rand(2, 1, 8),))
        assert "llm_datadist.copy_cache" in str(program.graph)
        prefilled = torch.rand(2, 1, 8)
        assert torch.equal(program.module()(prefilled), self.Model()(prefilled))

    def test_exported_graph_can_be_saved(self, tmp_path: Any) -> None:
        path = tmp_path / "model.pt2"
        torch.export.save(torch.export.export(self.Model(), (torch.rand(2, 1, 8),)), path)
        prefilled = torch.rand(2, 1, 8)
        assert torch.equal(torch.export.load(path).module()(prefilled), self.Model()(prefilled))

    @pytest.mark.slow
    def test_aot_inductor(self, tmp_path: Any) -> None:
        program = torch.export.export(self.Model(), (torch.rand(2, 1, 8),))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        prefilled = torch.arange(16.0).view(2, 1, 8)  # their sums are exact in any order
        assert torch.equal(torch._inductor.aoti_load_package(path)(prefilled), self.Model()(prefilled))

    def test_decompositions_keep_the_op(self) -> None:
        program = torch.export.export(self.Model(), (torch.rand(2, 1, 8),)).run_decompositions()
        prefilled = torch.rand(2, 1, 8)
        assert torch.equal(program.module()(prefilled), self.Model()(prefilled))
