# SPDX-License-Identifier: Apache-2.0
"""Typed, documented functions over torch.ops.llm_datadist. They check what only they know; all else is checked in C++."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._native import signals


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
        >>> copy_cache_batch(cache, cache, torch.tensor([[0, 1, 0, -1], [1, 2, 0, -1], [2, 0, 0, -1]]))
        >>> cache[0].squeeze()
        tensor([1., 2., 0.])

        A token of 4 bytes moves within row 0, from byte 8 to byte 0:

        >>> tokens = [torch.tensor([[5.0, 6.0, 7.0]])]
        >>> copy_cache_batch(tokens, tokens, torch.tensor([[0, 0, 0, 4, 8]]))
        >>> tokens[0]
        tensor([[7., 6., 7.]])
    """
    torch.ops.llm_datadist.copy_cache_batch.default(dst, src, copies, req_id, batch_dim=batch_dim)


def copy_blocks(
    caches: Sequence[Tensor],
    pairs: Tensor | Sequence[Sequence[int]],
    req_id: int | None = None,
    *,
    batch_dim: int = 0,
) -> None:
    """Copies whole blocks within a paged cache, as if all were read before any is written.

    One ``copy_cache_batch``, with its contract, for all layers and pairs: for copy-on-write, and for moving blocks
    together. Also works in torch.compile, torch.export and NPU capture. To compiled code, pass ``pairs`` as a tensor: a
    list is a part of the graph.

    Args:
        caches: The tensors of the cache, as ``dst`` of ``copy_cache``. Blocks are rows: ``batch_dim`` is 0 for
            ``[blocks, ...]``, 1 for ``[2, blocks, ...]``, 2 for ``[layers, 2, blocks, ...]``.
        pairs: For each copy, the block to read and the block to write: the **source first**, as in vLLM's block
            mappings, and unlike the rows of ``copies``. Of shape ``[n, 2]``; a tensor is int64 and on the CPU.
        req_id: The request this call belongs to, for messages about the call.
        batch_dim: The dimension that is the blocks, in ``[0, dimensions)``.

    Raises:
        ValueError: As for ``copy_cache_batch``, whose text names ``pairs[3]`` as ``copies[3]``. Also pairs of another
            shape. Nothing has been written.

    Example:
        >>> cache = [torch.tensor([[0.0], [1.0], [2.0]])]
        >>> copy_blocks(cache, [(0, 2), (2, 0)])
        >>> cache[0].squeeze()
        tensor([2., 1., 0.])
    """
    copy_cache_batch(caches, caches, _whole_rows("copy_blocks", pairs), req_id, batch_dim=batch_dim)


def swap_blocks(
    src: Sequence[Tensor],
    dst: Sequence[Tensor],
    pairs: Tensor | Sequence[Sequence[int]],
    req_id: int | None = None,
    *,
    batch_dim: int = 0,
) -> None:
    """Copies whole blocks from one cache to another: out to host memory and back in.

    As ``copy_blocks``, between two caches. If the host cache is pinned, the call does not wait for the copies.

    Args:
        src: The tensors to read from. They come **before** dst, as in vLLM, and unlike in ``copy_cache``.
        dst: The tensors to write to. If its blocks are larger than those of src, their beginning is written.
        pairs: For each copy, the block of src and the block of dst. See ``copy_blocks``.
        req_id: The request this call belongs to, for messages about the call.
        batch_dim: The dimension of all tensors that is the blocks.

    Raises:
        ValueError: As for ``copy_blocks``.
    """
    copy_cache_batch(dst, src, _whole_rows("swap_blocks", pairs), req_id, batch_dim=batch_dim)


