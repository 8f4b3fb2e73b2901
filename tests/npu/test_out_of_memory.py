# SPDX-License-Identifier: Apache-2.0
"""No memory for a cache or a staging buffer: the documented error, nothing written, and later calls work."""

import gc

import ascend_sim
import pytest
import torch
from torch import Tensor
from utils import (
    assert_same_bytes,
    cache,
    check_copy,
    copy_cache,
    copy_cache_batch,
    filled,
    reference_batch,
    to_host,
)

from llm_datadist_torch import CacheDesc, CacheManager, DataType, LLMException, LLMStatusCode, Placement

CODE = 507899
SWAP = torch.tensor([[0, 1, 0, -1], [1, 0, 0, -1]])


def all_pinned(size: int) -> list[Tensor]:
    """Takes all that torch_npu has cached for pinned tensors of this size, so that the next one is a call."""
    held: list[Tensor] = []
    calls = ascend_sim.call_counts()["aclrtMallocHost"]
    while ascend_sim.call_counts()["aclrtMallocHost"] == calls:
        held.append(torch.empty(size, dtype=torch.uint8, pin_memory=True))
    return held


@pytest.mark.simulated
@pytest.mark.parametrize(("rows", "out"), [(1021, True), (2039, False)])
def test_pinned_memory_for_pageable_memory(rows: int, out: bool) -> None:
    """torch_npu then raises nothing, and returns a tensor at address 0. Freed, it would go to others from the cache."""
    pair = cache(2, 4, rows * 8, device="npu"), cache(2, 4, rows * 8, seed=1)
    dst, src = pair[::-1] if out else pair
    before = [to_host(tensor) for tensor in dst]
    held = all_pinned(rows * 64)
    for nth in (1, 2):  # the op tries twice
        ascend_sim.fail_call("aclrtMallocHost", CODE, nth)
    with pytest.raises(RuntimeError, match=f"cannot allocate {rows * 64} bytes of pinned memory"):
        copy_cache(dst, src, 1, 2)
    assert_same_bytes(dst, before)
    held.append(torch.empty(rows * 64, dtype=torch.uint8, pin_memory=True))
    assert held[-1].data_ptr() != 0
    check_copy(dst, src, 1, 2)


@pytest.mark.simulated
def test_device_memory_to_stage_a_cycle_in() -> None:
    # Nothing that earlier tests left is to serve the op: tensors in cycles, and free segments, of which the cache would
    # be a part. Rows of 24 MiB, since partly free segments of 20 MiB remain.
    gc.collect()
    torch.npu.empty_cache()
    held = [filled(2, 6 * 2**20, device="npu")]
    expected = reference_batch(held, held, SWAP.tolist())
    before = to_host(held[0])
    for nth in (1, 2):  # torch_npu tries again after it has released its free blocks
        ascend_sim.fail_call("aclrtMallocAlign32", CODE, nth)
    with pytest.raises(RuntimeError):
        copy_cache_batch(held, held, SWAP)
    assert_same_bytes(held, [before])
    copy_cache_batch(held, held, SWAP)
    assert_same_bytes(held, expected)


@pytest.mark.parametrize(
    ("placement", "code"),
    [(Placement.HOST, LLMStatusCode.LLM_OUT_OF_MEMORY), (Placement.DEVICE, LLMStatusCode.LLM_DEVICE_OUT_OF_MEMORY)],
)
def test_a_cache(placement: Placement, code: LLMStatusCode) -> None:
    manager = CacheManager()
    with pytest.raises(LLMException, match="cannot allocate") as refusal:
        manager.allocate_cache(CacheDesc(1, (2**30, 2**20), DataType.DT_INT8, placement))
    assert refusal.value.status_code is code
    assert manager.allocate_cache(CacheDesc(1, (4, 8), DataType.DT_INT8, placement)).cache_id == 1


@pytest.mark.simulated
def test_a_cache_in_pinned_memory_when_there_is_some_again() -> None:
    manager, desc = CacheManager(), CacheDesc(1, (4, 4093 * 64), DataType.DT_INT8, Placement.HOST)
    held = all_pinned(4 * 4093 * 64)
    ascend_sim.fail_call("aclrtMallocHost", CODE)
    with pytest.raises(LLMException, match="no pinned memory"):
        manager.allocate_cache(desc)
    assert manager.allocate_cache(desc).tensors[0].is_pinned()
    del held
