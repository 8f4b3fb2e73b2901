# SPDX-License-Identifier: Apache-2.0
"""Copies of whole blocks, and of tokens of them, by ``copy_cache_batch``. Their checks are here: the op knows neither."""

from collections.abc import Sequence

import torch
from torch import Tensor

Pairs = Tensor | Sequence[Sequence[int]]


def copy_blocks(
    caches: Sequence[Tensor],
    pairs: Pairs,
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
    _copy("copy_blocks", caches, caches, pairs, req_id, batch_dim)


def swap_blocks(
    src: Sequence[Tensor],
    dst: Sequence[Tensor],
    pairs: Pairs,
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
    _copy("swap_blocks", dst, src, pairs, req_id, batch_dim)


def copy_tokens(
    src: Sequence[Tensor],
    dst: Sequence[Tensor],
    pairs: Pairs,
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
    # Up to torch 2.7, torch.compile cannot trace `is` of lists.
    same = not torch.compiler.is_compiling() and dst is src
    dst_rows = src_rows if same else _rows_of_tokens("dst", dst, tokens, batch_dim, token_dim)
    rows_dim = max(batch_dim, token_dim - 1)
    for index, (of, to) in enumerate(zip(src_rows, dst_rows, strict=False)):  # the op refuses lists of other lengths
        if of.shape[rows_dim + 1 :] != to.shape[rows_dim + 1 :]:
            raise ValueError(
                f"copy_tokens: expected the tokens of src[{index}] and dst[{index}] to have the same number and size, "
                f"got {tokens} of shapes {list(src[index].shape)} and {list(dst[index].shape)}"
            )
    _copy("copy_tokens", dst_rows, src_rows, pairs, req_id, rows_dim)


def _copy(
    function: str, dst: Sequence[Tensor], src: Sequence[Tensor], pairs: Pairs, req_id: int | None, batch_dim: int
) -> None:
    """Copies whole rows from the first to the second of each pair."""
    if not isinstance(pairs, Tensor):
        # On the CPU also where torch has another default device. Without a dtype: fractions are refused, not cut off.
        pairs = torch.tensor(pairs, device="cpu") if len(pairs) else torch.empty(0, 2, dtype=torch.int64, device="cpu")
    if pairs.dim() != 2 or pairs.shape[1] != 2:
        raise ValueError(f"{function}: expected pairs of shape [n, 2], got {list(pairs.shape)}")
    of, to = pairs.unbind(1)
    copies = torch.stack([to, of, torch.zeros_like(of), torch.full_like(of, -1)], dim=1)
    torch.ops.llm_datadist.copy_cache_batch.default(dst, src, copies, req_id, batch_dim=batch_dim)


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