def copy_tokens(
    src: Sequence[Tensor],
    dst: Sequence[Tensor],
    pairs: Tensor | Sequence[Sequence[int]],
    tokens: slice,
    req_id: int | None = None,
    *,
    batch_dim: int = 0,
    token_dim: int,
) -> None:
    """Copies some tokens of rows or blocks to the same place in others, as if all were read before any is written.

    For sharing a prefix, for reordering the filled part of beams, and for the filled part of a block. As
    ``copy_blocks``, one ``copy_cache_batch`` for all layers and pairs. It gets views of the tensors, which take some 5 us
    for each of a list, so prefer stacked caches.

    ======================================= ========= =========
    tensors                                 batch_dim token_dim
    ======================================= ========= =========
    ``[batch, heads, tokens, dim]``         0         2
    ``[batch, tokens, heads, dim]``         0         1
    ``[2, blocks, block_size, heads, dim]`` 1         2
    ======================================= ========= =========

    Args:
        src: The tensors to read from. They come **before** dst, as in ``swap_blocks``.
        dst: The tensors to write to. It may be ``src``. ``dst[i]`` may have other numbers of rows and tokens than
            ``src[i]``, but no other size of a token.
        pairs: For each copy, the row or block of src and that of dst. See ``copy_blocks``.
        tokens: The tokens to copy, on both sides: ``slice(start, stop)`` with ``0 <= start < stop``. Without ``start``
            they begin at 0; without ``stop`` they are all that follow. In compiled graphs, other numbers do not
            recompile.
        req_id: The request this call belongs to, for messages about the call.
        batch_dim: The dimension of all tensors that is the rows or blocks, in ``[0, dimensions)``.
        token_dim: The dimension of all tensors that is the tokens, in ``[0, dimensions)``.

    Raises:
        TypeError: ``tokens`` is not a slice.
        ValueError: As for ``copy_blocks``. Also tokens that a tensor does not have, a step, tokens of different sizes, or
            a batch_dim and a token_dim that are not two dimensions. Nothing has been written.

    Example:
        >>> cache = torch.arange(12.0).view(2, 1, 6, 1)
        >>> copy_tokens([cache], [cache], [(0, 1)], slice(1, 4), token_dim=2)
        >>> cache.view(2, 6)
        tensor([[ 0.,  1.,  2.,  3.,  4.,  5.],
                [ 6.,  1.,  2.,  3., 10., 11.]])
    """
    src_rows = _rows_of_tokens("src", src, tokens, batch_dim, token_dim)
    dst_rows = src_rows if dst is src else _rows_of_tokens("dst", dst, tokens, batch_dim, token_dim)
    rows_dim = max(batch_dim, token_dim - 1)
    for index, (of, to) in enumerate(zip(src_rows, dst_rows, strict=False)):  # the op refuses lists of other lengths
        if of.shape[rows_dim + 1 :] != to.shape[rows_dim + 1 :]:
            raise ValueError(
                f"copy_tokens: expected the tokens of src[{index}] and dst[{index}] to have the same number and size, "
                f"got {tokens} of shapes {list(src[index].shape)} and {list(dst[index].shape)}"
            )
    copy_cache_batch(dst_rows, src_rows, _whole_rows("copy_tokens", pairs), req_id, batch_dim=rows_dim)


def _whole_rows(function: str, pairs: Tensor | Sequence[Sequence[int]]) -> Tensor:
    """The ``copies`` that copy whole rows from the first to the second of each pair."""
    if not isinstance(pairs, Tensor):
        # On the CPU also where torch has another default device. Without a dtype: fractions are refused, not cut off.
        pairs = torch.tensor(pairs, device="cpu") if len(pairs) else torch.empty(0, 2, dtype=torch.int64, device="cpu")
    if pairs.dim() != 2 or pairs.shape[1] != 2:
        raise ValueError(f"{function}: expected pairs of shape [n, 2], got {list(pairs.shape)}")
    src, dst = pairs.unbind(1)
    return torch.stack([dst, src, torch.zeros_like(src), torch.full_like(src, -1)], dim=1)


def _rows_of_tokens(
    name: str, tensors: Sequence[Tensor], tokens: slice, batch_dim: int, token_dim: int
) -> list[Tensor]:
    """Views of the tokens alone. Dimensions between rows and tokens (heads) come before the rows, which are so dense."""
    if not isinstance(tokens, slice):
        raise TypeError(f"copy_tokens: tokens must be a slice, got {type(tokens).__name__}")
    rows = []
    for index, tensor in enumerate(tensors):
        dims = tensor.dim()
        if batch_dim == token_dim or not (0 <= batch_dim < dims and 0 <= token_dim < dims):
            raise ValueError(
                f"copy_tokens: batch_dim ({batch_dim}) and token_dim ({token_dim}) must be two dimensions of "
                f"{name}[{index}], got shape {list(tensor.shape)}"
            )
        length = tensor.shape[token_dim]
        start = 0 if tokens.start is None else tokens.start
        stop = length if tokens.stop is None else tokens.stop
        if not 0 <= start < stop <= length or tokens.step not in (None, 1):
            raise ValueError(
                f"copy_tokens: tokens ({tokens}) must be a range within [0, {length}), the tokens of {name}[{index}], "
                "without a step"
            )
        rows.append(tensor.narrow(token_dim, start, stop - start).movedim(batch_dim, max(batch_dim, token_dim - 1)))
    return rows


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
    """copy_cache that returns when the copy is complete. For CacheManager.

    Returns:
        False after ``timeout_ms`` milliseconds without completion; the destination ranges are undefined then.
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
    if not done:
        signals.raise_pending()
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
    """copy_cache_batch that returns when the copies are complete. For CacheManager.

    Returns:
        False after ``timeout_ms`` milliseconds without completion; the destination ranges are undefined then.
    """
    done: bool = torch.ops.llm_datadist._copy_cache_batch_blocking.default(
        dst, src, copies, req_id, batch_dim=batch_dim, timeout_ms=timeout_ms
    )
    if not done:
        signals.raise_pending()
    return done
