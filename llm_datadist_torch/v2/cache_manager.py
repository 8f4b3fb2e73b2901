# SPDX-License-Identifier: Apache-2.0
"""llm_datadist.v2.cache_manager."""

from ..datadist.cache_manager import CacheManager

__all__ = ["CacheManager"]
