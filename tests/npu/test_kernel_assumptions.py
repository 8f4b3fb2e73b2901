# SPDX-License-Identifier: Apache-2.0
"""What the kernel needs of the runtime. On NPUs with triton-ascend, the kernel itself; else the library in its place."""

from collections.abc import Iterator
from importlib.util import find_spec

import ascend_sim
import pytest
import torch
from kernel_stand_in import kernel_in_use
from npu_utils import scattered
from utils import (
    assert_same_bytes,
    cache,
    copy_cache,
    copy_cache_batch,
    filled,
    reference_batch,
    reference_copy,
    table,
)

from llm_datadist_torch import warm_up
from llm_datadist_torch._native.counters import runtime_calls
from llm_datadist_torch._native.warm_up import KernelUse, use_kernel


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if ascend_sim.available:
        with kernel_in_use():
            yield
        return
    if find_spec("triton") is None:
        pytest.skip("triton-ascend is not installed")
    monkeypatch.setenv("LLM_DATADIST_KERNEL", "always")
    assert warm_up()
    before = runtime_calls()
    yield
    torch.npu.synchronize()
    assert (runtime_calls() - before).launches > 0
    use_kernel(torch.npu.current_device(), KernelUse.NEVER)


@pytest.mark.assumption("A kernel is loaded and launched by the public functions of the runtime, and copies any bytes")
@pytest.mark.parametrize("size", [1, 31, 4096, 32_769, 1_000_003])
@pytest.mark.parametrize("offset", [0, 1, 4])
def test_bytes(size: int, offset: int) -> None:
    dst, src = (cache(3, 2, size + 8, dtype=torch.uint8, device="npu", seed=seed) for seed in (0, 1))
    expected = reference_copy(dst, src, 1, 0, offset, size)
    copy_cache(dst, src, 1, 0, offset, size)
    assert_same_bytes(dst, expected)


@pytest.mark.assumption("The arguments of a launch may be 100 KB")
def test_large_tables() -> None:
    dst, src = ([filled(2, 4000, 8, device="npu", seed=seed)] for seed in (0, 1))
    copies = [(7 * row % 4000, row, 0, -1) for row in range(4000)]
    expected = reference_batch(dst, src, copies, batch_dim=1)
    copy_cache_batch(dst, src, table(copies), batch_dim=1)
    assert_same_bytes(dst, expected)


@pytest.mark.assumption("A captured launch keeps its arguments, and a kernel reads what earlier tasks have written")
@pytest.mark.capture
def test_capture() -> None:
    held, copies = scattered(5, 7, 64), torch.zeros(2, 4, dtype=torch.int64, device="npu")
    chain, pairs = [(row + 1, row, 0, -1) for row in range(6)], torch.zeros_like(copies)
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        copy_cache_batch(held, held, table(chain))
        pairs.copy_(copies)
        copy_cache_batch(held, held, pairs)
    for row in (1, 3):
        swap = [(row, 6, 0, -1), (6, row, 0, -1)]
        copies.copy_(table(swap))
        copy_cache(held, held, 0, 2)  # a launch in between
        expected = reference_batch(reference_batch(held, held, chain), reference_batch(held, held, chain), swap)
        graph.replay()
        torch.npu.synchronize()
        assert_same_bytes(held, expected)
