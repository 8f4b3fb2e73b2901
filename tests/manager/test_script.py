# SPDX-License-Identifier: Apache-2.0
"""A script written for LLM-DataDist that uses every local call; only its import differs."""

import torch
from utils import assert_same_bytes, cache, filled, to_host

import llm_datadist_torch
from llm_datadist_torch import Cache, CacheManager

SCRIPT = """
from llm_datadist_torch import *

config = LLMConfig()
config.device_id = 0
config.enable_cache_manager = True
config.sync_kv_timeout = "60000"
config.mem_pool_cfg = '{"memory_size": 1048576, "page_shift": 16}'
config.host_mem_pool_cfg = '{"memory_size": 1048576}'
datadist = LLMDataDist(LLMRole.PROMPT, 0)
datadist.init(config.generate_options())
cache_manager = datadist.cache_manager

# A prefilled request moves into the running batch, and a prefix of it to another row.
cache_desc = CacheDesc(80, [4, 256], DataType.DT_FLOAT16, Placement.DEVICE, 0, 1)
model_cache = cache_manager.allocate_cache(cache_desc, [CacheKey(0, 1), CacheKey(0, 2**64 - 1), CacheKey(0, 2)])
request_cache = cache_manager.allocate_cache(CacheDesc(80, (1, 256), DataType.DT_FLOAT16), (CacheKey(0, 3),))
start(model_cache, request_cache)
cache_manager.copy_cache(model_cache, request_cache, 2, 0, req_id=3)
cache_manager.copy_cache(model_cache, model_cache, 3, 2, 0, 128)
check_rows(model_cache, request_cache)
cache_manager.check_cache_key(CacheKey(0, 3))
cache_manager.remove_cache_key(CacheKey(0, 3))
cache_manager.deallocate_cache(request_cache)

# Blocks are copied, swapped out to the host, and back in.
blocks_desc = CacheDesc(8, (16, 32), DataType.DT_FLOAT16, Placement.DEVICE)
host_desc = CacheDesc(8, (16, 32), DataType.DT_FLOAT16, Placement.HOST)
npu_blocks = cache_manager.allocate_blocks_cache(blocks_desc, BlocksCacheKey(0, 1))
host_blocks = cache_manager.allocate_blocks_cache(host_desc)
start(npu_blocks, host_blocks)
cache_manager.copy_blocks(npu_blocks, {0: [1, 2], 3: [4]})
cache_manager.swap_blocks(npu_blocks, host_blocks, {0: 7, 3: 8})
cache_manager.swap_blocks(host_blocks, npu_blocks, {7: 9, 8: 10})
check_blocks(npu_blocks)

# Caches over memory of one's own.
owned = allocate_elsewhere(80, 4, 256)
registered = cache_manager.register_cache(cache_desc, [tensor.data_ptr() for tensor in owned])
registered_blocks = cache_manager.register_blocks_cache(cache_desc, [t.data_ptr() for t in owned], BlocksCacheKey(0, 2))
cache_manager.copy_cache(registered, model_cache)
check_registered(owned, model_cache)
cache_manager.unregister_cache(registered.cache_id)
cache_manager.unregister_cache(registered_blocks.cache_id)

cache_manager.deallocate_blocks_cache(npu_blocks)
cache_manager.deallocate_blocks_cache(host_blocks)
cache_manager.deallocate_cache(model_cache)
datadist.finalize()
"""


def rows(held: Cache, index: int) -> list[torch.Tensor]:
    return [to_host(tensor)[:, index] for tensor in held.tensors]


def test_script_with_every_local_call(device: str) -> None:
    checked = []

    def start(*caches: Cache) -> None:
        for held in caches:
            for seed, tensor in enumerate(held.tensors):
                tensor.copy_(filled(*tensor.shape, dtype=tensor.dtype, seed=seed))

    def check_rows(model: Cache, request: Cache) -> None:
        assert_same_bytes(rows(model, 2), rows(request, 0))
        assert_same_bytes([t[:, :64] for t in rows(model, 3)], [t[:, :64] for t in rows(request, 0)])
        checked.append("rows")

    def check_blocks(held: Cache) -> None:
        for of, targets in ((0, (1, 2, 9)), (3, (4, 10))):
            for to in targets:
                assert_same_bytes(rows(held, to), rows(held, of))
        checked.append("blocks")

    def check_registered(owned: list[torch.Tensor], model: Cache) -> None:
        assert_same_bytes([t[0] for t in map(to_host, owned)], list(rows(model, 0)[0]))
        checked.append("registered")

    def allocate_elsewhere(count: int, *shape: int) -> list[torch.Tensor]:
        return cache(count, *shape, dtype=torch.float16, device=device, seed=3)

    exec(SCRIPT, {name: value for name, value in locals().items() if callable(value)})
    assert checked == ["rows", "blocks", "registered"]
    local = [name for name in vars(CacheManager) if name[0] != "_" and not isinstance(vars(CacheManager)[name], type)]
    used = [name for name in local if f"cache_manager.{name}(" in SCRIPT]
    assert set(local) == {*used, "finalize"}  # LLM-DataDist has that in LLMDataDist alone
    assert "LLMDataDist" in llm_datadist_torch.__all__
