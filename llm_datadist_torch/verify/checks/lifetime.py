# SPDX-License-Identifier: Apache-2.0
"""Memory that is freed or overwritten right after a call, while the copy is still queued."""

import gc

import torch

from ...ops import copy_cache, copy_cache_batch
from ..caches import CheckedCache, scattered, stacked, table
from ..registry import check, expect
from ..streams import held

SERVING = "calls on temporary tensors"


@check(
    "lifetime.overwritten",
    "a pageable source and the tensor copies may be overwritten as soon as the call returns",
    used_by=SERVING,
)
def overwritten(device: torch.device) -> str:
    dst, src = CheckedCache(scattered(), device), CheckedCache(scattered(), device, "pageable", seed=1)
    copies = table([(1, 2, 0, -1), (3, 0, 64, 128)])
    dst.copy_model(src, [(1, 2, 0, -1), (3, 0, 64, 128)])
    with held(device, seconds=0.1):
        copy_cache_batch(dst.tensors, src.tensors, copies)
        copies.fill_(-7)
        src.buffers[0].fill_(7)
    dst.expect_model()
    return ""


def _check_freed(memory: str) -> None:
    @check(
        f"lifetime.freed_{memory}",
        f"a source in {memory} memory may be freed as soon as the call returns",
        used_by=SERVING,
    )
    def run(device: torch.device) -> str:
        dst, src = CheckedCache(stacked(), device), CheckedCache(stacked(), device, memory, seed=1)
        dst.copy_model(src, [(1, 2, 0, -1)])
        size = src.buffers[0].numel()
        with held(device, seconds=0.1):
            copy_cache(dst.tensors, src.tensors, 1, 2, batch_dim=1)
            del src
            gc.collect()
            # Tensors that take the memory, if it is free: written at once by the host, on the device in stream order.
            where = {"pin_memory": True} if memory == "pinned" else {} if memory == "pageable" else {"device": device}
            others = [torch.empty(size, dtype=torch.uint8, **where).fill_(7) for _ in range(8)]
        dst.expect_model()
        del others
        return ""


for _memory in ("device", "pinned", "pageable"):
    _check_freed(_memory)


@check(
    "lifetime.freed_pageable_dst", "a pageable destination may be freed as soon as the call returns", used_by=SERVING
)
def freed_pageable_dst(device: torch.device) -> str:
    src, dst = CheckedCache(stacked(), device), CheckedCache(stacked(), device, "pageable", seed=1)
    with held(device, seconds=0.1):
        copy_cache(dst.tensors, src.tensors, 1, 2, batch_dim=1)
        size = dst.buffers[0].numel()
        del dst
        gc.collect()
        others = [torch.full((size,), 7, dtype=torch.uint8) for _ in range(8)]
    src.expect_model()
    expected = torch.full((size,), 7, dtype=torch.uint8)
    expect(all(torch.equal(other, expected) for other in others), "memory of other tensors was written")
    return ""
