# SPDX-License-Identifier: Apache-2.0
"""Copies between views made inside a graph, and values computed before and after them, against eager mode.

Every way to make a view, of inputs that lie anywhere in their storage, with static and dynamic sizes. All views of the
list are in one graph, each with buffers of its own, because a graph of Inductor takes seconds to compile.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing._internal.two_tensor import TwoTensor
from utils import assert_same_bytes, copy_cache, copy_cache_batch, filled, nothing_written, table, whole_storage

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

# The tensors of a cache and their batch_dim, made from a buffer of [3, n, 4] float32.
View = Callable[[Tensor, int], tuple[list[Tensor], int]]
VIEWS: dict[str, View] = {
    "the buffer": lambda b, layer: ([b], 1),
    "select": lambda b, layer: ([b[1]], 0),
    "select by number": lambda b, layer: ([b[layer]], 0),
    "last of select": lambda b, layer: ([b[-1], b[0]], 0),
    "slice of layers": lambda b, layer: ([b[1:]], 1),
    "slice of rows": lambda b, layer: ([b[:, 1:]], 1),
    "slice with a step": lambda b, layer: ([b[::2]], 1),
    "rows of a step": lambda b, layer: ([b[:, ::2]], 1),
    "slice of both": lambda b, layer: ([b[1:, 1:]], 1),
    "part of each row": lambda b, layer: ([b[:, :, 1:]], 1),
    "narrow": lambda b, layer: ([b.narrow(0, 1, 2)], 1),
    "unbind": lambda b, layer: (list(b.unbind(0)), 0),
    "chunk": lambda b, layer: (list(b.chunk(3)), 1),
    "split": lambda b, layer: (list(b.split([1, 2])), 1),
    "view": lambda b, layer: ([b.view(3, -1, 2)], 1),
    "flatten of select": lambda b, layer: ([b[1:].flatten(0, 1)], 0),
    "unsqueeze": lambda b, layer: ([b[1].unsqueeze(0)], 1),
    "transpose": lambda b, layer: ([b.transpose(0, 1)], 1),
    "permute": lambda b, layer: ([b[1:].permute(1, 0, 2)], 1),
    "as_strided": lambda b, layer: ([b.as_strided((2, 4), (8, 1))], 0),
    "dtype view": lambda b, layer: ([b.view(torch.int32)], 1),
    "dtype view and back": lambda b, layer: ([b.view(torch.int32)[1:].view(torch.float32)], 1),
    "bytes of select": lambda b, layer: ([b[2].view(torch.int8)], 0),
    "wider dtype": lambda b, layer: ([b[1:].view(torch.int64)], 1),
    "detach": lambda b, layer: ([b[1].detach()], 0),
    "alias": lambda b, layer: ([torch.ops.aten.alias(b)], 1),
}
# For each backend that takes minutes to compile all of them. `make fuzz` takes them all.
SOME = ["the buffer", "select by number", "slice of both", "transpose", "dtype view", "wider dtype"]
SWAP = table([(0, 1, 0, -1), (1, 0, 0, -1)])


class Model(torch.nn.Module):
    """Copies in each of the views, from another buffer and, with two copies, within the view.

    Args:
        views: The names of the views. Each has a buffer in dst and one in src.
        copies: 1 or 2.
        before: Whether values are computed from the buffers before the copies, and used afterwards.
        after: Whether values are computed from them after the copies.
    """

    def __init__(self, views: list[str], copies: int, before: bool, after: bool) -> None:
        super().__init__()
        self.views, self.copies, self.before, self.after = views, copies, before, after

    def forward(self, dst: list[Tensor], src: list[Tensor], layer: int, batch: Tensor) -> list[list[Tensor]]:
        return [
            self.of_view(VIEWS[view], *pair, layer, batch) for view, *pair in zip(self.views, dst, src, strict=True)
        ]

    def of_view(self, view: View, dst: Tensor, src: Tensor, layer: int, batch: Tensor) -> list[Tensor]:
        (into, batch_dim), (out_of, _) = view(dst, layer), view(src, layer)
        results = []
        if self.before:
            scaled, first, shifted = dst * 2, into[0][1:] + 1, src - 1
        copy_cache(into, out_of, 1, 0, 0, 4, batch_dim=batch_dim)
        if self.copies == 2:
            copy_cache_batch(into, into, batch, batch_dim=batch_dim)
        if self.before:
            results += [scaled + 0, first * 3, shifted.flatten(1)]
        if self.after:
            results += [dst + 1, into[-1] * 2]
        return results


def inputs(count: int, rows: int, *, at_offset: bool, device: str) -> tuple[list[Tensor], list[Tensor], int, Tensor]:
    """Buffers of small integers, so that the graph computes exactly. At an offset, they are parts of larger ones."""
    whole = [filled(5, rows, 4, dtype=torch.int8, seed=i).to(device, torch.float32) for i in range(2 * count)]
    buffers = [buffer[1:4] if at_offset else buffer[:3].clone() for buffer in whole]
    return buffers[::2], buffers[1::2], rows % 2, SWAP


def check(compiled: Callable[..., list[list[Tensor]]], eager: Model, sizes: Sequence[int], device: str) -> None:
    """Calls both with buffers of each size. The same graph takes whole buffers and parts of buffers."""
    for rows, at_offset in itertools.product(sizes, (False, True)):
        calls = []
        for call in (eager, compiled):
            dst, src, *others = inputs(len(eager.views), rows, at_offset=at_offset, device=device)
            results = call(dst, src, *others)
            buffers = [[whole_storage(tensor) for tensor in pair] for pair in zip(dst, src, strict=True)]
            calls.append([buffer + result for buffer, result in zip(buffers, results, strict=True)])
        for view, actual, expected in zip(eager.views, *calls, strict=True):
            where = f"{view} of {rows} rows{', at an offset' * at_offset}"
            assert_same_bytes(actual, expected, where)


def exported(model: Model, *, dynamic: bool) -> torch.export.ExportedProgram:
    args = inputs(len(model.views), 5, at_offset=False, device="cpu")
    buffers = [{1: torch.export.Dim("rows", min=3, max=64)} if dynamic else None] * len(model.views)
    # The layer is a constant of an exported program.
    return torch.export.export(model, args, dynamic_shapes=(buffers, buffers, None, None))


ALL = pytest.mark.exhaustive
OTHERS = [pytest.param(*model, marks=ALL) for model in ((1, False, False), (1, True, False), (2, False, True))]
MODELS = pytest.mark.parametrize(("copies", "before", "after"), [*OTHERS, (2, True, True)])
SOME_OR_ALL = pytest.mark.parametrize("views", [SOME, pytest.param(list(VIEWS), marks=ALL)])


@MODELS
def test_aot_eager(copies: int, before: bool, after: bool) -> None:
    """Of dynamic sizes from the first call on. test_export has static ones."""
    model = Model(list(VIEWS), copies, before, after)
    check(torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True), model, (5, 6), "cpu")


def test_aot_eager_on_the_device(device: str) -> None:
    """Without the values, because the simulated runtime does not compute them."""
    model = Model(SOME, 2, before=False, after=False)
    check(torch.compile(model, fullgraph=True, backend="aot_eager"), model, (5, 6, 7), device)


@pytest.mark.slow
@SOME_OR_ALL
@MODELS
def test_inductor(views: list[str], copies: int, before: bool, after: bool) -> None:
    model = Model(views, copies, before, after)
    sizes = (5,) if views == SOME else (5, 6, 7)  # test_aot_inductor has dynamic ones
    with torch.inference_mode(copies == 2):  # in which autograd knows no views
        check(torch.compile(model, fullgraph=True), model, sizes, "cpu")


@pytest.mark.parametrize("dynamic", [False, True])
def test_export(dynamic: bool) -> None:
    model = Model(list(VIEWS), 2, before=True, after=True)
    program = exported(model, dynamic=dynamic)
    for module in (program.module(), program.run_decompositions().module()):
        check(module, model, (5, 7, 9) if dynamic else (5,), "cpu")


@pytest.mark.slow
@SOME_OR_ALL
@pytest.mark.parametrize("dynamic", [pytest.param(False, marks=ALL), True])
def test_aot_inductor(views: list[str], dynamic: bool, tmp_path: Path) -> None:
    model = Model(views, 2, before=True, after=True)
    program = exported(model, dynamic=dynamic)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    check(torch._inductor.aoti_load_package(package), model, (5, 7, 9) if dynamic else (5,), "cpu")


HOSTILE = (
    [],
    [0],
    [1, -1],
    [0, -1, 0, -1],
    [0, 2, 0, 3, 8],
    [0, 2, 1, 3, 8, 8, 1],
    [0, 2, -4, 3, 8, 8, 1],
    [0, 2, 32, 4, 8, 8, 1],
    [0, 2, 2**63 - 1, 3, 8, 8, 1],
    [0, 2, 0, -3, 8, 8, 1],
    [0, 2, 0, 2**62, 2**62, 8, 1],
    [0, 2, 0, 4, 8, 2**63 - 1, 1],
    [0, 2**63 - 1, 0],
)


@pytest.mark.parametrize("views", HOSTILE)
def test_hostile_views(views: list[int]) -> None:
    """The private op refuses all that does not describe memory of dst."""
    dst, src = filled(4, 8), filled(4, 8, seed=1)
    with pytest.raises((ValueError, RuntimeError)), nothing_written(dst):
        torch.ops.llm_datadist._copy_cache_views([dst], [src], views=views)


def test_views_of_subclasses() -> None:
    """The rules for views that are registered with torch leave other programs as they are."""

    def program(x: TwoTensor) -> Tensor:
        return x.detach().view(torch.int32) + x.view(torch.int32)

    x = TwoTensor(filled(4, 8), filled(4, 8, seed=1))
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x).a, program(x).a)
