# SPDX-License-Identifier: Apache-2.0
"""Code of a user. test_packaging.py checks it with mypy against the installed wheel: the ignored errors must occur."""

from collections.abc import Mapping, Sequence

import torch

from llm_datadist_torch import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheManager,
    DataType,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    copy_blocks,
    copy_cache,
    copy_tokens,
    swap_blocks,
)

tensors: list[torch.Tensor] = [torch.zeros(4, 16)]
copy_cache(tensors, tensors, 1, 0, offset=4, size=8, req_id=None)
copy_cache(tensors, tensors, "1")  # type: ignore[arg-type]
copy_cache(tensors[0], tensors)  # type: ignore[arg-type]
copy_blocks(tensors, [(0, 1), (1, 2)])
swap_blocks(tensors, tensors, torch.tensor([[0, 1]]), batch_dim=0)
copy_tokens(tensors, tensors, [[0, 1]], slice(2), token_dim=1)
copy_tokens(tensors, tensors, [[0, 1]], 2, token_dim=1)  # type: ignore[arg-type]

cache: Cache = Cache.from_tensors(tensors)
manager = CacheManager(LLMConfig(sync_kv_timeout=5000))
manager.copy_cache(cache, cache, 2, 0, 0, 128, req_id=7)
manager.copy_cache(cache, tensors)  # type: ignore[arg-type]
try:
    manager.copy_cache(cache, cache, 9)
except LLMException as error:
    code: LLMStatusCode = error.status_code
LLMException("text", 1, status_code=LLMStatusCode.LLM_TIMEOUT)
LLMException(status_code=3)  # type: ignore[arg-type]

datadist = LLMDataDist(LLMRole.PROMPT, 0)
datadist.init(LLMConfig(enable_cache_manager=True).generate_options())
config = LLMConfig()
config.device_id = [0]
config.local_comm_res = ""
config.ge_options = {"ge.flowGraphMemMaxSize": "1024"}
retries: int = config.link_retry_count
config.link_retry_count = "1"  # type: ignore[assignment]
desc = CacheDesc(80, [4, 256], DataType.DT_FLOAT16)
CacheDesc(80, range(2), DataType.DT_FLOAT16)  # type: ignore[arg-type]
CacheKey(foo=1)  # type: ignore[call-overload]
CacheKey(0)  # type: ignore[call-overload]
BlocksCacheKey(0, req_id=1)  # type: ignore[call-overload]
CacheKeyByIdAndIndex(0, 1, batch=2)  # type: ignore[call-arg]
keys: Sequence[CacheKey] = (CacheKey(0, req_id=1), CacheKey(prompt_cluster_id=0, req_id=2))
allocated: Cache = datadist.cache_manager.allocate_cache(desc, keys)
datadist.cache_manager.register_cache(desc, allocated.tensor_addrs)
datadist.cache_manager.register_cache(desc, allocated.unstacked, keys)
blocks = datadist.cache_manager.allocate_blocks_cache(desc)
moves: Mapping[int, Sequence[int]] = {0: (1, 2)}
datadist.cache_manager.copy_blocks(blocks, moves)
datadist.cache_manager.copy_blocks(blocks, {0: 1})  # type: ignore[dict-item]
datadist.cache_manager.swap_blocks(blocks, Cache.create_cpu_cache(desc, allocated.tensor_addrs), {0: 1})
datadist.finalize()
