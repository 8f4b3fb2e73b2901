# SPDX-License-Identifier: Apache-2.0
"""The ops, and the functions over them, under torch.compile."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code
from utils import (
    assert_same_bytes,
    cache,
    copy_cache,
    copy_cache_batch,
    filled,
    reference_batch,
    reference_copy,
    table,
    whole_rows,
)

from llm_datadist_torch import Cache, copy_blocks, copy_tokens, swap_blocks

SWAP = table([(0, 1, 0, -1), (1, 0, 0, -1), (3, 2, 4, 8)])
STACKED = [filled(3, 4, 8)]
pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def check_compiled(function: Callable[..., Any], *args: Any, backend: str = "inductor") -> str:
    """Runs a function eagerly and compiled, on copies of the same arguments, and compares all tensors afterwards.

    Views of one storage are views of one storage in each copy too.

    Returns:
        The code that Inductor generated, if it is the backend.
    """
    eager_args, compiled_args = deepcopy(args), deepcopy(args)
    eager_result = function(*eager_args)
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    code: list[str] = []
    if backend == "inductor":
        result, code = run_and_get_code(compiled, *compiled_args)
    else:
        result = compiled(*compiled_args)
    tensors = [torch.utils._pytree.tree_leaves(tree) for tree in ((eager_args, eager_result), (compiled_args, result))]
    eager, actual = ([leaf for leaf in leaves if isinstance(leaf, Tensor)] for leaves in tensors)
    assert_same_bytes(actual, eager)
    return "\n".join(code)


def assert_no_cache_is_cloned(code: str) -> None:
    """Checks that the generated wrapper makes no tensor but tables: these functions only copy between their arguments."""
    call = re.search(r"^( *)def call\(.*\n(?:\1 +.*\n|\n)+", code, re.MULTILINE)
    assert call is not None
    wrapper = re.sub(r"empty_strided_cpu\(.*, torch\.int64\)", "", call.group())  # the argument copies
    assert re.search(r"torch\.ops\.llm_datadist\._?copy_cache", wrapper)
    for made in ("empty_strided", "clone", "copy_("):
        assert made not in wrapper, f"{made} in the generated code:\n{wrapper}"


def both(dst: list[Tensor], src: list[Tensor], row: int, copies: Tensor, batch_dim: int = 0) -> None:
    copy_cache(dst, src, row, 1, batch_dim=batch_dim)
    copy_cache_batch(dst, src, copies, batch_dim=batch_dim)


def one_list(tensors: list[Tensor], row: int, copies: Tensor) -> None:
    both(tensors, tensors, row, copies)


def keys_and_values(layers: list[Tensor], row: int, copies: Tensor) -> None:
    for part in (0, 1):
        one_list([kv[part] for kv in layers], row, copies)


def keys_of_values(dst: list[Tensor], src: list[Tensor], row: int, copies: Tensor) -> None:
    both([kv[0] for kv in dst], [kv[1] for kv in src], row, copies)


def two_calls(tensors: list[Tensor], row: int, copies: Tensor) -> None:
    one_list(tensors, row, copies)
    one_list(tensors, row + 1, copies)


def new_keys(layers: list[Tensor], keys: Tensor, position: Tensor, row: int, copies: Tensor) -> None:
    """As in a model: new keys are written to the cache at a position, then a row is copied."""
    for layer in layers:
        layer.index_copy_(1, position, keys)
    one_list(layers, row, copies)


def blocks_and_tokens(tensors: list[Tensor], row: int, copies: Tensor) -> None:
    pairs = copies[:, :2]
    copy_blocks(tensors, pairs)
    swap_blocks(tensors[:1], tensors[1:], [(1, 2), (3, 0)])
    copy_tokens(tensors, tensors, pairs, slice(1, row + 3), token_dim=2)


# The function, and its arguments, to which a row and copies are added.
GRAPHS: dict[str, tuple[Any, ...]] = {
    "two lists": (both, cache(3, 4, 8), cache(3, 4, 8, seed=1)),
    "one list": (one_list, cache(3, 4, 8)),
    "stacked": (lambda dst, src, *numbers: both([dst], [src], *numbers, 1), *STACKED, filled(3, 4, 8, seed=1)),
    "one stack": (lambda stack, *numbers: both([stack], [stack], *numbers, 1), *STACKED),
    "keys and values sliced in the graph": (keys_and_values, cache(3, 2, 4, 8)),
    "slices of two caches": (keys_of_values, cache(3, 2, 4, 8), cache(3, 2, 4, 8, seed=1)),
    "two calls in a row": (two_calls, cache(3, 4, 8)),
    "update and copy": (new_keys, cache(2, 4, 8, 3), filled(4, 1, 3, seed=1), torch.tensor([2])),
    "blocks and tokens": (blocks_and_tokens, cache(2, 4, 2, 8, 3)),
    "one buffer of layers": (lambda whole, *numbers: one_list(list(whole.unbind()), *numbers), filled(3, 4, 8)),
    "interleaved layers sliced in the graph": (
        lambda whole, *numbers: one_list([whole[:, layer] for layer in range(3)], *numbers),
        filled(4, 3, 8),
    ),
}


@pytest.mark.slow
class TestNoClone:
    """A compiled graph passes the caches themselves to the op, and no copies of them."""

    def test_graphs(self) -> None:
        """All in one graph, each with tensors of its own: a graph of Inductor takes seconds to compile."""

        def every_function(args: list[tuple[Any, ...]], row: int, copies: Tensor) -> None:
            for (function, *_), own in zip(GRAPHS.values(), args, strict=True):
                function(*own, row, copies)

        assert_no_cache_is_cloned(check_compiled(every_function, [args[1:] for args in GRAPHS.values()], 2, SWAP))

    @pytest.mark.xfail(strict=True, reason="Inductor clones all but one of the mutated inputs that share a storage")
    def test_layers_of_one_buffer_as_inputs(self) -> None:
        """A limit of Inductor. docs/contract.md documents it, and how to avoid it."""
        function = lambda tensors: copy_cache(tensors, tensors, 2, 1)  # noqa: E731
        assert_no_cache_is_cloned(check_compiled(function, list(filled(4, 4, 8).unbind(0))))

    def test_cache_objects(self) -> None:
        """A stacked tensor, and views that Cache holds as one: layers side by side or interleaved."""
        stacked = [Cache.from_tensors(filled(3, 4, 8, seed=seed), batch_dim=1) for seed in (0, 1)]
        pairs = [
            stacked,
            *([Cache.from_tensors(filled(4, 4, 8, seed=seed).unbind(dim)) for seed in (0, 1)] for dim in (0, 1)),
        ]
        assert all(len(held.tensors) == 1 for pair in pairs for held in pair)
        expected = [reference_copy(dst.tensors, src.tensors, 2, 1, batch_dim=1)[0] for dst, src in pairs]

        def function(row: int) -> None:
            for dst, src in pairs:
                copy_cache(dst.tensors, src.tensors, row, 1, batch_dim=dst.batch_dim)

        _, code = run_and_get_code(torch.compile(function, fullgraph=True), 2)
        assert_no_cache_is_cloned("\n".join(code))
        assert_same_bytes([dst.tensors[0] for dst, _ in pairs], expected)


def between_in_place_ops(dst: list[Tensor], src: list[Tensor]) -> Tensor:
    src[0].add_(1)
    copy_cache(dst, src, 2, 1)
    dst[0].mul_(2)
    return dst[0] + src[0]


def between_reads(tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    before = tensors[0] * 2
    copy_cache(tensors, tensors, 2, 1)
    return before, tensors[0] * 2


def of_a_source_made_in_the_graph(dst: list[Tensor], x: Tensor) -> Tensor:
    y = x.relu()
    copy_cache(dst, [y], 1, 2)
    return dst[0] + y


def of_an_earlier_clone(tensor: Tensor) -> Tensor:
    """With pytorch issue 198031, dst and its earlier clone may be one tensor in the kernel."""
    earlier = tensor + 0  # Inductor drops this as a no-op
    copy_cache([tensor], [earlier], 0, 1)
    return tensor * 1


def of_a_clone_taken_before_two_calls(tensor: Tensor) -> Tensor:
    """With other ops, Inductor merges a mutated argument with its earlier clone: pytorch issue 198031."""
    earlier = tensor + 0
    copy_cache([tensor], [earlier], 0, 1)
    copy_cache([tensor], [earlier], 2, 0)
    return tensor * 1


def batch_of_an_earlier_clone(tensor: Tensor, copies: Tensor) -> Tensor:
    earlier = tensor + 0
    copy_cache_batch([tensor], [earlier], copies)
    return tensor * 1


def beam_search(stacked: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The copies depend on the scores of the same step."""
    beams = scores.topk(4).indices
    stacked.add_(1)
    copy_cache_batch([stacked], [stacked], whole_rows(torch.arange(4), beams), batch_dim=1)
    after = stacked * 2
    stacked.mul_(3)
    return beams, after


