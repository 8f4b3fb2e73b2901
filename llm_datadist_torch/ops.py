# SPDX-License-Identifier: Apache-2.0
"""The ops, typed and documented. All checks are in C++."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._native import signals
from .blocks import copy_blocks as copy_blocks
from .blocks import copy_tokens as copy_tokens
from .blocks import swap_blocks as swap_blocks


def copy_cache(
    dst: Sequence[Tensor],
    src: Sequence[Tensor],
    dst_batch_index: int = 0,
    src_batch_index: int = 0,
    offset: int = 0,
    size: int = -1,
    req_id: int | None = None,
    *,
    batch_dim: int = 0,
) -> None:
    """Copies a slice of one row of a KV cache to a row of another cache, in every tensor.

    A cache is a list of tensors, one or two per layer. Dimension ``batch_dim`` of each tensor is the batch. A row is the
    part of a tensor with one batch index. For every ``i``, bytes ``[offset, offset + size)`` of row ``src_batch_index``
    of ``src[i]`` are copied to the same bytes of row ``dst_batch_index`` of ``dst[i]``. Nothing else in dst changes.

    Each index of the dimensions before ``batch_dim`` counts as a separate tensor: a cache stacked as ``[num_tensors,
    batch, ...]`` is a list of one tensor with ``batch_dim=1``. Prefer stacked caches: they have the lowest call overhead.

    The same function as ``torch.ops.llm_datadist.copy_cache``, which is meant for model code. Both work in torch.compile
    and torch.export. The contract comes from LLM-DataDist's page of ``CacheManager.copy_cache``; docs/contract.md
    defines what that page leaves open.

    Args:
        dst: The tensors to write to, on one device. Each has the shape ``[..., batch, ...]``. They may differ in dtype and
            row size. Each row is one contiguous range of bytes. Rows do not overlap; there may be gaps between them.
        src: The tensors to read from, on one device: as many as in dst. ``src[i]`` has the dtype of ``dst[i]`` and the
            same sizes before ``batch_dim``. Batch sizes and row sizes may differ from dst's if the slice exists on both
            sides. It may be the same cache as dst, or views of it.
        dst_batch_index: The row to write to, in ``[0, batch of dst)``.
        src_batch_index: The row to read from, in ``[0, batch of src)``.
        offset: The start of the slice in each row, in bytes, on both sides. Need not be a multiple of the element size.
        size: The length of the slice in bytes, or -1 for the rest of the source row of each tensor.
        req_id: The request this call belongs to, for messages about the call. Its bits are read as a uint64.
        batch_dim: The dimension that is the batch, in ``[0, dimensions)``.

    Raises:
        ValueError: An index, offset or size outside its range, lists of different length, a pair of different dtypes,
            rows that are not contiguous, a byte of dst that would be written twice, or a dst tensor that requires grad
            with grad mode on. The text names the argument, its value and the rule.
            Nothing has been written.
        RuntimeError: An argument of the wrong type (from torch's schema check), or a failure of the device.
        NotImplementedError: The tensors are on a device without a kernel.

    Example:
        >>> model_cache = [torch.zeros(4, 16) for _ in range(2)]
        >>> prefilled = [torch.ones(1, 16) for _ in range(2)]
        >>> copy_cache(model_cache, prefilled, dst_batch_index=2, size=8 * 4)
        >>> model_cache[1].sum(dim=1)
        tensor([0., 0., 8., 0.])
    """
    torch.ops.llm_datadist.copy_cache.default(
        dst, src, dst_batch_index, src_batch_index, offset, size, req_id, batch_dim=batch_dim
    )


def copy_cache_batch(
    dst: Sequence[Tensor],
    src: Sequence[Tensor],
    copies: Tensor,
    req_id: int | None = None,
    *,
    batch_dim: int = 0,
) -> None:
    """Copies many slices of rows, as if all of them were read before any is written.

    dst and src may be the same cache: chains (row 0 to 1, 1 to 2), swaps and other permutations are correct. Use it for
    beam search, copy-on-write of blocks, and swapping blocks in and out. The copies are ordered; a buffer is used only
    for cycles.

    The same function as ``torch.ops.llm_datadist.copy_cache_batch``, which is meant for model code. A change of
    ``copies``, also of their number, does not recompile a graph. A graph captured on an NPU, also by torch.compile
    (``backend="npugraph_ex"``), repeats the copies of its capture if ``copies`` is on the CPU, and reads it anew if it is
    on the NPU.

    On the NPU (with dst, src and ``copies`` there, after ``warm_up``), a row that is not inside the caches is skipped
    instead of refused; ``skipped_rows`` counts them. See docs/contract.md.

    Args:
        dst: The tensors to write to, as for ``copy_cache``.
        src: The tensors to read from, as for ``copy_cache``.
        copies: The copies, of shape ``[n, 4]`` or ``[n, 5]`` and dtype int64, on the CPU or on the NPU; n may be 0. One
            row per copy, in the order of ``copy_cache``: dst_batch_index, src_batch_index, offset, size. A fifth number is
            the offset in the source row; the third is then that in the destination row. Offsets and size are in bytes;
            ``size`` -1 means the rest of the source row. On the CPU the tensor is read during the call and may be changed
            afterwards.
        req_id: The request this call belongs to, for messages about the call. Its bits are read as a uint64.
        batch_dim: The dimension of the tensors that is the batch, in ``[0, dimensions)``.

    Raises:
        ValueError: As for ``copy_cache``; the text names the row, as ``copies[3]``. Also a ``copies`` of another shape,
            dtype or device. Nothing has been written.
        RuntimeError: An argument of the wrong type (from torch's schema check), a failure of the device, or no memory
            for the buffer.
        NotImplementedError: The tensors are on a device without a kernel.

    Example:
        >>> cache = [torch.tensor([[0.0], [1.0], [2.0]])]
        >>> copies = torch.tensor([[0, 1, 0, -1], [1, 2, 0, -1], [2, 0, 0, -1]])
        >>> copy_cache_batch(cache, cache, copies)
        >>> cache[0].squeeze()
        tensor([1., 2., 0.])

        A token of 4 bytes moves within row 0, from byte 8 to byte 0:

        >>> tokens = [torch.tensor([[5.0, 6.0, 7.0]])]
        >>> copy_cache_batch(tokens, tokens, torch.tensor([[0, 0, 0, 4, 8]]))
        >>> tokens[0]
        tensor([[7., 6., 7.]])
    """
    torch.ops.llm_datadist.copy_cache_batch.default(dst, src, copies, req_id, batch_dim=batch_dim)


def _blocking(op: Callable[..., bool]) -> Callable[..., bool]:
    """An op that waits, for CacheManager. Takes all arguments of the schema."""

    def call(*args: Any, **kwargs: Any) -> bool:
        done = op(*args, **kwargs)
        if not done:
            signals.raise_pending()
        return done

    return call


# They return False after `timeout_ms` milliseconds without completion; the destination ranges are undefined then.
copy_cache_blocking = _blocking(torch.ops.llm_datadist._copy_cache_blocking.default)
copy_cache_batch_blocking = _blocking(torch.ops.llm_datadist._copy_cache_batch_blocking.default)
