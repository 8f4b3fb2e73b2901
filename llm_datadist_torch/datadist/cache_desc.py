# SPDX-License-Identifier: Apache-2.0
"""Descriptions of caches."""

import math
from dataclasses import dataclass, field

import torch

from .checks import INT32, INT64, UINT32, check_int, check_type
from .data_type import DATA_TYPES, DataType
from .status import NamedIntEnum, param_invalid


class Placement(NamedIntEnum):
    """The memory of a cache: the host's or the device's."""

    HOST = 0
    DEVICE = 1


@dataclass(frozen=True)
class CacheDesc:
    """Describes a cache: ``num_tensors`` tensors of the same shape and element type.

    Args:
        num_tensors: The number of tensors, a uint32 greater than 0.
        shape: The shape of each tensor, greater than 0 in every dimension. Read back as the list or the tuple given.
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
    shape: tuple[int, ...] | list[int] = field(compare=False)
    data_type: DataType | torch.dtype
    placement: Placement = Placement.DEVICE
    batch_dim_index: int = 0
    seq_len_dim_index: int = -1
    kv_tensor_format: str | None = None
    dims: tuple[int, ...] = field(init=False, repr=False)
    """``shape`` as a tuple. Descriptions are compared by it."""

    def __post_init__(self) -> None:
        for name, limits in (("num_tensors", UINT32), ("batch_dim_index", INT32), ("seq_len_dim_index", INT32)):
            object.__setattr__(self, name, check_int(name, getattr(self, name), limits))
        self._set_shape(self.shape)
        check_type("data_type", self.data_type, DataType, torch.dtype)
        check_type("placement", self.placement, Placement)
        if self.kv_tensor_format is not None:
            check_type("kv_tensor_format", self.kv_tensor_format, str)

        if self.num_tensors == 0:
            raise param_invalid("num_tensors (0) must be greater than 0")
        if not 0 <= self.batch_dim_index < len(self.dims):
            raise param_invalid(f"batch_dim_index ({self.batch_dim_index}) out of range [0, {len(self.dims)})")
        if not -1 <= self.seq_len_dim_index < len(self.dims):
            raise param_invalid(f"seq_len_dim_index ({self.seq_len_dim_index}) out of range [-1, {len(self.dims)})")
        if self.data_type is DataType.DT_STRING:
            raise param_invalid("data_type (DT_STRING) has no torch dtype")

        if isinstance(self.data_type, torch.dtype):
            object.__setattr__(self, "data_type", DATA_TYPES.get(self.data_type, self.data_type))

    def update_dim(self, dim_index: int, dim_value: int) -> None:
        """Changes one dimension of ``shape``. Caches that a manager has created keep their own description.

        Args:
            dim_index: The index of the dimension, in ``[-dimensions, dimensions)``.
            dim_value: Its new length, an int64 greater than 0.

        Raises:
            TypeError, ValueError, LLMException: As for the constructor.
        """
        dim_index = check_int("dim_index", dim_index, INT64)
        if not -len(self.dims) <= dim_index < len(self.dims):
            raise param_invalid(f"dim_index ({dim_index}) out of range [-{len(self.dims)}, {len(self.dims)})")
        dims = list(self.dims)
        dims[dim_index] = dim_value
        self._set_shape(type(self.shape)(dims))

    def _set_shape(self, shape: tuple[int, ...] | list[int]) -> None:
        check_type("shape", shape, tuple, list)
        dims = tuple(check_int(f"shape[{dim}]", length, INT64) for dim, length in enumerate(shape))
        if not dims or min(dims) <= 0:
            raise param_invalid(f"shape ({shape}) must have dimensions, each greater than 0")
        object.__setattr__(self, "shape", list(dims) if isinstance(shape, list) else dims)
        object.__setattr__(self, "dims", dims)

    @property
    def batch_dim(self) -> int:
        """The dimension of ``shape`` that is the batch."""
        return self.batch_dim_index

    @property
    def batch_size(self) -> int:
        """The number of rows of each tensor."""
        return self.dims[self.batch_dim_index]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The element type as a torch dtype."""
        return self.data_type.torch_dtype if isinstance(self.data_type, DataType) else self.data_type

    @property
    def size(self) -> int:
        """The size of one tensor in bytes."""
        return math.prod(self.dims) * self.torch_dtype.itemsize
