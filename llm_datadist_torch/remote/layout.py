# SPDX-License-Identifier: Apache-2.0
"""Where the rows of a cache are, and arithmetic on ranges of bytes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..datadist.cache import Cache
from ..datadist.cache_desc import CacheDesc
from ..datadist.status import param_invalid
from .messages import LayoutMessage

Numbers = npt.NDArray[np.int64]

_MAX_PLANES = 1 << 20


@dataclass(frozen=True)
class Layout:
    """The addresses of a cache. Each index of the dimensions before the batch counts as a separate tensor, a plane.

    Attributes:
        bases: The address of row 0 in each plane, the planes of a tensor one after the other.
        stride: The bytes from one row of a plane to the next.
        row_bytes: The bytes of a row of a plane.
        batch_size: The rows of a plane.
        num_tensors: The tensors of the cache.
        dtype: The element type, as torch names it.
        is_blocks: Whether the rows are the blocks of a paged cache.
        on_host: Whether the engine reaches the memory.
    """

    bases: Numbers
    stride: int
    row_bytes: int
    batch_size: int
    num_tensors: int
    dtype: str
    is_blocks: bool
    on_host: bool


@dataclass(frozen=True)
class Part:
    """The bytes of a cache that a transfer reads or writes: in each plane of a range, the same slices of rows.

    Attributes:
        planes: The first plane, and the one after the last.
        rows: The row of each slice.
        offsets: Where each slice begins in its row, in bytes.
    """

    planes: tuple[int, int]
    rows: Numbers
    offsets: Numbers

    def addresses(self, layout: Layout) -> Numbers:
        """The address of each slice, for each plane one after the other."""
        return (layout.bases[slice(*self.planes), None] + (self.rows * layout.stride + self.offsets)).reshape(-1)

    def check(self, layout: Layout, lengths: Numbers) -> None:
        """Raises ValueError unless slices of these lengths are in a cache."""
        begin, end = self.planes
        if not (0 <= begin < end <= len(layout.bases) and len(self.rows) == len(self.offsets) == len(lengths) > 0):
            raise ValueError("the planes or slices are not those of the cache")
        if min(self.rows.min(), self.offsets.min(), lengths.min() - 1) < 0 or self.rows.max() >= layout.batch_size:
            raise ValueError("a slice is not in the cache")
        if lengths.max() > layout.row_bytes or (self.offsets > layout.row_bytes - lengths).any():
            raise ValueError("a slice is not in its row")


def layout_to_message(layout: Layout) -> LayoutMessage:
    """A layout for a peer. See ``LayoutMessage``."""
    steps = np.diff(layout.bases)
    even = len(steps) > 0 and bool((steps == steps[0]).all())
    bases = [int(layout.bases[0]), int(steps[0]), len(layout.bases)] if even else layout.bases.tolist()
    fields = {name: value for name, value in vars(layout).items() if name != "bases"}
    return LayoutMessage(bases=bases, even=even, **fields)


def layout_from_message(message: LayoutMessage) -> Layout:
    """The layout that a peer has sent.

    Raises:
        ValueError: It is not the layout of a cache.
    """
    if message.even:
        first, step, count = message.bases
        if not 0 < count <= _MAX_PLANES:
            raise ValueError(f"{count} planes")
        bases = first + step * np.arange(count, dtype=np.int64)
    else:
        bases = np.array(message.bases, dtype=np.int64)
    if not len(bases) or len(bases) % message.num_tensors or not message.row_bytes or not message.batch_size:
        raise ValueError("an empty cache")
    fields = {name: getattr(message, name) for name in message.__struct_fields__ if name not in ("bases", "even")}
    return Layout(bases=bases, **fields)


def layout_of(tensors: Sequence[Tensor], cache: Cache) -> Layout:
    """The layout of a cache.

    Args:
        tensors: Its tensors, kept by the caller because an ended cache has none. Each row is contiguous.
        cache: The cache.

    Raises:
        LLMException: LLM_PARAM_INVALID for tensors with different strides.
    """
    first, batch_dim, desc = tensors[0], cache.batch_dim, cache.cache_desc
    for index, tensor in enumerate(tensors):
        if tensor.stride() != first.stride():
            raise param_invalid(
                f"tensors[{index}] must have the strides of tensors[0], {first.stride()}, got {tensor.stride()}"
            )
    outer = np.zeros(1, dtype=np.int64)
    for dim in range(batch_dim):
        steps = np.arange(first.shape[dim], dtype=np.int64) * (first.stride(dim) * first.element_size())
        outer = (outer[:, None] + steps).reshape(-1)
    starts = np.array([tensor.data_ptr() for tensor in tensors], dtype=np.int64)
    row_bytes = math.prod(first.shape[batch_dim + 1 :]) * first.element_size()
    return Layout(
        bases=(starts[:, None] + outer).reshape(-1),
        stride=first.stride(batch_dim) * first.element_size() if first.shape[batch_dim] > 1 else row_bytes,
        row_bytes=row_bytes,
        batch_size=first.shape[batch_dim],
        num_tensors=desc.num_tensors,
        dtype=dtype_name(desc),
        is_blocks=cache.is_blocks_cache,
        on_host=first.device.type == "cpu",
    )


def dtype_name(desc: CacheDesc) -> str:
    """The element type for messages and comparisons."""
    return str(desc.torch_dtype).removeprefix(f"{torch.__name__}.")


def merged(
    local: Numbers, remote: Numbers, memory: Numbers, lengths: Numbers
) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Merges ranges that follow each other on both sides, in one registration of the peer."""
    first = np.ones(len(lengths), bool)
    np.not_equal(local[1:] - local[:-1], lengths[:-1], out=first[1:])
    first[1:] |= remote[1:] - remote[:-1] != lengths[:-1]
    first[1:] |= memory[1:] != memory[:-1]
    if first.all():
        return local, remote, memory, lengths
    (first,) = first.nonzero()
    return local[first], remote[first], memory[first], np.add.reduceat(lengths, first)


def of_planes(numbers: Numbers, planes: int) -> Numbers:
    """The numbers once for each plane."""
    repeated = np.empty((planes, len(numbers)), np.int64)
    repeated[:] = numbers
    return repeated.reshape(-1)


def split(lengths: Numbers, most: int) -> tuple[Numbers, Numbers, Numbers]:
    """Cuts ranges that are too long.

    Returns:
        For each piece: the range that it is from, where it begins there, and its length.
    """
    if lengths.size and int(lengths.max()) <= most:
        return np.arange(len(lengths)), np.zeros_like(lengths), lengths
    counts = -(-lengths // most)
    source = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = number * most
    return source, begin, np.minimum(lengths[source] - begin, most)


def groups(lengths: Numbers, most: int) -> list[slice]:
    """Cuts a list of ranges, none longer than ``most`` bytes, into groups of at most that many bytes each."""
    ends = np.cumsum(lengths)
    if ends.size and int(ends[-1]) <= most:
        return [slice(0, len(lengths))]
    cuts, begin = [], 0
    while begin < len(lengths):
        done = int(ends[begin - 1]) if begin else 0
        end = int(np.searchsorted(ends, done + most, side="right"))
        cuts.append(slice(begin, end))
        begin = end
    return cuts
