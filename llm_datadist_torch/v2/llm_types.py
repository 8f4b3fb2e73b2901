# SPDX-License-Identifier: Apache-2.0
"""llm_datadist.v2.llm_types."""

from ..datadist.cache import Cache
from ..datadist.cache_desc import CacheDesc, Placement
from ..datadist.cache_keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from ..datadist.transfer_types import CacheTask, LayerSynchronizer, TransferConfig, TransferWithCacheKeyConfig
from ..datadist.unserved import KvCache, MemInfo, Memtype, RegisterMemStatus

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
