# SPDX-License-Identifier: Apache-2.0
"""llm_datadist.v2.cache_manager."""

from ..cache_manager import CacheManager

__all__ = ["CacheManager"]
