# SPDX-License-Identifier: Apache-2.0
"""Settings of torch that change what a call like torch.empty makes: the manager's calls do the same inside them."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from manager_utils import desc, fill
from torch._subclasses import FakeTensorMode
from utils import cache, check_batch, refused

from llm_datadist_torch import Cache, CacheManager, LLMStatusCode

DEVICES = ["meta", *(["npu", "npu:1"] if hasattr(torch, "npu") else [])]


@contextlib.contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES = {
    **{f"set_default_device({name})": partial(default_device, name) for name in DEVICES},
    **{f"with torch.device({name})": partial(torch.device, name) for name in DEVICES},
    "set_default_dtype": partial(default_dtype, torch.float64),
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_every_call(mode: Callable[[], contextlib.AbstractContextManager], device: str) -> None:
    manager, owned, on_host = CacheManager(), cache(2, 4, 8, device=device), cache(2, 4, 8, seed=1)
    with mode():
        plain, blocks = manager.allocate_cache(desc(device)), manager.allocate_blocks_cache(desc(device))
        host = manager.allocate_blocks_cache(desc("cpu"))
        registered = manager.register_cache(desc(device), [tensor.data_ptr() for tensor in owned])
        wrapped = Cache.create_cpu_cache(desc("cpu"), [tensor.data_ptr() for tensor in on_host])
    for seed, held in enumerate((plain, blocks, host, registered, wrapped)):
        fill(held, seed)  # outside of inference mode, where inference tensors cannot be written

    def inside(call: Callable[..., None], *args: object) -> Callable[[], None]:
        def run() -> None:
            with mode():
                call(*args)

        return run

    for dst, src, copies, call, *args in (
        (plain, registered, [(1, 2, 4, 8)], manager.copy_cache, plain, registered, 1, 2, 4, 8),
        (wrapped, plain, [(0, 3, 0, -1)], manager.copy_cache, wrapped, plain, 0, 3),
        (blocks, blocks, [(1, 0, 0, -1), (2, 0, 0, -1)], manager.copy_blocks, blocks, {0: [1, 2]}),
        (blocks, host, [(0, 3, 0, -1), (3, 0, 0, -1)], manager.swap_blocks, host, blocks, {3: 0, 0: 3}),
    ):
        check_batch(dst.unstacked, src.unstacked, copies, call=inside(call, *args))


def test_tensors_without_memory() -> None:
    """A cache needs memory."""
    text = "allocate it outside of FakeTensorMode and torch.func"

    def allocate(x: torch.Tensor) -> torch.Tensor:
        refused(LLMStatusCode.LLM_FAILED, text, CacheManager().allocate_cache, desc())
        return x.sum()

    with FakeTensorMode():
        allocate(torch.ones(2))
    torch.func.grad(allocate)(torch.ones(2))
    torch.func.functionalize(allocate)(torch.ones(2))
