# SPDX-License-Identifier: Apache-2.0
"""A prompt process and a decoder: pull_cache by request, pull_blocks from a cache into blocks."""

import os

import torch
import torch.distributed as dist
from llm_datadist import (
    CacheDesc,
    CacheKey,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMRole,
    LLMStatusCode,
    Placement,
)

DEVICE = "npu:0" if hasattr(torch, "npu") else "cpu"
RANK = int(os.environ["RANK"])
PORT = int(os.environ["LISTEN_PORTS"].split(",")[0])

dist.init_process_group("gloo")
role = LLMRole.PROMPT if RANK == 0 else LLMRole.DECODER
datadist = LLMDataDist(role, RANK)
config = LLMConfig()
config.device_id = 0
config.enable_cache_manager = True
config.mem_pool_cfg = '{"memory_size": 1073741824}'
config.sync_kv_timeout = 20000
if role == LLMRole.PROMPT:
    config.listen_ip_info = f"127.0.0.1:{PORT}"
datadist.init(config.generate_options())
manager = datadist.cache_manager
description = CacheDesc(num_tensors=4, shape=[2, 1024], data_type=DataType.DT_FLOAT16, placement=Placement.DEVICE)
keys = [CacheKey(prompt_cluster_id=0, req_id=number, model_id=0) for number in range(2)]

if role == LLMRole.PROMPT:
    cache = manager.allocate_cache(description, keys)
    for number in range(2):
        cache.tensors[0][:, number] = number + 1
    row = manager.allocate_cache(description, [CacheKey(0, 2), CacheKey(0, 3)])
    row.tensors[0].fill_(4)
    dist.barrier()  # the caches are ready
    dist.barrier()  # they have been pulled
    for key in (*keys, CacheKey(0, 2), CacheKey(0, 3)):
        manager.remove_cache_key(key)  # no effect for those that were pulled
    manager.deallocate_cache(cache)
    manager.deallocate_cache(row)
else:
    dist.barrier()
    peer = LLMClusterInfo()
    peer.remote_cluster_id = 0
    peer.append_local_ip_info("127.0.0.1", 26000)
    peer.append_remote_ip_info("127.0.0.1", PORT)
    result, results = datadist.link_clusters([peer], 5000)
    assert result == LLMStatusCode.LLM_SUCCESS and results == [LLMStatusCode.LLM_SUCCESS]
    cache = manager.allocate_cache(description)
    for number in range(2):
        manager.pull_cache(keys[number], cache, batch_index=1 - number)
    assert cache.tensors[0][:, 0].cpu().eq(2).all() and cache.tensors[0][:, 1].cpu().eq(1).all()

    tensors = [torch.zeros(8, 256, dtype=torch.float16, device=DEVICE) for _ in range(4)]
    blocks_description = CacheDesc(num_tensors=4, shape=[8, 256], data_type=DataType.DT_FLOAT16)
    blocks = manager.register_blocks_cache(blocks_description, [tensor.data_ptr() for tensor in tensors])
    manager.pull_blocks(CacheKey(0, 2), blocks, src_blocks=[], dst_blocks=[1, 0, 7, 3])
    assert all(tensor.cpu()[[1, 0, 7, 3]].eq(4).all() and not tensor.cpu()[[2, 4, 5, 6]].any() for tensor in tensors)
    result, _ = datadist.unlink_clusters([peer], 5000)
    assert result == LLMStatusCode.LLM_SUCCESS
    dist.barrier()
datadist.finalize()
print("done")
