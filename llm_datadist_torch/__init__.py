# SPDX-License-Identifier: Apache-2.0
"""copy_cache of LLM-DataDist as a native PyTorch op.

package   llm_datadist_torch
ops       torch.ops.llm_datadist
library   libllm_datadist.so, beside this file
"""

from importlib.metadata import version as _version

from ._native.library import load as _load

_load()

from .compile import register as _register_with_compilers

_register_with_compilers()

from ._native.warm_up import skipped_rows, warm_up
from .blocks import copy_blocks, copy_tokens, swap_blocks
from .datadist.cache import Cache
from .datadist.cache_desc import CacheDesc, Placement
from .datadist.cache_keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from .datadist.cache_manager import CacheManager
from .datadist.cluster_info import LLMClusterInfo, LLMRole
from .datadist.config import LlmConfig, LLMConfig
from .datadist.data_type import DataType
from .datadist.link_calls import ClusterLinks
from .datadist.llm_datadist import LLMDataDist
from .datadist.remote_api import TransferCounters
from .datadist.status import LLMException, LLMStatusCode, Status
from .datadist.transfer_types import (
    CacheTask,
    LayerSynchronizer,
    TransferConfig,
    TransferHandle,
    TransferWithCacheKeyConfig,
)
from .datadist.unserved import KvCache, KvCacheManager, MemInfo, Memtype, RegisterMemStatus, TensorDesc
from .datadist.unserved import Tensor as Tensor  # not in __all__: it would hide torch's
from .ops import copy_cache, copy_cache_batch

__version__ = _version("llm_datadist_torch")

__all__ = [
    "BlocksCacheKey",
    "Cache",
    "CacheDesc",
    "CacheKey",
    "CacheKeyByIdAndIndex",
    "CacheManager",
    "CacheTask",
    "ClusterLinks",
    "DataType",
    "KvCache",
    "KvCacheManager",
    "LLMClusterInfo",
    "LLMConfig",
    "LLMDataDist",
    "LLMException",
    "LLMRole",
    "LLMStatusCode",
    "LayerSynchronizer",
    "LlmConfig",
    "MemInfo",
    "Memtype",
    "Placement",
    "RegisterMemStatus",
    "Status",
    "TensorDesc",
    "TransferConfig",
    "TransferCounters",
    "TransferHandle",
    "TransferWithCacheKeyConfig",
    "copy_blocks",
    "copy_cache",
    "copy_cache_batch",
    "copy_tokens",
    "skipped_rows",
    "swap_blocks",
    "warm_up",
]
