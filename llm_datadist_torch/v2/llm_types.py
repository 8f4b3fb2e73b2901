# SPDX-License-Identifier: Apache-2.0
"""llm_datadist.v2.llm_types."""

from ..cache import Cache, CacheDesc, Placement
from ..cache_keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from ..older_names import KvCache, MemInfo, Memtype, RegisterMemStatus
from ..transfer_types import CacheTask, LayerSynchronizer, TransferConfig, TransferWithCacheKeyConfig

__all__ = [
    "BlocksCacheKey",
    "Cache",
    "CacheDesc",
    "CacheKey",
    "CacheKeyByIdAndIndex",
    "CacheTask",
    "KvCache",
    "LayerSynchronizer",
    "MemInfo",
    "Memtype",
    "Placement",
    "RegisterMemStatus",
    "TransferConfig",
    "TransferWithCacheKeyConfig",
]
