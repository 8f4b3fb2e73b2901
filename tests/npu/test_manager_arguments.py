# SPDX-License-Identifier: Apache-2.0
"""Arguments of CacheManager that matter on NPUs only: device ids, device addresses, NPU tensors in messages."""

from __future__ import annotations

import re

import ascend_sim
import pytest
import torch
from npu_utils import needs_two_npus
from utils import assert_same_bytes, cache, copy_cache, reference_copy, refused

from llm_datadist_torch import (
    Cache,
    CacheDesc,
    CacheManager,
    DataType,
    LLMConfig,
    LLMException,
    LLMStatusCode,
    Placement,
)

DESC = CacheDesc(2, (4, 8), DataType.DT_FLOAT)


@pytest.mark.simulated
@pytest.mark.parametrize("call", ["copy_cache", "copy_blocks", "swap_blocks", "allocate_cache", "remove_cache_key"])
def test_messages_print_no_npu_tensors(call: str) -> None:
    """Printing a tensor computes and waits. On the simulated runtime that fails and ends torch_npu's task queue."""
    dst, src = cache(2, 4, 8, device="npu"), cache(2, 4, 8, device="npu", seed=1)
    held, manager = Cache.from_tensors(src), CacheManager()
    expected = reference_copy(dst, src, 1, 2)
    torch.npu.synchronize()
    ascend_sim.reset()
    args = [dst] if call in ("allocate_cache", "remove_cache_key") else [dst, held]
    with pytest.raises(TypeError, match=f"^{call}: .* must be [A-Za-z]*, got list$"):
        getattr(manager, call)(*args, *([{}] if call == "swap_blocks" else []))
    with pytest.raises(TypeError, match=f"^{call}: .* must be [A-Za-z]*, got Tensor$"):
        getattr(manager, call)(dst[0], *args[1:], *([{}] if call == "swap_blocks" else []))
    assert not ascend_sim.call_counts()
    copy_cache(dst, src, 1, 2)
    assert_same_bytes(dst, expected)


@pytest.mark.simulated
@pytest.mark.parametrize("number", [2, 7, 2**31 - 1])
def test_device_id_out_of_range(number: int) -> None:
    manager = CacheManager(LLMConfig(device_id=number))
    for call, args in ((manager.allocate_cache, (DESC,)), (manager.register_cache, (DESC, [8, 8]))):
        text = f"{call.__name__}: device_id ({number}) out of range [0, 2), the NPUs that there are"
        with pytest.raises(LLMException, match=re.escape(text)) as refusal:
            call(*args)
        assert refusal.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


@needs_two_npus
def test_last_device_id() -> None:
    (stack,) = CacheManager(LLMConfig(device_id=1)).allocate_cache(DESC).tensors
    assert stack.device == torch.device("npu:1")


@needs_two_npus
def test_addresses_of_another_device() -> None:
    """Also of a cache on the host: the host cannot read them."""
    first, second = ([tensor.data_ptr() for tensor in cache(2, 4, 8, device=f"npu:{index}")] for index in (0, 1))
    on_first, on_host = CacheDesc(2, (4, 8), DataType.DT_FLOAT), CacheDesc(2, (4, 8), DataType.DT_FLOAT, Placement.HOST)
    for described, addrs, place in ((on_first, second, "npu:0"), (on_host, second, "cpu"), (on_host, first, "cpu")):
        owner = "npu:1" if addrs is second else "npu:0"
        text = f"register_cache: addrs[0] ({addrs[0]:#x}) is memory of {owner}, but the cache is on {place}"
        refused(
            LLMStatusCode.LLM_PARAM_INVALID, text, CacheManager(LLMConfig(device_id=0)).register_cache, described, addrs
        )
    CacheManager(LLMConfig(device_id=1)).register_cache(on_first, second)


@pytest.mark.simulated
@pytest.mark.parametrize("addrs", [[2**63, 2**64 - 4096], [2**63 - 64, 2**63 - 1024]])
def test_addresses_above_2_to_the_63(addrs: list[int]) -> None:
    """They are wrapped without a check; the copy fails."""
    manager = CacheManager()
    held = manager.register_cache(DESC, addrs)
    assert held.tensor_addrs == addrs
    with pytest.raises(LLMException, match=f"{addrs[0]:#x} .*is not device memory") as failure:
        manager.copy_cache(held, held, 0, 1)
    assert failure.value.status_code is LLMStatusCode.LLM_FAILED
