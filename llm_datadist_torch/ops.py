# SPDX-License-Identifier: Apache-2.0
"""Typed, documented functions over torch.ops.llm_datadist. They add nothing to the ops: every check is in C++."""

from collections.abc import Sequence

import torch
from torch import Tensor


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
    """Copies a slice of one row of a KV cache to a row of another, in every tensor of the two.

    A cache is a list of tensors, one or two per layer. Dimension ``batch_dim`` of each is the batch; a row is what
    follows it for one batch index. For every ``i``, bytes ``[offset, offset + size)`` of row ``src_batch_index`` of
    ``src[i]`` go to the same bytes of row ``dst_batch_index`` of ``dst[i]``. Nothing else of dst changes.

    The dimensions before ``batch_dim`` are as good as separate tensors: a cache stacked as ``[num_tensors, batch,
    ...]`` is a list of one tensor with ``batch_dim=1``. Prefer that where you can: it is the cheapest to call.

    The same function as ``torch.ops.llm_datadist.copy_cache``, which is for use in model code. Both work in
    torch.compile and torch.export. The source of the contract is LLM-DataDist's page of ``CacheManager.copy_cache``;
    docs/contract.md says what was decided where that page is silent.

    Args:
        dst: The tensors to write to, all of one dtype and on one device. Each of shape ``[..., batch, ...]``, rows
            dense (one contiguous range of bytes each), not overlapping, possibly further apart than their size.
        src: The tensors to read from: as many, of the same dtype and the same sizes before ``batch_dim``. Their batch
            and their rows may differ in size from dst's, as long as the bytes are there on both sides. It may be the
            same cache as dst, or views of it.
        dst_batch_index: The row to write to, in ``[0, batch of dst)``.
        src_batch_index: The row to read from, in ``[0, batch of src)``.
        offset: Where the slice begins in each row, in bytes, on both sides. Need not be a multiple of the element.
        size: The length of the slice in bytes, or -1 for the rest of the source row.
        req_id: The request this call belongs to; messages about the call name it. Its bits are read as a uint64.
        batch_dim: Which dimension is the batch, in ``[0, dimensions)``.

    Raises:
        ValueError: The call is refused: an index, offset or size outside its range, lists of different length, dtypes
            that differ, rows that are not dense, ranges that overlap so that the result would depend on the order of
            the copies, a dst tensor that requires grad with grad mode on. The text names the argument, its value and
            the rule. Nothing has been written.
        RuntimeError: An argument of the wrong type (from torch's schema check), or a failure of the device.
        NotImplementedError: The tensors are on a device that there is no kernel for.

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
    """Makes many copies of slices of rows, as if every one were read before any is written.

    dst and src may be the same cache: chains (row 0 to 1, 1 to 2), swaps and any permutation come out right, so this
    is beam search, copy-on-write of blocks, and swapping blocks in and out. The copies are ordered, and only what lies
    on a cycle is staged.

    The same function as ``torch.ops.llm_datadist.copy_cache_batch``, which is for use in model code. Other copies, and
    another number of them, do not compile a graph again. A graph captured on an NPU keeps the copies of its capture, also
    one that torch.compile captures (``backend="npugraph_ex"``): call it outside such graphs if the copies change.

    Args:
        dst: The tensors to write to, as for ``copy_cache``.
        src: The tensors to read from, as for ``copy_cache``.
        copies: Shape ``[n, 4]``, dtype int64, on the CPU, any n from 0 up. A row per copy, in the order of
            ``copy_cache``: dst_batch_index, src_batch_index, offset, size; the last two in bytes, ``size`` -1 for the
            rest of the source row. It is read during the call, and may be written at once.
        req_id: The request this call belongs to; messages about the call name it. Its bits are read as a uint64.
        batch_dim: Which dimension of the tensors is the batch, in ``[0, dimensions)``.

    Raises:
        ValueError: The call is refused, for the reasons that ``copy_cache`` has (the text names the row, as
            ``copies[3]``), for a ``copies`` of another shape, dtype or device, or because a byte would be written
            twice. Other overlap is not refused. Nothing has been written.
        RuntimeError: An argument of the wrong type (from torch's schema check), a failure of the device, or no memory
            for what has to be staged.
        NotImplementedError: The tensors are on a device that there is no kernel for.

    Example:
        >>> cache = [torch.tensor([[0.0], [1.0], [2.0]])]
        >>> copy_cache_batch(cache, cache, torch.tensor([[0, 1, 0, -1], [1, 2, 0, -1], [2, 0, 0, -1]]))
        >>> cache[0].squeeze()
        tensor([1., 2., 0.])
    """
    torch.ops.llm_datadist.copy_cache_batch.default(dst, src, copies, req_id, batch_dim=batch_dim)


def copy_cache_blocking(
    dst: Sequence[Tensor],
    src: Sequence[Tensor],
    dst_batch_index: int,
    src_batch_index: int,
    offset: int,
    size: int,
    req_id: int | None,
    *,
    batch_dim: int,
    timeout_ms: int,
) -> bool:
    """copy_cache that returns when the bytes are there. For CacheManager.

    Returns:
        False if ``timeout_ms`` milliseconds passed first; the destination ranges then hold anything.
    """
    done: bool = torch.ops.llm_datadist._copy_cache_blocking.default(
        dst,
        src,
        dst_batch_index,
        src_batch_index,
        offset,
        size,
        req_id,
        batch_dim=batch_dim,
        timeout_ms=timeout_ms,
    )
    return done


def copy_cache_batch_blocking(
    dst: Sequence[Tensor],
    src: Sequence[Tensor],
    copies: Tensor,
    req_id: int | None,
    *,
    batch_dim: int,
    timeout_ms: int,
) -> bool:
    """copy_cache_batch that returns when the bytes are there. For CacheManager.

    Returns:
        False if ``timeout_ms`` milliseconds passed first; the destination ranges then hold anything.
    """
    done: bool = torch.ops.llm_datadist._copy_cache_batch_blocking.default(
        dst, src, copies, req_id, batch_dim=batch_dim, timeout_ms=timeout_ms
    )
    return done
