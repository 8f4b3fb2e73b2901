# SPDX-License-Identifier: Apache-2.0
"""What torch.profiler records of a call on the host: the op, the bytes it writes, and the request."""

from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from utils import cache, copy_cache, filled

from llm_datadist_torch import Cache, CacheManager, ops


def ranges(run: Callable[[], object]) -> list[str]:
    """The names of the recorded events of the ops while ``run`` runs, in order."""
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        run()
    return [event.name for event in trace.events() if "copy_cache" in event.name]


def swap(tensors: list[torch.Tensor]) -> None:
    ops.copy_cache_batch(tensors, tensors, torch.tensor([[0, 1, 0, 20], [1, 0, 0, 20], [2, 3, 0, -1]]), 8)


def by_manager(dst: list[torch.Tensor], src: list[torch.Tensor]) -> None:
    CacheManager().copy_cache(Cache.from_tensors(dst), Cache.from_tensors(src), 1, 2, 0, 8, req_id=9)


@pytest.mark.parametrize(
    ("call", "op", "copies"),
    [
        (lambda dst, src: copy_cache(dst, src, 1, 2), "copy_cache", "copy_cache: 96 bytes"),
        (lambda dst, src: copy_cache(dst, src, 1, 2, 3, 5, 7), "copy_cache", "copy_cache: 15 bytes (req_id 7)"),
        (lambda dst, src: copy_cache(dst, dst, 1, 1), "copy_cache", "copy_cache: 0 bytes"),
        (by_manager, "_copy_cache_blocking", "copy_cache: 24 bytes (req_id 9)"),
        (
            lambda dst, src: swap(dst),
            "copy_cache_batch",
            "copy_cache_batch: 216 bytes (req_id 8)",
        ),  # the 60 staged bytes do not count
    ],
)
def test_op_and_bytes(device: str, call: Callable, op: str, copies: str) -> None:
    dst, src = cache(3, 4, 8, device=device), cache(3, 4, 8, device=device, seed=1)
    found = ranges(lambda: call(dst, src))
    assert found[0] == f"llm_datadist::{op}"
    assert found.count(copies) == 1


def test_from_pageable_memory(device: str) -> None:
    """On an NPU they are first gathered in pinned memory, which does not count."""
    dst, src = cache(1, 4, 8, device=device), [filled(4, 8)]
    assert ranges(lambda: copy_cache(dst, src, 1, 2)).count("copy_cache: 32 bytes") == 1
