# SPDX-License-Identifier: Apache-2.0
"""Two prompt processes and two decoders: each decoder pulls blocks of both prompt processes."""

import os

import torch
import torch.distributed as dist
from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMRole,
    LLMStatusCode,
)

DEVICE = "npu:0" if hasattr(torch, "npu") else "cpu"
RANK = int(os.environ["RANK"])
PORTS = [int(port) for port in os.environ["LISTEN_PORTS"].split(",")]
PROMPTS = (0, 1)

dist.init_process_group("gloo")
role = LLMRole.PROMPT if RANK in PROMPTS else LLMRole.DECODER
datadist = LLMDataDist(role, RANK)
config = LLMConfig()
config.device_id = 0
config.local_comm_res = ""
config.sync_kv_timeout = 20000
if role == LLMRole.PROMPT:
    config.listen_ip_info = f"127.0.0.1:{PORTS[RANK]}"
datadist.init(config.generate_options())
manager = datadist.cache_manager
tensors = [torch.full((5, 10), RANK + 1 if RANK in PROMPTS else 0, dtype=torch.float, device=DEVICE) for _ in range(2)]
cache = manager.register_blocks_cache(
    CacheDesc(num_tensors=2, shape=[5, 10], data_type=DataType.DT_FLOAT),
    [int(tensor.data_ptr()) for tensor in tensors],
    BlocksCacheKey(RANK, 0),
)
dist.barrier()
if role == LLMRole.DECODER:
    clusters = []
    for prompt in PROMPTS:
        cluster = LLMClusterInfo()
        cluster.remote_cluster_id = prompt
        cluster.append_local_ip_info("127.0.0.1", 26000)
        cluster.append_remote_ip_info("127.0.0.1", PORTS[prompt])
        clusters.append(cluster)
    result, _ = datadist.link_clusters(clusters, 5000)
    assert result == LLMStatusCode.LLM_SUCCESS
    for prompt in PROMPTS:
        manager.pull_blocks(BlocksCacheKey(prompt, 0), cache, src_blocks=[0, 1], dst_blocks=[prompt, 2 + prompt])
    expected = torch.tensor([1.0, 2, 1, 2, 0]).view(5, 1).expand(5, 10)
    assert all(torch.equal(tensor.cpu(), expected) for tensor in tensors)
    result, _ = datadist.unlink_clusters(clusters, 5000)
    assert result == LLMStatusCode.LLM_SUCCESS
dist.barrier()
manager.unregister_cache(cache.cache_id)
datadist.finalize()
print("done")
