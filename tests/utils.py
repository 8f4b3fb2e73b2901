# SPDX-License-Identifier: Apache-2.0
"""Helpers of many test files: filled tensors, the plain PyTorch reference, checks of bytes, other processes."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_datadist_torch import LLMException, LLMStatusCode

TESTS = Path(__file__).parent
ROOT = TESTS.parent

copy_cache = torch.ops.llm_datadist.copy_cache.default
copy_cache_batch = torch.ops.llm_datadist.copy_cache_batch.default


def filled(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Tensor:
    """A tensor of random bytes that depend on the shape and the seed alone. A bool tensor gets only 0 and 1."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + math.prod(shape))
    high = 2 if dtype == torch.bool else 256
    count = math.prod(shape) * dtype.itemsize
    flat = torch.randint(high, (count,), generator=generator, dtype=torch.uint8)
    return flat.view(dtype).view(shape).to(device)


def cache(
    count: int, *shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> list[Tensor]:
    return [filled(*shape, dtype=dtype, device=device, seed=seed * 1000 + i) for i in range(count)]


def to_host(tensor: Tensor) -> Tensor:
    """A copy in host memory with the same strides, gaps and all: to gather a view is to compute."""
    tensor = tensor.detach()
    extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    flat = tensor.as_strided((extent if tensor.numel() else 0,), (1,))
    return flat.to("cpu", copy=True).as_strided(tensor.shape, tensor.stride(), 0)


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, in host memory. Unlike floats, they compare equal where a value is NaN."""
    return to_host(tensor).contiguous().view(-1).view(torch.uint8)


def assert_same_bytes(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(actual) == len(expected)
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(as_bytes(a), as_bytes(e)), f"tensor {index} differs"


def _row(tensor: Tensor, index: int, batch_dim: int) -> Tensor:
    """A view of the bytes of a row, [dimensions before the batch..., bytes]. The row must be in C order."""
    row = tensor.select(batch_dim, index).unsqueeze(-1)
    return row.view(*tensor.shape[:batch_dim], -1).view(torch.uint8)


def reference_batch(
    dst: Sequence[Tensor], src: Sequence[Tensor], copies: Sequence[Sequence[int]], *, batch_dim: int = 0
) -> list[Tensor]:
    """The expected contents of dst after a batch, as host tensors. Every copy reads src as it was before the call."""
    before, result = [to_host(s) for s in src], [to_host(d) for d in dst]
    for d, s in zip(result, before, strict=True):
        for dst_index, src_index, offset, size in copies:
            row = _row(s, src_index, batch_dim)
            end = row.shape[-1] if size == -1 else offset + size
            _row(d, dst_index, batch_dim)[..., offset:end] = row[..., offset:end]
    return result


def reference_copy(
    dst: Sequence[Tensor],
    src: Sequence[Tensor],
    dst_batch_index: int = 0,
    src_batch_index: int = 0,
    offset: int = 0,
    size: int = -1,
    *,
    batch_dim: int = 0,
) -> list[Tensor]:
    """The expected contents of dst after one copy, as host tensors."""
    return reference_batch(dst, src, [(dst_batch_index, src_batch_index, offset, size)], batch_dim=batch_dim)


@contextlib.contextmanager
def nothing_written(*tensors: Tensor) -> Iterator[None]:
    """Fails if the block changes a byte of the tensors' storages or a version counter."""
    whole = [torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage()) for t in tensors]
    before = [as_bytes(w) for w in whole]
    versions = [t._version for t in tensors]
    yield
    assert_same_bytes(whole, before)
    assert [t._version for t in tensors] == versions


def table(copies: Sequence[Sequence[int]]) -> Tensor:
    """The copies argument of copy_cache_batch."""
    return torch.tensor(copies, dtype=torch.int64).view(-1, 4)


def whole_rows(dst_rows: Tensor, src_rows: Tensor) -> Tensor:
    """The copies argument that copies whole rows."""
    return torch.stack([dst_rows, src_rows, torch.zeros_like(dst_rows), torch.full_like(dst_rows, -1)], dim=1)


def _check(call: Callable[[], object], dst: Sequence[Tensor], src: Sequence[Tensor], expected: list[Tensor]) -> None:
    unchanged = [to_host(s) for s in src]
    shared = {t.untyped_storage().data_ptr() for t in dst} & {t.untyped_storage().data_ptr() for t in src}
    assert call() is None
    if hasattr(torch, "npu"):
        torch.npu.synchronize()  # dst may be pinned host memory, which the host reads without waiting
    assert_same_bytes(dst, expected)
    if not shared:
        assert_same_bytes(src, unchanged)


def check_copy(dst: Sequence[Tensor], src: Sequence[Tensor], *args: int | None, **kwargs: int) -> None:
    """Calls copy_cache and compares dst with the reference. src must be unchanged, unless it shares memory with dst."""
    expected = reference_copy(dst, src, *args[:4], batch_dim=kwargs.get("batch_dim", 0))
    _check(lambda: copy_cache(dst, src, *args, **kwargs), dst, src, expected)


def check_batch(dst: Sequence[Tensor], src: Sequence[Tensor], copies: Sequence[Sequence[int]], **kwargs: int) -> None:
    """Calls copy_cache_batch and compares dst and src as check_copy does."""
    expected = reference_batch(dst, src, copies, **kwargs)
    _check(lambda: copy_cache_batch(dst, src, table(copies), **kwargs), dst, src, expected)


def refused(code: LLMStatusCode, text: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Checks that a call raises LLMException with this code, and with the text in its message."""
    with pytest.raises(LLMException) as refusal:
        call(*args, **kwargs)
    assert refusal.value.status_code is code, refusal.value
    assert text in str(refusal.value)


def shrunk(device: str) -> Tensor:
    """A [4, 8] float32 tensor whose storage was resized to 64 bytes, as some sharding libraries do."""
    tensor = filled(4, 8, device=device)
    tensor.untyped_storage().resize_(64)
    return tensor


def load_example(name: str) -> ModuleType:
    """A script of the folder examples as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command: str | Path, cwd: Path = TESTS, code: int = 0, **env: str | None) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end and checks its exit code.

    Args:
        command: The program and its arguments. "python" is the interpreter of the tests, and can import their helpers.
        cwd: Its working directory.
        code: The expected exit code.
        env: Environment variables to set, or to remove where the value is None.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    changed = {"PATH": path, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS / 'npu'}", **env}
    environment = {name: value for name, value in {**os.environ, **changed}.items() if value is not None}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == code, done.stdout + done.stderr
    # torch_npu prints advice where CANN's environment is not sourced.
    done.stdout = "".join(line for line in done.stdout.splitlines(keepends=True) if "ASCEND_HOME_PATH" not in line)
    return done
