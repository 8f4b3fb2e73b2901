# SPDX-License-Identifier: Apache-2.0
"""DataType: the element types of LLM-DataDist."""

from enum import Enum

import torch

from .checks import check_type
from .status import param_invalid


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
            raise param_invalid(f"{self.name} has no torch dtype")
        return _TORCH_DTYPES[self]

    @classmethod
    def from_torch(cls, dtype: torch.dtype) -> "DataType":
        """The DataType of a torch dtype.

        Raises:
            LLMException: LLM_PARAM_INVALID for a dtype without one, such as the float8 dtypes.
        """
        check_type("dtype", dtype, torch.dtype)
        if dtype not in DATA_TYPES:
            raise param_invalid(f"{dtype} has no DataType")
        return DATA_TYPES[dtype]


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
DATA_TYPES = {dtype: data_type for data_type, dtype in _TORCH_DTYPES.items()}
