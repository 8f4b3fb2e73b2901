# SPDX-License-Identifier: Apache-2.0
"""copy_cache of LLM-DataDist as a native PyTorch op.

package   llm_datadist_torch
ops       torch.ops.llm_datadist
library   libllm_datadist.so, beside this file
"""

from importlib.metadata import version as _version

from ._library import load as _load

_load()

from .cache import Cache, CacheDesc, DataType, Placement  # noqa: E402
from .cache_manager import CacheManager  # noqa: E402
from .config import LlmConfig, LLMConfig  # noqa: E402
from .ops import copy_cache  # noqa: E402
from .status import LLMException, LLMStatusCode  # noqa: E402

__version__ = _version("llm_datadist_torch")

__all__ = [
    "Cache",
    "CacheDesc",
    "CacheManager",
    "DataType",
    "LLMConfig",
    "LLMException",
    "LLMStatusCode",
    "LlmConfig",
    "Placement",
    "copy_cache",
]
