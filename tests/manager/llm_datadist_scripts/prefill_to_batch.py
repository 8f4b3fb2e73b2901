# SPDX-License-Identifier: Apache-2.0
"""A decoder for LLM-DataDist: prefilled requests move into the running batch, and beams share and exchange rows."""

import torch
from llm_datadist import CacheDesc, CacheKey, DataType, LLMConfig, LLMDataDist, LLMRole, Placement

TENSORS, BATCH, TOKENS, WIDTH = 8, 8, 16, 32  # keys and values of four layers
TOKEN_BYTES = WIDTH * 2
DEVICE = "npu:0" if hasattr(torch, "npu") and torch.npu.is_available() else "cpu"


def make_tensors(batch):
    tensors = [torch.randn(batch, TOKENS, WIDTH).half().to(DEVICE) for _ in range(TENSORS)]
    return tensors, [tensor.data_ptr() for tensor in tensors]


def on_host(tensors):
    return torch.stack([tensor.cpu() for tensor in tensors])


def main():
    config = LLMConfig()
    config.device_id = [0]
    config.local_comm_res = ""
    config.sync_kv_timeout = "60000"
    config.mem_pool_cfg = '{"memory_size": 1048576, "page_shift": 16}'
    config.link_total_time = 60
    config.link_retry_count = 3
    datadist = LLMDataDist(LLMRole.DECODER, 2)
    datadist.init(config.generate_options())
    manager = datadist.cache_manager

    desc = CacheDesc(TENSORS, [BATCH, TOKENS, WIDTH], DataType.DT_FLOAT16, Placement.DEVICE, 0, 1)
    assert desc.shape == [BATCH, TOKENS, WIDTH]
    batch_tensors, addrs = make_tensors(BATCH)
    batch = manager.register_cache(desc, addrs)
    expected = on_host(batch_tensors)

    # Two requests of different lengths, each prefilled into a cache of its own.
    request_desc = CacheDesc(TENSORS, [1] + desc.shape[1:], DataType.DT_FLOAT16)
    for req_id, row, tokens in ((11, 0, 5), (12, 4, 16)):
        tensors, addrs = make_tensors(1)
        key = CacheKey(prompt_cluster_id=1, req_id=req_id)
        manager.check_cache_key(key)
        request = manager.register_cache(request_desc, addrs, [key])
        manager.copy_cache(batch, request, row, 0, 0, tokens * TOKEN_BYTES, req_id)
        expected[:, row, :tokens] = on_host(tensors)[:, 0, :tokens]
        for beam in range(1, 4):
            manager.copy_cache(batch, batch, row + beam, row, size=tokens * TOKEN_BYTES, req_id=req_id)
            expected[:, row + beam, :tokens] = expected[:, row, :tokens]
        manager.remove_cache_key(key)
        manager.unregister_cache(request.cache_id)
        assert request.tensor_addrs == addrs
    assert torch.equal(on_host(batch_tensors), expected)

    # One step of beam search: every row continues the beam of another row.
    parents = [1, 0, 3, 3, 7, 4, 5, 6]
    scratch = manager.allocate_cache(desc)
    for row, parent in enumerate(parents):
        manager.copy_cache(scratch, batch, row, parent)
    for row in range(BATCH):
        manager.copy_cache(batch, scratch, row, row)
    assert torch.equal(on_host(batch_tensors), expected[:, parents])

    manager.deallocate_cache(scratch)
    manager.deallocate_cache(batch)
    manager.unregister_cache(batch.cache_id)
    datadist.finalize()
    print("done")


if __name__ == "__main__":
    main()
