# SPDX-License-Identifier: Apache-2.0
"""Checks of a call against the caches of both processes. All raise LLM_PARAM_INVALID, before any byte is transferred."""

import numpy as np

from ..datadist.cache_keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from ..datadist.checks import check_kind
from ..datadist.status import param_invalid
from .layout import Layout, Numbers
from .messages import IdKey, NamedKey

LayerArguments = tuple[range | None, range | None, int]
"""src_layer_range, dst_layer_range, tensor_num_per_layer. None means all layers. Layer ``i`` is tensors
``[i * tensor_num_per_layer, (i + 1) * tensor_num_per_layer)``."""

Planes = tuple[int, int]
"""The first plane of a range, and the one after the last. See ``Layout``."""


def checked_planes(layers: LayerArguments, local: Layout, remote: Layout, *, write: bool) -> tuple[Planes, Planes]:
    """The planes of the cache of this process and those of the peer's that a call transfers."""
    src_layers, dst_layers, per_layer = layers
    src, dst = (local, remote) if write else (remote, local)
    if dst.dtype != src.dtype:
        raise param_invalid(f"both caches must have the same element type, got {dst.dtype} and {src.dtype}")
    per_tensor = len(src.bases) // src.num_tensors
    if per_tensor != len(dst.bases) // dst.num_tensors:
        raise param_invalid("both caches must have the same sizes before batch_dim_index")
    into = _tensors("dst_layer_range", dst_layers, per_layer, dst)
    out_of = _tensors("src_layer_range", src_layers, per_layer, src)
    if len(into) != len(out_of):
        what = "num_tensors" if src_layers is dst_layers is None else "number of tensors in the layers"
        raise param_invalid(
            f"both caches must have the same {what}, got {len(into)} to write and {len(out_of)} to read"
        )
    written, read = ((each.start * per_tensor, each.stop * per_tensor) for each in (into, out_of))
    return (read, written) if write else (written, read)


def _tensors(name: str, layers: range | None, per_layer: int, layout: Layout) -> range:
    if layers is None:
        return range(layout.num_tensors)
    if layout.num_tensors % per_layer != 0:
        raise param_invalid(
            f"tensor_num_per_layer ({per_layer}) must divide num_tensors, {layout.num_tensors}, if {name} is given"
        )
    count = layout.num_tensors // per_layer
    if layers.stop > count:
        raise param_invalid(f"{name} ({layers}) out of range [0, {count}), the layers of the cache")
    return range(layers.start * per_layer, layers.stop * per_layer)


def check_row(name: str, index: int, layout: Layout, cache: str) -> None:
    if not 0 <= index < layout.batch_size:
        raise param_invalid(f"{name} ({index}) out of range [0, {layout.batch_size}), the batch of {cache}")


def check_size(size: int, layout: Layout, cache: str) -> int:
    """The bytes to transfer: ``size``, or the row of the cache for -1."""
    size = layout.row_bytes if size == -1 else size
    if not 0 < size <= layout.row_bytes:
        raise param_invalid(f"size ({size}) must be -1 or in [1, {layout.row_bytes}], the bytes of a row of {cache}")
    return size


def check_blocks(name: str, blocks: Numbers, layout: Layout, cache: str, *, distinct: bool = False) -> None:
    """Blocks of one cache; ``distinct`` for those that are written."""
    check_kind(cache, layout.is_blocks, blocks=True)
    outside = blocks[(blocks < 0) | (blocks >= layout.batch_size)]
    if len(outside):
        raise param_invalid(f"{name}: block {outside[0]} out of range [0, {layout.batch_size}), the blocks of {cache}")
    if distinct:
        order = np.sort(blocks)
        twice = order[1:][order[1:] == order[:-1]]
        if len(twice):
            raise param_invalid(f"{name}: block {twice[0]} would be written twice")


def check_block_lists(src_blocks: Numbers, dst_blocks: Numbers, src: Layout, dst: Layout) -> None:
    """The blocks of both caches, in lists of the same length."""
    if src.row_bytes != dst.row_bytes:
        raise param_invalid(
            f"both caches must have the same block size, got {src.row_bytes} bytes to read and {dst.row_bytes} to write"
        )
    check_blocks("src_blocks", src_blocks, src, "the cache to read")
    check_blocks("dst_blocks", dst_blocks, dst, "the cache to write", distinct=True)


def row_in_blocks(row_bytes: int, block_bytes: int, blocks: int, name: str) -> tuple[Numbers, Numbers]:
    """Where each block begins in a row, and how many bytes it takes. The last one may be filled in part."""
    most = -(-row_bytes // block_bytes)
    if not 0 < blocks <= most:
        raise param_invalid(
            f"{name} must hold 1 to {most} blocks: a row has {row_bytes} bytes, a block {block_bytes}; got {blocks}"
        )
    offsets = np.arange(blocks, dtype=np.int64) * block_bytes
    return offsets, np.minimum(block_bytes, row_bytes - offsets)


def key_in_message(key: CacheKey | CacheKeyByIdAndIndex | BlocksCacheKey) -> NamedKey | IdKey:
    """A key as a peer looks it up: ``GrantedLeases``."""
    if isinstance(key, CacheKeyByIdAndIndex):
        return IdKey(key.cache_id, key.batch_index)
    if not isinstance(key.identity, tuple):
        raise param_invalid(f"{key} must have a req_id or a prefix_id")
    kind, *numbers = key.identity
    return NamedKey(kind, tuple(numbers))