ORDERED = {
    between_in_place_ops: ([torch.ones(4, 8)], [torch.rand(4, 8)]),
    between_reads: ([torch.rand(4, 8)],),
    of_a_source_made_in_the_graph: ([torch.rand(4, 8)], torch.randn(4, 8)),
    of_an_earlier_clone: (torch.rand(4, 8),),
    of_a_clone_taken_before_two_calls: (torch.rand(4, 8),),
    batch_of_an_earlier_clone: (torch.rand(4, 8), whole_rows(torch.arange(4), torch.tensor([1, 2, 0, 2]))),
    beam_search: (torch.rand(3, 4, 8), torch.tensor([3.0, 1.0, 4.0, 2.0])),
}


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_order(backend: str) -> None:
    """A graph keeps the order of the op and of the reads and writes before and after it."""

    def every_function(*args: tuple[Any, ...]) -> list[Any]:
        return [function(*own) for function, own in zip(ORDERED, args, strict=True)]

    check_compiled(every_function, *ORDERED.values(), backend=backend)


@pytest.mark.slow
class TestRecompiles:
    """Numbers are SymInt, and copies a tensor: a new value does not recompile."""

    def test_50_calls_compile_at_most_4_times(self) -> None:
        def function(dst: list[Tensor], src: list[Tensor], *numbers: int | None) -> None:
            copy_cache(dst[1:], src[1:], *numbers)
            copy_cache(dst[:1], src[:1], *numbers, batch_dim=1)

        dst, src = ([filled(3, 8, 16, seed=seed), *cache(3, 8, 16, seed=seed)] for seed in (0, 1))
        counter = CompileCounterWithBackend("inductor")
        compiled = torch.compile(function, fullgraph=True, backend=counter)
        for call in range(50):
            numbers = (call % 8, (call * 3 + 1) % 8, call % 31, -1 if call % 10 == 9 else 1 + call % 33)
            expected = reference_copy(dst[:1], src[:1], *numbers, batch_dim=1)
            expected += reference_copy(dst[1:], src[1:], *numbers)
            compiled(dst, src, *numbers, None if call == 20 else call)
            assert_same_bytes(dst, expected)
        assert counter.frame_count <= 4

    def test_other_copies(self) -> None:
        def function(tensors: list[Tensor], copies: Tensor, req_id: int) -> None:
            copy_cache_batch(tensors, tensors, copies, req_id)

        tensors = cache(3, 40, 8)
        generator = torch.Generator().manual_seed(0)
        counter = CompileCounterWithBackend("inductor")
        compiled = torch.compile(function, fullgraph=True, backend=counter)
        for call in [*range(2, 40), 0]:  # a size of 0 is another graph, as for any op
            copies = whole_rows(torch.randperm(40, generator=generator)[:call], torch.arange(call))
            expected = reference_batch(tensors, tensors, copies.tolist())
            compiled(tensors, copies, call)
            assert_same_bytes(tensors, expected)
        assert counter.frame_count <= 3

    def test_other_pairs_and_tokens(self) -> None:
        def function(tensors: list[Tensor], pairs: Tensor, start: int, stop: int) -> None:
            copy_tokens(tensors, tensors, pairs, slice(start, stop), token_dim=2)

        tensors = cache(2, 6, 2, 40, 3)
        counter = CompileCounterWithBackend("inductor")
        compiled = torch.compile(function, fullgraph=True, backend=counter)
        for call in range(2, 30):
            pairs, bounds = torch.randperm(6).view(-1, 2)[: 1 + call % 3], (call // 2, call + 9)
            expected = [tensor.clone() for tensor in tensors]
            function(expected, pairs, *bounds)
            compiled(tensors, pairs, *bounds)
            assert_same_bytes(tensors, expected)
        assert counter.frame_count <= 4


@pytest.mark.slow
class TestRefusals:
    def test_inside_a_graph(self) -> None:
        def function(dst: list[Tensor], src: list[Tensor], row: int, copies: Tensor) -> None:
            copy_cache_batch(dst, src, copies)
            copy_cache(dst, src, row)

        compiled = torch.compile(function, fullgraph=True)
        dst, src = cache(2, 4, 8), cache(2, 4, 8, seed=1)
        compiled(dst, src, 1, SWAP)
        compiled(dst, src, 2, SWAP)
        expected = [d.clone() for d in dst]
        with pytest.raises(ValueError, match=r"dst_batch_index \(4\) out of range \[0, 4\)"):
            compiled(dst, src, 4, SWAP)
        with pytest.raises(ValueError, match=r"copies\[1\]: src_batch_index \(4\) out of range \[0, 4\)"):
            compiled(dst, src, 2, table([(0, 0, 0, -1), (1, 4, 0, -1), (2, 0, 0, -1)]))
        assert_same_bytes(dst, reference_batch(expected, src, SWAP.tolist()))

    def test_while_tracing(self) -> None:
        """See test_copies_argument.py for the argument copies."""
        with pytest.raises(Exception, match=r"expected src\[0\] to have the dtype of dst\[0\]"):
            torch.compile(copy_cache, fullgraph=True)([torch.zeros(4, 8)], [torch.zeros(4, 8, dtype=torch.int32)])
        refused = lambda caches, stop: copy_tokens(caches, caches, [(0, 1)], slice(stop), token_dim=1)  # noqa: E731
        with pytest.raises(Exception, match=r"copy_tokens: tokens .* must be a range within \[0, 8\)"):
            torch.compile(refused, fullgraph=True)([torch.zeros(4, 8)], 9)
