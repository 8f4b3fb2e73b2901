# SPDX-License-Identifier: Apache-2.0
"""Helpers of the CacheManager tests."""

from collections.abc import Callable
from typing import Any

import pytest
from utils import filled

from llm_datadist_torch import Cache, CacheDesc, DataType, LLMException, LLMStatusCode, Placement


def desc(device: str = "cpu", num_tensors: int = 2, shape: tuple[int, ...] = (4, 8), **kwargs: Any) -> CacheDesc:
    placement = Placement.HOST if device == "cpu" else Placement.DEVICE
    return CacheDesc(num_tensors, shape, DataType.DT_FLOAT, placement, **kwargs)


def refused(code: LLMStatusCode, text: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    with pytest.raises(LLMException) as refusal:
        call(*args, **kwargs)
    assert refusal.value.status_code is code, refusal.value
    assert text in str(refusal.value)


def fill(held: Cache, seed: int = 0) -> None:
    for index, tensor in enumerate(held.tensors):
        tensor.copy_(filled(*tensor.shape, seed=seed + index))
