# SPDX-License-Identifier: Apache-2.0
"""A prompt process and a decoder: push_cache, transfer_cache_async, switch_role on both sides, push_blocks."""

import os

import torch
import torch.distributed as dist
from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKeyByIdAndIndex,
    DataType,
    LayerSynchronizer,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMRole,
    LLMStatusCode,
    Placement,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

DEVICE = "npu:0" if hasattr(torch, "npu") else "cpu"
RANK = int(os.environ["RANK"])
OTHER = 1 - RANK
PORTS = [int(port) for port in os.environ["LISTEN_PORTS"].split(",")]


class Computed(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


def address_of(rank: int) -> LLMClusterInfo:
    cluster = LLMClusterInfo()
    cluster.remote_cluster_id = rank
    cluster.append_local_ip_info("127.0.0.1", PORTS[1 - rank])
    cluster.append_remote_ip_info("127.0.0.1", PORTS[rank])
    return cluster


dist.init_process_group("gloo")
datadist = LLMDataDist(LLMRole.PROMPT if RANK == 0 else LLMRole.DECODER, RANK)
config = LLMConfig()
config.device_id = 0
config.local_comm_res = ""
config.enable_switch_role = True
config.sync_kv_timeout = 20000
if RANK == 0:
    config.listen_ip_info = f"127.0.0.1:{PORTS[0]}"
datadist.init(config.generate_options())
manager = datadist.cache_manager
tensors = [torch.full((3, 10), float(10 * RANK + i), device=DEVICE) for i in range(4)]
block_tensors = [torch.full((3, 10), float(10 * RANK + i), device=DEVICE) for i in range(2)]
description = CacheDesc(num_tensors=4, shape=[3, 10], data_type=DataType.DT_FLOAT, placement=Placement.DEVICE)
cache = manager.register_cache(description, [tensor.data_ptr() for tensor in tensors], remote_accessible=True)
blocks = manager.register_blocks_cache(
    CacheDesc(num_tensors=2, shape=[3, 10], data_type=DataType.DT_FLOAT),
    [tensor.data_ptr() for tensor in block_tensors],
    BlocksCacheKey(RANK, 0),
)
addresses = [None, None]
dist.all_gather_object(addresses, cache.tensor_addrs)

if RANK == 1:
    result, _ = datadist.link_clusters([address_of(0)], 5000)
    assert result == LLMStatusCode.LLM_SUCCESS
    manager.push_cache(CacheKeyByIdAndIndex(cluster_id=0, cache_id=1, batch_index=2), cache, src_batch_index=0)
    by_address = TransferConfig(0, addresses[0], range(0, 2), 1)
    by_key = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(0, 1, 1), range(0, 1), range(0, 1), 2)
    task = manager.transfer_cache_async(cache, Computed(), [by_address, by_key])
    assert task.synchronize() == LLMStatusCode.LLM_SUCCESS
    assert task.get_results() == [LLMStatusCode.LLM_SUCCESS] * 2
    result, _ = datadist.unlink_clusters([address_of(0)], 5000)
    assert result == LLMStatusCode.LLM_SUCCESS
dist.barrier()
if RANK == 0:
    for i, tensor in enumerate(tensors):
        rows = tensor.cpu()[:, 0].tolist()
        assert rows == [10.0 + i, 10.0 + i if i < 2 else float(i), 10.0 + i], rows
    datadist.switch_role(LLMRole.DECODER)
else:
    options = LLMConfig()
    options.listen_ip_info = f"127.0.0.1:{PORTS[1]}"
    datadist.switch_role(LLMRole.PROMPT, options.generate_options())
dist.barrier()
if RANK == 0:
    result, _ = datadist.link_clusters([address_of(1)], 5000)
    assert result == LLMStatusCode.LLM_SUCCESS
dist.barrier()
if RANK == 1:  # which now listens, and still pushes
    layers = {"src_layer_range": range(0, 2), "dst_layer_range": range(0, 2), "tensor_num_per_layer": 1}
    manager.push_blocks(BlocksCacheKey(0, 0), blocks, src_blocks=[0, 1], dst_blocks=[2, 0], **layers)
dist.barrier()
if RANK == 0:
    for i, tensor in enumerate(block_tensors):
        assert tensor.cpu()[:, 0].tolist() == [10.0 + i, float(i), 10.0 + i]
result, _ = datadist.unlink_clusters([address_of(OTHER)], 5000, force=True)
assert result == LLMStatusCode.LLM_SUCCESS
manager.unregister_cache(cache.cache_id)
manager.unregister_cache(blocks.cache_id)
datadist.finalize()
print("done")
