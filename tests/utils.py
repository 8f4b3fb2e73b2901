# SPDX-License-Identifier: Apache-2.0
"""What several test files share: filled tensors, the plain-PyTorch reference, and the watch over memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

copy_cache = torch.ops.llm_datadist.copy_cache.default
copy_cache_batch = torch.ops.llm_datadist.copy_cache_batch.default


def filled(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Tensor:
    """A tensor of random bytes (0 or 1 for bool, whose other bytes are no values), the same ones for one seed."""
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
    """A copy in host memory with the same strides. Copies the whole storage: gathering a view would be compute."""
    tensor = tensor.detach()
    whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
    return whole.to("cpu", copy=True).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor in host memory: equality of floats would call a NaN different from itself."""
    return to_host(tensor).contiguous().view(-1).view(torch.uint8)


def assert_same_bytes(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(actual) == len(expected)
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(as_bytes(a), as_bytes(e)), f"tensor {index} differs"


def _row(tensor: Tensor, index: int, batch_dim: int) -> Tensor:
    """The bytes of a row as a view, [dimensions before the batch..., bytes]. For rows in C order."""
    row = tensor.select(batch_dim, index).unsqueeze(-1)
    return row.view(*tensor.shape[:batch_dim], -1).view(torch.uint8)


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
    """What dst has to hold afterwards, as host tensors: every source is read before any destination is written."""
    result = [to_host(d) for d in dst]
    for d, s in zip(result, src, strict=True):
        row = _row(to_host(s), src_batch_index, batch_dim)
        end = row.shape[-1] if size == -1 else offset + size
        _row(d, dst_batch_index, batch_dim)[..., offset:end] = row[..., offset:end]
    return result


def reference_batch(
    dst: Sequence[Tensor], src: Sequence[Tensor], copies: Sequence[Sequence[int]], *, batch_dim: int = 0
) -> list[Tensor]:
    """What dst has to hold after a batch, as host tensors: one copy after the other, all from src as it was."""
    before = [to_host(s) for s in src]
    result = [to_host(d) for d in dst]
    for copy in copies:
        result = reference_copy(result, before, *copy, batch_dim=batch_dim)
    return result


@contextlib.contextmanager
def nothing_written(*tensors: Tensor) -> Iterator[None]:
    """Fails if a byte of the tensors' storages or a version counter differs afterwards."""
    whole = [torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage()) for t in tensors]
    before = [as_bytes(w) for w in whole]
    versions = [t._version for t in tensors]
    yield
    assert_same_bytes(whole, before)
    assert [t._version for t in tensors] == versions
