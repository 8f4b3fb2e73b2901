# SPDX-License-Identifier: Apache-2.0
"""Names of LLM-DataDist that this package does not serve. They can be imported; a call says what to use instead."""

from enum import Enum
from typing import Any, NoReturn

from .checks import UINT64, check_int, check_type
from .status import LLMStatusCode, llm_error


class _Unserved:
    """Knows the name that it is assigned to.

    Args:
        why: The rest of the error text after the name: what it does, and what to use instead.
    """

    def __init__(self, why: str) -> None:
        self._why = why

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def _refuse(self) -> NoReturn:
        raise llm_error(LLMStatusCode.LLM_FEATURE_NOT_ENABLED, f"{self._name} {self._why}")


class UnservedCall(_Unserved):
    """Takes the place of a method of LLM-DataDist. Raises LLM_FEATURE_NOT_ENABLED."""

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse()


class UnservedProperty(_Unserved):
    """Takes the place of a property of LLM-DataDist. Reading it raises LLM_FEATURE_NOT_ENABLED."""

    def __get__(self, instance: object, owner: type) -> "UnservedProperty":
        if instance is None:
            return self
        self._refuse()


class RegisterMemStatus(Enum):
    """The state of a link by rank table, for ``LLMDataDist.query_register_mem_status``."""

    OK = 0
    PREPARING = 1
    FAILED = 2


class Memtype(Enum):
    """The memory of a ``MemInfo``."""

    MEM_TYPE_DEVICE = 0
    MEM_TYPE_HOST = 1


class MemInfo:
    """A range of memory, for ``CacheManager.remap_registered_memory``.

    Args:
        mem_type: Where it is.
        addr: Its address, a uint64.
        size: Its bytes, a uint64.
    """

    def __init__(self, mem_type: Memtype, addr: int, size: int) -> None:
        check_type("mem_type", mem_type, Memtype)
        self.mem_type = mem_type
        self.addr, self.size = check_int("addr", addr, UINT64), check_int("size", size, UINT64)


class _UnservedType:
    _instead: str

    def __init_subclass__(cls, instead: str) -> None:
        cls._instead = instead

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        raise llm_error(LLMStatusCode.LLM_FEATURE_NOT_ENABLED, f"{name} is not there: {self._instead}")


class KvCache(_UnservedType, instead="use Cache, of CacheManager"):
    """A cache of LLM-DataDist's first interface."""


class KvCacheManager(_UnservedType, instead="use CacheManager"):
    """The manager of LLM-DataDist's first interface."""


class Tensor(_UnservedType, instead="use torch.Tensor"):
    """A tensor of the graph engine."""


class TensorDesc(_UnservedType, instead="use torch.Tensor"):
    """A description of a tensor of the graph engine."""
