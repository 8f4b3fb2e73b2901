# SPDX-License-Identifier: Apache-2.0
"""A user's file, for mypy: test_packaging.py checks it against the installed wheel. The errors named are expected."""

import torch

from llm_datadist_torch import Cache, CacheManager, LLMConfig, LLMException, LLMStatusCode, copy_cache

tensors: list[torch.Tensor] = [torch.zeros(4, 16)]
copy_cache(tensors, tensors, 1, 0, offset=4, size=8, req_id=None)
copy_cache(tensors, tensors, "1")  # type: ignore[arg-type]
copy_cache(tensors[0], tensors)  # type: ignore[arg-type]

cache: Cache = Cache.from_tensors(tensors)
manager = CacheManager(LLMConfig(sync_kv_timeout=5000))
manager.copy_cache(cache, cache, 2, 0, 0, 128, req_id=7)
manager.copy_cache(cache, tensors)  # type: ignore[arg-type]
try:
    manager.copy_cache(cache, cache, 9)
except LLMException as error:
    code: LLMStatusCode = error.status_code
