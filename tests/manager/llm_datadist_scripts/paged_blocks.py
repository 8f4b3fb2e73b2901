# SPDX-License-Identifier: Apache-2.0
"""Paged caches for LLM-DataDist: blocks are copied on write, offloaded to the host, and loaded back."""

import torch
from llm_datadist.configs import LlmConfig, LLMRole
from llm_datadist.data_type import DataType
from llm_datadist.v2.llm_datadist import LLMDataDist
from llm_datadist.v2.llm_types import BlocksCacheKey, Cache, CacheDesc, Placement

TENSORS, BLOCKS, HOST_BLOCKS, WIDTH = 4, 16, 6, 128
DEVICE = "npu:0" if hasattr(torch, "npu") and torch.npu.is_available() else "cpu"


def on_host(tensors):
    return torch.stack([tensor.cpu() for tensor in tensors])


def main():
    config = LlmConfig()
    config.device_id = 0
    config.enable_cache_manager = True
    config.sync_kv_timeout = 60000
    config.ge_options = {"ge.flowGraphMemMaxSize": "4106127360"}
    config.listen_ip_info = "127.0.0.1:0"
    datadist = LLMDataDist(LLMRole.PROMPT, 1)
    datadist.init(config.gen_options())
    manager = datadist.cache_manager

    tensors = [torch.randn(BLOCKS, WIDTH).to(DEVICE) for _ in range(TENSORS)]
    desc = CacheDesc(num_tensors=TENSORS, shape=[BLOCKS, WIDTH], data_type=DataType.DT_FLOAT)
    cache = manager.register_blocks_cache(desc, [int(t.data_ptr()) for t in tensors], BlocksCacheKey(1, 0))
    host_tensors = [torch.zeros(HOST_BLOCKS, WIDTH) for _ in range(TENSORS)]
    host_desc = CacheDesc(TENSORS, [HOST_BLOCKS, WIDTH], DataType.DT_FLOAT, Placement.HOST)
    host_cache = Cache.create_cpu_cache(host_desc, [t.data_ptr() for t in host_tensors])
    expected = on_host(tensors)

    # A fork: two sequences share blocks 0 and 1, and each gets its own copy of the last one. The lists may repeat.
    manager.copy_blocks(cache, {1: [2, 3, 3], 0: [8]})
    expected[:, [2, 3, 8]] = expected[:, [1, 1, 0]]
    assert torch.equal(on_host(tensors), expected)

    # The sequence in blocks 2, 8 and 3 is preempted: out to the host, and later into other blocks.
    manager.swap_blocks(cache, host_cache, {2: 0, 8: 5, 3: 1})
    assert torch.equal(on_host(host_tensors)[:, [0, 5, 1]], expected[:, [2, 8, 3]])
    for tensor in tensors:
        tensor[2:4].copy_(torch.zeros(2, WIDTH))
    manager.swap_blocks(host_cache, cache, {0: 10, 5: 11, 1: 12})
    expected[:, [10, 11, 12]] = expected[:, [2, 8, 3]]
    expected[:, 2:4] = 0
    assert torch.equal(on_host(tensors), expected)

    # Blocks that only the manager has.
    scratch = manager.allocate_blocks_cache(desc)
    manager.swap_blocks(host_cache, scratch, {0: 4})
    manager.swap_blocks(scratch, host_cache, {4: 2})
    assert torch.equal(on_host(host_tensors)[:, 2], on_host(host_tensors)[:, 0])
    manager.deallocate_blocks_cache(scratch)
    manager.unregister_cache(cache.cache_id)
    datadist.finalize()
    print("done")


if __name__ == "__main__":
    main()
