# SPDX-License-Identifier: Apache-2.0
"""llm_datadist.v2.llm_types."""

from ..cache import Cache, CacheDesc, Placement
from ..cache_keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex

__all__ = ["BlocksCacheKey", "Cache", "CacheDesc", "CacheKey", "CacheKeyByIdAndIndex", "Placement"]
