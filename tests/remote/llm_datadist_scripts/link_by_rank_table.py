# SPDX-License-Identifier: Apache-2.0
"""Some processes, linked by a rank table: each pulls a row of every other one. Then all unlink, and do it again."""

import json
import os
import time

import torch
import torch.distributed as dist
from llm_datadist import (
    CacheDesc,
    CacheKeyByIdAndIndex,
    DataType,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    Placement,
    RegisterMemStatus,
)

DEVICE = "npu:0" if hasattr(torch, "npu") else "cpu"
RANK, COUNT = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
CLUSTERS = {10 + rank: rank for rank in range(COUNT)}
SERVERS = [
    {"server_id": str(rank + 1), "host_ip": "127.0.0.1", "device": [{"device_id": str(rank), "rank_id": str(rank)}]}
    for rank in range(COUNT)
]
TABLE = json.dumps({"server_count": str(COUNT), "status": "completed", "version": "1.0", "server_list": SERVERS})

dist.init_process_group("gloo")
datadist = LLMDataDist(LLMRole.PROMPT if RANK == 0 else LLMRole.DECODER, 10 + RANK)
config = LLMConfig()
config.device_id = 0
config.enable_cache_manager = True
config.enable_remote_cache_accessible = True
config.link_total_time = 60
config.sync_kv_timeout = 20000
datadist.init(config.generate_options())
manager = datadist.cache_manager
tensors = [torch.full((COUNT, 8), float(RANK), device=DEVICE) for _ in range(4)]
cache = manager.register_cache(
    CacheDesc(4, [COUNT, 8], DataType.DT_FLOAT, Placement.DEVICE), [tensor.data_ptr() for tensor in tensors]
)
dist.barrier()
for turn in range(2):
    comm_id = datadist.link("decode", CLUSTERS, TABLE)
    assert comm_id == turn + 1
    while datadist.query_register_mem_status(comm_id) == RegisterMemStatus.PREPARING:
        time.sleep(0.01)
    assert datadist.query_register_mem_status(comm_id) == RegisterMemStatus.OK
    for other in range(COUNT):
        if other != RANK:
            manager.pull_cache(CacheKeyByIdAndIndex(10 + other, cache.cache_id, other), cache, other)
    for tensor in tensors:
        assert tensor.cpu()[:, 0].tolist() == list(range(COUNT)), tensor
    for tensor in tensors:
        tensor[(RANK + 1) % COUNT] = -1
    dist.barrier()
    datadist.unlink(comm_id)
    code = LLMStatusCode.LLM_SUCCESS
    try:
        manager.pull_cache(CacheKeyByIdAndIndex(10 + (RANK + 1) % COUNT, cache.cache_id, 0), cache, 0)
    except LLMException as error:
        code = error.status_code
    assert code == LLMStatusCode.LLM_NOT_YET_LINK
    dist.barrier()
manager.unregister_cache(cache.cache_id)
datadist.finalize()
print("done")
