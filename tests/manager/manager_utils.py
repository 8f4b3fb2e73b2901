# SPDX-License-Identifier: Apache-2.0
"""Helpers of the CacheManager tests."""

from typing import Any

from utils import filled

from llm_datadist_torch import Cache, CacheDesc, DataType, Placement


def desc(device: str = "cpu", num_tensors: int = 2, shape: tuple[int, ...] = (4, 8), **kwargs: Any) -> CacheDesc:
    placement = Placement.HOST if device == "cpu" else Placement.DEVICE
    return CacheDesc(num_tensors, shape, DataType.DT_FLOAT, placement, **kwargs)


def fill(held: Cache, seed: int = 0) -> None:
    for index, tensor in enumerate(held.tensors):
        tensor.copy_(filled(*tensor.shape, seed=seed + index))
