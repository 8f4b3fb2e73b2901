# SPDX-License-Identifier: Apache-2.0
"""What torch's own tools check of the ops, and both ops under torch.export. See test_compile.py for torch.compile."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from utils import cache, copy_cache, copy_cache_batch, filled, table, whole_rows
from versions import STRIDES_TAG

from llm_datadist_torch import copy_blocks, copy_tokens

ops = torch.ops.llm_datadist
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
SWAP = table([(0, 1, 0, -1), (1, 0, 0, -1), (3, 2, 4, 8)])
STACKED, PAIR = [filled(3, 4, 8)], (cache(2, 4, 8), cache(2, 4, 8))
BLOCKING = {"batch_dim": 0, "timeout_ms": 1000}
pytestmark = pytest.mark.usefixtures("fresh_dynamo")


# The op, its arguments, and how many of the checks are for it.
OPCHECKED = {
    "list": (copy_cache, (cache(3, 4, 8), cache(3, 2, 8), 3, 1, 4, 8, 7), {}, 4),
    "stacked": (copy_cache, ([filled(3, 4, 8)], [filled(3, 2, 8)], 3, 1), {"batch_dim": 1}, 4),
    "defaults": (copy_cache, (cache(1, 4, 8), cache(1, 4, 8)), {}, 4),
    "batch": (copy_cache_batch, (cache(3, 4, 8), cache(3, 4, 8), SWAP, 7), {}, 4),
    "no copies": (copy_cache_batch, (cache(3, 4, 8), cache(3, 4, 8), SWAP[:0], 7), {}, 4),
    "batch of stacks": (copy_cache_batch, (STACKED, [filled(3, 4, 8)], SWAP), {"batch_dim": 1}, 4),
    # The last check clones each argument: two tensors where there was one.
    "batch of one stack": (copy_cache_batch, (STACKED, STACKED, SWAP), {"batch_dim": 1}, 3),
    # They block, so they have no fake kernel and are not traceable.
    "blocking": (ops._copy_cache_blocking.default, (*PAIR, 3, 1, 0, -1, None), BLOCKING, 2),
    "batch, blocking": (ops._copy_cache_batch_blocking.default, (*PAIR, SWAP, None), BLOCKING, 2),
}


@pytest.mark.parametrize("name", OPCHECKED)
def test_opcheck(name: str) -> None:
    op, args, kwargs, checks = OPCHECKED[name]
    torch.library.opcheck(op, args, kwargs, test_utils=OPCHECKS[:checks])


def test_tags() -> None:
    for op in (copy_cache, copy_cache_batch):
        assert {torch.Tag.pt2_compliant_tag, STRIDES_TAG} <= set(op.tags)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.arange(64.0).view(2, 4, 8))

    def forward(self, prefilled: Tensor, beams: Tensor) -> Tensor:
        copy_cache([self.cache], [prefilled * 2], 3, 0, batch_dim=1)
        copy_cache_batch([self.cache], [self.cache], whole_rows(torch.arange(4), beams), batch_dim=1)
        copy_cache([self.cache[1]], [self.cache[0]], 2, 1)  # without batch_dim
        pairs = torch.stack([beams, torch.arange(4)], dim=1)
        copy_blocks([self.cache], pairs, batch_dim=1)
        copy_tokens([self.cache], [self.cache], pairs.flip(0)[:2], slice(3, 6), batch_dim=1, token_dim=2)
        return self.cache.sum(-1)


def saved(program: torch.export.ExportedProgram, file: Path) -> Callable[..., Tensor]:
    torch.export.save(program, file)
    return torch.export.load(file).module()


def aot_inductor(program: torch.export.ExportedProgram, file: Path) -> Callable[..., Tensor]:
    torch._inductor.aoti_compile_and_package(program, package_path=str(file))
    return torch._inductor.aoti_load_package(str(file))


EXPORTS = {
    "exported": lambda program, _: program.module(),
    "decomposed": lambda program, _: program.run_decompositions().module(),
    "saved": saved,
    "AOTInductor": pytest.param(aot_inductor, marks=pytest.mark.slow),
}


@pytest.mark.parametrize("make", EXPORTS.values(), ids=EXPORTS)
def test_export(make: Callable[..., Callable[..., Tensor]], tmp_path: Path) -> None:
    program = torch.export.export(Model(), (torch.rand(2, 1, 8), torch.arange(4)))
    for op in ("llm_datadist.copy_cache.", "llm_datadist.copy_cache_batch."):
        assert op in str(program.graph)
    args = torch.arange(16.0).view(2, 1, 8), torch.tensor([1, 0, 3, 3])  # their sums are exact in any order
    assert torch.equal(make(program, tmp_path / "model.pt2")(*args), Model()(*args))
