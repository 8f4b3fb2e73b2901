# SPDX-License-Identifier: Apache-2.0
"""Names of LLM-DataDist that scripts import and this package cannot serve. An import works, an instance says why not."""

from enum import Enum
from typing import Any, NoReturn

from .checks import UINT64, check_int, check_type
from .status import LLMStatusCode, llm_error


class RegisterMemStatus(Enum):
    """The state of a link by rank table, which this package does not make: ``LLMDataDist.query_register_mem_status``."""

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
        check_int("addr", addr, UINT64)
        check_int("size", size, UINT64)
        self.mem_type, self.addr, self.size = mem_type, addr, size


class _Older:
    _instead: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._refuse()

    @classmethod
    def _refuse(cls) -> NoReturn:
        raise llm_error(LLMStatusCode.LLM_FEATURE_NOT_ENABLED, f"{cls.__name__} is not there: {cls._instead}")


class KvCache(_Older):
    """A cache of LLM-DataDist's older interface. Making one raises LLM_FEATURE_NOT_ENABLED."""

    _instead = "use Cache, of CacheManager"


class KvCacheManager(_Older):
    """The manager of LLM-DataDist's older interface. Making one raises LLM_FEATURE_NOT_ENABLED."""

    _instead = "use CacheManager"


class Tensor(_Older):
    """A tensor of the graph engine. Making one raises LLM_FEATURE_NOT_ENABLED."""

    _instead = "use torch.Tensor"


class TensorDesc(_Older):
    """A description of a tensor of the graph engine. Making one raises LLM_FEATURE_NOT_ENABLED."""

    _instead = "use torch.Tensor"
