# SPDX-License-Identifier: Apache-2.0
"""Caches and their descriptions. Data only: nothing here calls an op."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from . import _memory
from ._checks import INT32, INT64, UINT32, check_int, check_type
from .status import LLMParamInvalid, NamedIntEnum


class DataType(Enum):
    """Element types, with LLM-DataDist's names. Each has a torch dtype, except DT_STRING."""

    DT_FLOAT = 0
    DT_FLOAT16 = 1
    DT_INT8 = 2
    DT_INT32 = 3
    DT_UINT8 = 4
    DT_INT16 = 6
    DT_UINT16 = 7
    DT_UINT32 = 8
    DT_INT64 = 9
    DT_UINT64 = 10
    DT_DOUBLE = 11
    DT_BOOL = 12
    DT_STRING = 13
    DT_BF16 = 27

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch dtype.

        Raises:
            LLMException: LLM_PARAM_INVALID for DT_STRING.
        """
        if self not in _TORCH_DTYPES:
            raise LLMParamInvalid(f"{self.name} has no torch dtype")
        return _TORCH_DTYPES[self]

    @classmethod
    def from_torch(cls, dtype: torch.dtype) -> "DataType":
        """The DataType of a torch dtype.

        Raises:
            LLMException: LLM_PARAM_INVALID for a dtype without one, such as the float8 dtypes.
        """
        check_type("dtype", dtype, torch.dtype)
        if dtype not in _DATA_TYPES:
            raise LLMParamInvalid(f"{dtype} has no DataType")
        return _DATA_TYPES[dtype]


_TORCH_DTYPES = {
    DataType.DT_FLOAT: torch.float32,
    DataType.DT_FLOAT16: torch.float16,
    DataType.DT_INT8: torch.int8,
    DataType.DT_INT32: torch.int32,
    DataType.DT_UINT8: torch.uint8,
    DataType.DT_INT16: torch.int16,
    DataType.DT_UINT16: torch.uint16,
    DataType.DT_UINT32: torch.uint32,
    DataType.DT_INT64: torch.int64,
    DataType.DT_UINT64: torch.uint64,
    DataType.DT_DOUBLE: torch.float64,
    DataType.DT_BOOL: torch.bool,
    DataType.DT_BF16: torch.bfloat16,
}
_DATA_TYPES = {dtype: data_type for data_type, dtype in _TORCH_DTYPES.items()}


class Placement(NamedIntEnum):
    """The memory of a cache: the host's or the device's."""

    HOST = 0
    DEVICE = 1


@dataclass(frozen=True)
class CacheDesc:
    """Describes a cache: ``num_tensors`` tensors of the same shape and element type.

    Args:
        num_tensors: The number of tensors, a uint32 greater than 0.
        shape: The shape of each tensor, greater than 0 in every dimension. Stored as a tuple.
        data_type: The element type: a DataType, or a torch dtype (stored as one only if it has no DataType).
        placement: In host memory or on the device.
        batch_dim_index: The dimension of ``shape`` that is the batch. Each index of the dimensions before it counts as a
            separate tensor.
        seq_len_dim_index: The dimension that is the sequence, or -1 for none. Recorded, not used.
        kv_tensor_format: A name for the layout. Recorded, not used.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: A number that does not fit its integer type.
        LLMException: LLM_PARAM_INVALID for any other value that is not allowed.
    """

    num_tensors: int
    shape: tuple[int, ...] | list[int]
    data_type: DataType | torch.dtype
    placement: Placement = Placement.DEVICE
    batch_dim_index: int = 0
    seq_len_dim_index: int = -1
    kv_tensor_format: str | None = None

    def __post_init__(self) -> None:
        check_int("num_tensors", self.num_tensors, UINT32)
        check_type("shape", self.shape, tuple, list)
        for dim, length in enumerate(self.shape):
            check_int(f"shape[{dim}]", length, INT64)
        check_type("data_type", self.data_type, DataType, torch.dtype)
        check_type("placement", self.placement, Placement)
        check_int("batch_dim_index", self.batch_dim_index, INT32)
        check_int("seq_len_dim_index", self.seq_len_dim_index, INT32)
        if self.kv_tensor_format is not None:
            check_type("kv_tensor_format", self.kv_tensor_format, str)

        if self.num_tensors == 0:
            raise LLMParamInvalid("num_tensors (0) must be greater than 0")
        if not self.shape or min(self.shape) <= 0:
            raise LLMParamInvalid(f"shape ({self.shape}) must have dimensions, each greater than 0")
        if not 0 <= self.batch_dim_index < len(self.shape):
            raise LLMParamInvalid(f"batch_dim_index ({self.batch_dim_index}) out of range [0, {len(self.shape)})")
        if not -1 <= self.seq_len_dim_index < len(self.shape):
            raise LLMParamInvalid(f"seq_len_dim_index ({self.seq_len_dim_index}) out of range [-1, {len(self.shape)})")
        if self.data_type is DataType.DT_STRING:
            raise LLMParamInvalid("data_type (DT_STRING) has no torch dtype")

        object.__setattr__(self, "shape", tuple(self.shape))
        if isinstance(self.data_type, torch.dtype):
            object.__setattr__(self, "data_type", _DATA_TYPES.get(self.data_type, self.data_type))

    @property
    def batch_dim(self) -> int:
        """The dimension of ``shape`` that is the batch."""
        return self.batch_dim_index

    @property
    def batch_size(self) -> int:
        """The number of rows of each tensor."""
        return self.shape[self.batch_dim_index]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The element type as a torch dtype."""
        return self.data_type.torch_dtype if isinstance(self.data_type, DataType) else self.data_type

    @property
    def size(self) -> int:
        """The size of one tensor in bytes."""
        return math.prod(self.shape) * self.torch_dtype.itemsize


