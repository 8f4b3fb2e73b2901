# SPDX-License-Identifier: Apache-2.0
"""Caches. Data only: nothing here calls an op."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import memory as _memory
from .cache_desc import CacheDesc, Placement
from .checks import INT32, check_int, check_type
from .status import param_invalid
from .unserved import UnservedProperty


class Cache:
    """A KV cache: tensors with the same device and batch size, wrapped and never copied.

    Created by ``from_tensors``, ``create_cpu_cache`` or a CacheManager. Pass ``tensors`` and ``batch_dim`` to the op, also
    in compiled code::

        torch.ops.llm_datadist.copy_cache(dst.tensors, src.tensors, 0, 1, batch_dim=dst.batch_dim)

    Attributes:
        tensors: The wrapped tensors: one per described tensor, or one stack of all. If equal tensors are views of one
            storage at equal distances, their stack is held instead, because one tensor costs a call much less than many.
            Empty after the manager of the cache has deallocated or unregistered it.
        batch_dim: The dimension of ``tensors`` that is the batch, as the op takes it.
        cache_descs: The descriptions: one for each run of tensors that have the same shape and dtype. For a stacked cache,
            they describe the tensors in the stack.
        num_tensors: The number of described tensors.
        cache_id: The id of the cache in its manager, or -1 if it has none.
        is_blocks_cache: Whether the batch entries are the blocks of a paged cache.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        cache_descs: CacheDesc | tuple[CacheDesc, ...],
        batch_dim: int,
        is_blocks_cache: bool,
        cache_id: int = -1,
    ) -> None:
        self.cache_descs = cache_descs if isinstance(cache_descs, tuple) else (cache_descs,)
        self.num_tensors = sum(desc.num_tensors for desc in self.cache_descs)
        stack = _memory.stack_of(tensors) if tensors and len(self.cache_descs) == 1 else None
        self._unstacked = [] if stack is None else list(tensors)
        self.tensors = list(tensors) if stack is None else [stack]
        for tensor in self.tensors:
            if tensor.device.type != "cpu":
                # A backend that captures graphs copies every input in full unless its address is declared static.
                torch._dynamo.mark_static_address(tensor)
        self.batch_dim = batch_dim if stack is None else batch_dim + 1
        self.is_blocks_cache = is_blocks_cache
        self.cache_id = cache_id
        self._released_addrs: list[int] = []

    @classmethod
    def from_tensors(
        cls, tensors: Tensor | Sequence[Tensor], *, batch_dim: int = 0, is_blocks_cache: bool = False
    ) -> "Cache":
        """Wraps tensors as a cache.

        Args:
            tensors: A sequence of tensors with the same device and batch size, or one tensor. Shapes and dtypes may
                differ: keys and their scales, for example. With ``batch_dim`` > 0, a single tensor is a stack of tensors:
                ``[num_tensors, ..., batch, ...]``. To copy between a cache that is stacked and one that is not, pass
                ``unstacked`` and ``cache_desc.batch_dim`` of both to the op.
            batch_dim: The dimension of each given tensor that is the batch.
            is_blocks_cache: Whether the batch entries are the blocks of a paged cache.

        Raises:
            TypeError: An argument of the wrong type.
            LLMException: LLM_PARAM_INVALID for no tensors, tensors whose device or batch size differs, a batch_dim that
                they do not have, or a dimension of length 0.
        """
        check_type("tensors", tensors, Tensor, Sequence)
        batch_dim = check_int("batch_dim", batch_dim, INT32)
        check_type("is_blocks_cache", is_blocks_cache, bool)
        unstack = 1 if isinstance(tensors, Tensor) and batch_dim > 0 else 0
        wrapped = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        if not wrapped:
            raise param_invalid("tensors must hold at least one tensor, got an empty list")
        runs: list[tuple[int, tuple[torch.Size, torch.dtype, torch.device]]] = []  # the first index, and what is equal
        for index, tensor in enumerate(wrapped):
            check_type(f"tensors[{index}]", tensor, Tensor)
            kind = tensor.shape, tensor.dtype, tensor.device
            if not runs or kind != runs[-1][1]:
                _check_tensor(index, tensor, wrapped[0], batch_dim)
                runs.append((index, kind))
        ends = [*(begin for begin, _ in runs[1:]), len(wrapped)]
        descs = tuple(
            CacheDesc(
                num_tensors=shape[0] if unstack else end - begin,
                shape=tuple(shape[unstack:]),
                data_type=dtype,
                placement=Placement.HOST if device.type == "cpu" else Placement.DEVICE,
                batch_dim_index=batch_dim - unstack,
            )
            for (begin, (shape, dtype, device)), end in zip(runs, ends, strict=True)
        )
        return cls(wrapped, descs, batch_dim, is_blocks_cache)

    @classmethod
    def create_cpu_cache(cls, cache_desc: CacheDesc, addrs: Sequence[int] | Sequence[Tensor]) -> "Cache":
        """Wraps host memory as a cache. The memory must outlive the cache.

        Args:
            cache_desc: The description of the cache. Its placement must be HOST.
            addrs: The address of each tensor, which occupies ``cache_desc.size`` bytes. Or the tensors themselves, which
                the cache keeps alive.

        Raises:
            TypeError: An argument of the wrong type.
            ValueError: An address that does not fit a uint64.
            LLMException: LLM_PARAM_INVALID for another placement, another number of addresses, or address 0.
        """
        check_type("cache_desc", cache_desc, CacheDesc)
        if cache_desc.placement is not Placement.HOST:
            raise param_invalid(f"cache_desc.placement must be HOST, got {cache_desc.placement.name}")
        return wrap(cache_desc, addrs, torch.device("cpu"), is_blocks_cache=False)

    @property
    def cache_desc(self) -> CacheDesc:
        """The description of the first tensors. It is that of all, unless their shapes or dtypes differ."""
        return self.cache_descs[0]

    @functools.cached_property
    def row_bytes(self) -> list[int]:
        """The bytes of one batch entry of each described tensor."""
        return [desc.size // desc.batch_size for desc in self.cache_descs for _ in range(desc.num_tensors)]

    @property
    def unstacked(self) -> list[Tensor]:
        """The cache as ``num_tensors`` tensors of the described shapes: views, if it is stacked."""
        tensors = self.tensors
        if self.batch_dim == self.cache_desc.batch_dim:
            return tensors
        return self._unstacked or [tensor for stack in tensors for tensor in stack.unbind(0)]

    @property
    def tensor_addrs(self) -> list[int]:
        """The address of each of the ``num_tensors`` tensors. Stays the same after the cache has ended."""
        return [tensor.data_ptr() for tensor in self.unstacked] or self._released_addrs

    per_device_tensor_addrs = UnservedProperty("is of the older interface: use tensor_addrs")

    def release(self) -> None:
        """Drops the tensors. Keeps their addresses, because users of LLM-DataDist free registered memory by them.

        Called by the manager of the cache when the cache ends.
        """
        self._released_addrs = self.tensor_addrs
        self._unstacked = []  # first: after `tensors` is empty, no other thread may find a tensor
        self.tensors = []

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the views that were stacked: pickle would give each its own memory. ``unstacked`` makes them anew."""
        return {**vars(self), "_unstacked": []}

    def __repr__(self) -> str:
        descs = self.cache_desc if len(self.cache_descs) == 1 else self.cache_descs
        return f"Cache(cache_id={self.cache_id}, cache_desc={descs}, is_blocks_cache={self.is_blocks_cache})"


def _check_tensor(index: int, tensor: Tensor, first: Tensor, batch_dim: int) -> None:
    """Refuses a tensor that cannot be in one cache with the first one."""
    if not 0 <= batch_dim < tensor.dim():
        raise param_invalid(
            f"batch_dim ({batch_dim}) out of range [0, {tensor.dim()}), the dimensions of tensors[{index}]"
        )
    if tensor.numel() == 0:
        raise param_invalid(
            f"tensors[{index}] must have dimensions, each greater than 0, got the shape {tuple(tensor.shape)}"
        )
    for name, got, expected in (
        ("device", tensor.device, first.device),
        ("batch size", tensor.shape[batch_dim], first.shape[batch_dim]),
    ):
        if got != expected:
            raise param_invalid(f"tensors[{index}] must have the {name} of tensors[0], {expected}, got {got}")


def allocate(cache_desc: CacheDesc, device: torch.device, *, is_blocks_cache: bool) -> Cache:
    """Allocates a cache as one stacked, uninitialised tensor. The cache has its own copy of the description."""
    desc = replace(cache_desc)
    stack = _memory.allocate((desc.num_tensors, *desc.dims), desc.torch_dtype, device)
    return Cache([stack], desc, desc.batch_dim + 1, is_blocks_cache)


def wrap(
    cache_desc: CacheDesc, addrs: Sequence[int] | Sequence[Tensor], device: torch.device, *, is_blocks_cache: bool
) -> Cache:
    """Creates a cache over existing memory. The cache has its own copy of the description."""
    desc = replace(cache_desc)
    tensors = _memory.wrap(addrs, desc.num_tensors, desc.dims, desc.torch_dtype, device)
    return Cache(tensors, desc, desc.batch_dim, is_blocks_cache)
