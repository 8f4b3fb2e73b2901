# SPDX-License-Identifier: Apache-2.0
"""Helpers of many test files: filled tensors, the plain PyTorch reference, checks of bytes, other processes."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import random
import re
import socket
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


def assert_same_bytes(actual: Sequence[Tensor], expected: Sequence[Tensor], where: str = "") -> None:
    assert len(actual) == len(expected)
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(as_bytes(a), as_bytes(e)), f"{where} tensor {index} differs"


def whole_storage(tensor: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in host memory. Those that share a storage share one there too."""
    storages = {t.untyped_storage().data_ptr(): t for t in tensors}
    copied = {address: whole_storage(t.detach()).to("cpu", copy=True) for address, t in storages.items()}
    flat = [copied[t.untyped_storage().data_ptr()].untyped_storage() for t in tensors]
    return [
        torch.empty(0, dtype=t.dtype).set_(storage, t.storage_offset(), t.shape, t.stride())
        for t, storage in zip(tensors, flat, strict=True)
    ]


def _row(tensor: Tensor, index: int, batch_dim: int) -> Tensor:
    """A view of the bytes of a row in their order in memory: [dimensions before the batch..., bytes]."""
    row = tensor.select(batch_dim, index).unsqueeze(-1)
    order = sorted(range(batch_dim, row.dim()), key=lambda dim: -row.stride(dim) * (row.shape[dim] > 1))
    return row.permute(*range(batch_dim), *order).view(*tensor.shape[:batch_dim], -1).view(torch.uint8)


def reference_batch(
    dst: Sequence[Tensor], src: Sequence[Tensor], copies: Sequence[Sequence[int]], *, batch_dim: int = 0
) -> list[Tensor]:
    """The expected contents of dst after a batch, as host tensors. Every source is read before anything is written."""
    on_host = _on_host([*dst, *src])
    moves = []
    for d, s in zip(on_host[: len(dst)], on_host[len(dst) :], strict=True):
        for dst_index, src_index, offset, size in copies:
            row = _row(s, src_index, batch_dim)
            end = row.shape[-1] if size == -1 else offset + size
            moves.append((_row(d, dst_index, batch_dim)[..., offset:end], row[..., offset:end].clone()))
    for to, of in moves:
        to.copy_(of)
    return on_host[: len(dst)]


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
    whole = [whole_storage(t) for t in tensors]
    before = [as_bytes(w) for w in whole]
    versions = [t._version for t in tensors]
    yield
    assert_same_bytes(whole, before)
    assert [t._version for t in tensors] == versions


def table(copies: Sequence[Sequence[int]]) -> Tensor:
    """The copies argument of copy_cache_batch."""
    return torch.tensor(copies, dtype=torch.int64).view(-1, len(copies[0]) if copies else 4)


def whole_rows(dst_rows: Tensor, src_rows: Tensor) -> Tensor:
    """The copies argument that copies whole rows."""
    return torch.stack([dst_rows, src_rows, torch.zeros_like(dst_rows), torch.full_like(dst_rows, -1)], dim=1)


def check_batch(
    dst: Sequence[Tensor],
    src: Sequence[Tensor],
    copies: Sequence[Sequence[int]],
    *,
    batch_dim: int = 0,
    call: Callable[[], object] | None = None,
) -> None:
    """Calls copy_cache_batch, or another function, and compares the storages of dst and src with the reference."""
    expected = reference_batch(dst, src, copies, batch_dim=batch_dim)
    written = {t.untyped_storage().data_ptr() for t in dst}
    unchanged = [t for t in src if t.untyped_storage().data_ptr() not in written]
    before = [as_bytes(t) for t in unchanged]
    assert (call or (lambda: copy_cache_batch(dst, src, table(copies), batch_dim=batch_dim)))() is None
    if hasattr(torch, "npu"):
        torch.npu.synchronize()  # dst may be pinned host memory, which the host reads without waiting
    assert_same_bytes([whole_storage(d.detach()) for d in dst], [whole_storage(e) for e in expected])
    assert_same_bytes(unchanged, before)


def check_copy(dst: Sequence[Tensor], src: Sequence[Tensor], *args: int | None, batch_dim: int = 0) -> None:
    """The same for copy_cache."""
    numbers = (*args, *(0, 0, 0, -1)[len(args) :])[:4]
    check_batch(dst, src, [numbers], batch_dim=batch_dim, call=lambda: copy_cache(dst, src, *args, batch_dim=batch_dim))


@contextlib.contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def refused(code: LLMStatusCode, text: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Checks that a call raises LLMException with this code, and with the text in its message."""
    with pytest.raises(LLMException) as refusal:
        call(*args, **kwargs)
    assert refusal.value.status_code is code, refusal.value
    assert text in str(refusal.value)


def free_port() -> int:
    """Below the ports that the system gives to sockets without one, of which one could take it before it is used."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


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


def ported(script: Path) -> str:
    """The code of a script written for LLM-DataDist, with nothing changed but the package that it imports."""
    code, imports = re.subn(r"^from llm_datadist\b", "from llm_datadist_torch", script.read_text(), flags=re.MULTILINE)
    assert imports > 0
    return code


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