class Cache:
    """A KV cache: tensors of the same shape, dtype and device, wrapped and never copied.

    Created by ``from_tensors``, ``create_cpu_cache`` or a CacheManager. Pass ``tensors`` and ``batch_dim`` to the op, also
    in compiled code::

        torch.ops.llm_datadist.copy_cache(dst.tensors, src.tensors, 0, 1, batch_dim=dst.batch_dim)

    Attributes:
        tensors: The wrapped tensors: one per tensor of the description, or one stack of all. Empty after the manager
            of the cache has deallocated or unregistered it.
        batch_dim: The dimension of ``tensors`` that is the batch, as the op takes it.
        cache_desc: The description. For a stacked cache, it describes the tensors in the stack.
        cache_id: The id of the cache in its manager, or -1 if it has none.
        is_blocks_cache: Whether the batch entries are the blocks of a paged cache.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        cache_desc: CacheDesc,
        batch_dim: int,
        is_blocks_cache: bool,
        cache_id: int = -1,
    ) -> None:
        self.tensors = list(tensors)
        for tensor in self.tensors:
            if tensor.device.type != "cpu":
                # A backend that captures graphs copies every input in full unless its address is declared static.
                torch._dynamo.mark_static_address(tensor)
        self.cache_desc = cache_desc
        self.batch_dim = batch_dim
        self.is_blocks_cache = is_blocks_cache
        self.cache_id = cache_id

    @classmethod
    def from_tensors(
        cls, tensors: Tensor | Sequence[Tensor], *, batch_dim: int = 0, is_blocks_cache: bool = False
    ) -> "Cache":
        """Wraps tensors as a cache.

        Args:
            tensors: A sequence of tensors of the same shape, dtype and device, or one tensor. With ``batch_dim`` > 0,
                a single tensor is a stack of tensors: ``[num_tensors, ..., batch, ...]``.
            batch_dim: The dimension of each given tensor that is the batch.
            is_blocks_cache: Whether the batch entries are the blocks of a paged cache.

        Raises:
            TypeError: An argument of the wrong type.
            LLMException: LLM_PARAM_INVALID for no tensors, tensors that differ, or a batch_dim they do not have.
        """
        check_type("tensors", tensors, Tensor, Sequence)
        check_int("batch_dim", batch_dim, INT32)
        check_type("is_blocks_cache", is_blocks_cache, bool)
        stacked = isinstance(tensors, Tensor)
        wrapped = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        if not wrapped:
            raise LLMParamInvalid("tensors must hold at least one tensor, got an empty list")
        for index, tensor in enumerate(wrapped):
            check_type(f"tensors[{index}]", tensor, Tensor)
            for name in ("shape", "dtype", "device"):
                got, expected = getattr(tensor, name), getattr(wrapped[0], name)
                if got != expected:
                    raise LLMParamInvalid(f"tensors[{index}] must have the {name} of tensors[0], {expected}, got {got}")
        shape = tuple(wrapped[0].shape)
        if not 0 <= batch_dim < len(shape):
            raise LLMParamInvalid(f"batch_dim ({batch_dim}) out of range [0, {len(shape)}), the dimensions of tensors")
        unstack = 1 if stacked and batch_dim > 0 else 0
        cache_desc = CacheDesc(
            num_tensors=shape[0] if unstack else len(wrapped),
            shape=shape[unstack:],
            data_type=wrapped[0].dtype,
            placement=Placement.HOST if wrapped[0].device.type == "cpu" else Placement.DEVICE,
            batch_dim_index=batch_dim - unstack,
        )
        return cls(wrapped, cache_desc, batch_dim, is_blocks_cache)

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
        check_type("addrs", addrs, Sequence)
        if cache_desc.placement is not Placement.HOST:
            raise LLMParamInvalid(f"cache_desc.placement must be HOST, got {cache_desc.placement.name}")
        described = (cache_desc.num_tensors, cache_desc.shape, cache_desc.torch_dtype, torch.device("cpu"))
        tensors = _memory.wrap(addrs, *described)
        return cls(tensors, cache_desc, cache_desc.batch_dim, is_blocks_cache=False)

    @property
    def unstacked(self) -> list[Tensor]:
        """The cache as ``num_tensors`` tensors of the described shape: views, if it is stacked."""
        tensors = self.tensors
        if self.batch_dim == self.cache_desc.batch_dim:
            return tensors
        return [tensor for stack in tensors for tensor in stack.unbind(0)]

    @property
    def tensor_addrs(self) -> list[int]:
        """The address of each of the ``num_tensors`` tensors."""
        return [tensor.data_ptr() for tensor in self.unstacked]

    def __repr__(self) -> str:
        return f"Cache(cache_id={self.cache_id}, cache_desc={self.cache_desc}, is_blocks_cache={self.is_blocks_cache})"
