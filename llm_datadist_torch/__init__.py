# SPDX-License-Identifier: Apache-2.0
"""copy_cache of LLM-DataDist as a native PyTorch op.

package   llm_datadist_torch
ops       torch.ops.llm_datadist
library   libllm_datadist.so, beside this file
"""

from importlib.metadata import version as _version

from ._library import load as _load

_load()

from .cache import Cache, CacheDesc, Placement
from .cache_keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from .cache_manager import CacheManager
from .configs import LlmConfig, LLMConfig, LLMRole
from .data_type import DataType
from .datadist import LLMDataDist
from .ops import copy_cache, copy_cache_batch
from .status import LLMException, LLMStatusCode

__version__ = _version("llm_datadist_torch")

__all__ = [
    "BlocksCacheKey",
    "Cache",
    "CacheDesc",
    "CacheKey",
    "CacheKeyByIdAndIndex",
    "CacheManager",
    "DataType",
    "LLMConfig",
    "LLMDataDist",
    "LLMException",
    "LLMRole",
    "LLMStatusCode",
    "LlmConfig",
    "Placement",
    "copy_cache",
    "copy_cache_batch",
]
