# SPDX-License-Identifier: Apache-2.0
"""Row numbers on the device: the recipe of docs/serving_engines.md, in captured graphs."""

import ascend_sim
import pytest
import torch
from decoder import Fork, make_caches, make_models
from torch import Tensor
from utils import copy_cache_batch

pytestmark = pytest.mark.simulated

SEEN, STEPS, BEAMS = 5, 20, 3


def move_rows(cache: Tensor, dst_rows: Tensor, src_rows: Tensor, batch_dim: int = 0) -> None:
    cache.index_copy_(batch_dim, dst_rows, cache.index_select(batch_dim, src_rows))


def move_by_table(cache: Tensor, dst_rows: Tensor, src_rows: Tensor, batch_dim: int = 0) -> None:
    """The same by copy_cache_batch, which reads its table on the host."""
    table = [(dst, src, 0, -1) for dst, src in zip(dst_rows.tolist(), src_rows.tolist(), strict=True)]
    copy_cache_batch([cache], [cache], torch.tensor(table), batch_dim=batch_dim)


def inside(dst_rows: Tensor, src_rows: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Sends pairs with a row out of range to the spare row, the last of a cache of batch + 1 rows."""
    good = (dst_rows >= 0) & (dst_rows < batch) & (src_rows >= 0) & (src_rows < batch)
    return torch.where(good, dst_rows, batch), torch.where(good, src_rows, batch)


class BeamSearch(Fork):
    """A step of a beam search, which ends with the caches of the beams that go on: all of it on the device."""

    move = staticmethod(move_rows)

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.scores = torch.arange(0.0, -BEAMS, -1).to(self.model.device)
        self.rows = torch.arange(BEAMS).to(self.model.device)
        self.parents = torch.zeros(BEAMS, dtype=torch.int64).to(self.model.device)

    def step(self) -> None:
        self.logits.copy_(self.model(self.tokens, cache=self.cache, use_cache=True, logits_to_keep=1).logits[:, -1])
        candidates = self.logits.log_softmax(-1) + self.scores[:, None]
        best = candidates.flatten().topk(BEAMS)
        self.scores.copy_(best.values)
        self.tokens.copy_((best.indices % self.logits.shape[1])[:, None])
        self.parents.copy_(best.indices // self.logits.shape[1])
        for layer in self.kv:
            for tensor in layer:
                self.move(tensor, self.rows, self.parents)


@pytest.mark.capture
def test_a_captured_beam_search_follows_its_beams() -> None:
    models = make_models()
    caches = make_caches(models[0])
    on_cpu, on_npu = (BeamSearch(model, kv, SEEN) for model, kv in zip(models, caches, strict=True))
    on_cpu.move = move_by_table
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        on_npu.step()
    parents = set()
    for _ in range(STEPS):
        on_cpu.step()
        ascend_sim.reset()
        graph.replay()
        torch.npu.synchronize()
        assert not [name for name in ascend_sim.call_counts() if name.startswith(("aclnn", "aclrtMemcpy"))]
        parents.add(tuple(on_cpu.parents.tolist()))
        assert torch.equal(on_npu.parents.cpu(), on_cpu.parents)
        assert torch.equal(on_npu.tokens.cpu(), on_cpu.tokens)
        for actual, expected in zip(on_npu.state(), on_cpu.state(), strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert len(parents - {(0, 1, 2)}) > 1, "no beam took the place of another: nothing was shown"


@pytest.mark.capture
def test_rows_out_of_range_go_to_the_spare_row() -> None:
    """A cache with a row more than its batch, in one piece for all layers: two operators for any number of layers."""
    layers, batch = 4, 6
    cache = torch.randn(layers, batch + 1, 8)
    on_npu = cache.npu()
    dst_rows, src_rows = torch.zeros(3, dtype=torch.int64).npu(), torch.zeros(3, dtype=torch.int64).npu()
    graph = torch.npu.NPUGraph()
    torch.npu.synchronize()
    ascend_sim.reset()
    with torch.npu.graph(graph):
        move_rows(on_npu, *inside(dst_rows, src_rows, batch), batch_dim=1)
    torch.npu.synchronize()
    counts = ascend_sim.call_counts()
    assert (counts["aclnnIndexSelect"], counts["aclnnInplaceIndexCopy"]) == (1, 1)
    for table in ([(0, 1), (1, 0), (5, 2)], [(6, 3), (-1, 3), (2, 4)], [(3, 4), (4, 7), (2**62, -(2**62))]):
        dst_rows.copy_(torch.tensor([dst for dst, _ in table]))
        src_rows.copy_(torch.tensor([src for _, src in table]))
        good = [(dst, src) for dst, src in table if 0 <= dst < batch and 0 <= src < batch]
        cache = on_npu.cpu()
        cache[:, [dst for dst, _ in good]] = cache[:, [src for _, src in good]]
        graph.replay()
        torch.npu.synchronize()
        assert torch.equal(on_npu.cpu()[:, :batch], cache[:, :batch])
