# SPDX-License-Identifier: Apache-2.0
"""A prompt process and a decoder: a pulled request goes into the running batch, another one into blocks. Then the prompt process
ends the link by force, and the decoder starts again with the same LLMDataDist."""

import os

import torch
import torch.distributed as dist
from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    Placement,
)

DEVICE = "npu:0" if hasattr(torch, "npu") else "cpu"
RANK = int(os.environ["RANK"])
PORT = int(os.environ["LISTEN_PORTS"].split(",")[0])
TOKENS = 16


def options() -> dict[str, str]:
    config = LLMConfig()
    config.device_id = 0
    config.enable_cache_manager = True
    config.sync_kv_timeout = 20000
    if RANK == 0:
        config.listen_ip_info = f"127.0.0.1:{PORT}"
    return config.generate_options()


def contiguous(batch: int) -> CacheDesc:
    return CacheDesc(num_tensors=4, shape=[batch, TOKENS], data_type=DataType.DT_FLOAT16, placement=Placement.DEVICE)


def memory(rows: int, tokens: int, first: float = 0, step: float = 0) -> list[torch.Tensor]:
    shape, dtype = (rows, tokens), torch.float16
    return [torch.full(shape, first + step * index, dtype=dtype, device=DEVICE) for index in range(4)]


def addresses(tensors: list[torch.Tensor]) -> list[int]:
    return [int(tensor.data_ptr()) for tensor in tensors]


def first_elements(tensors: list[torch.Tensor]) -> list[list[float]]:
    return [tensor.cpu()[:, 0].tolist() for tensor in tensors]


def prefill(first: int) -> list[torch.Tensor]:
    """A cache for each of two requests. Returns their memory."""
    kept = []
    for request in (first, first + 1):
        tensors = memory(1, TOKENS, 100 * request, 1)
        manager.register_cache(contiguous(1), addresses(tensors), [CacheKey(0, request)])
        kept += tensors
    return kept


def decode(first: int) -> None:
    """The first request goes into row 1 of the batch, the second into blocks 3 and 0."""
    tensors, pulled, paged = memory(2, TOKENS), memory(1, TOKENS), memory(4, TOKENS // 2)
    batch = manager.register_cache(contiguous(2), addresses(tensors))
    request = manager.register_cache(contiguous(1), addresses(pulled))
    blocks = manager.register_blocks_cache(
        CacheDesc(4, [4, TOKENS // 2], DataType.DT_FLOAT16, Placement.DEVICE), addresses(paged), BlocksCacheKey(1, 0)
    )
    manager.pull_cache(CacheKey(0, first), request)
    manager.copy_cache(batch, request, 1, 0, req_id=first)
    manager.pull_blocks(CacheKey(0, first + 1), blocks, dst_blocks=[3, 0])
    assert first_elements(tensors) == [[0, 100 * first + index] for index in range(4)]
    second = [100 * (first + 1) + index for index in range(4)]
    assert first_elements(paged) == [[value, 0, 0, value] for value in second]
    code = LLMStatusCode.LLM_SUCCESS
    try:
        manager.pull_cache(CacheKey(0, first + 7), request)
    except LLMException as error:
        code = error.status_code
    assert code == LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
    for cache in (batch, request, blocks):
        manager.unregister_cache(cache.cache_id)


def cluster(number: int, port: int) -> LLMClusterInfo:
    info = LLMClusterInfo()
    info.remote_cluster_id = number
    info.append_local_ip_info("127.0.0.1", 26000)
    info.append_remote_ip_info("127.0.0.1", port)
    return info


dist.init_process_group("gloo")
datadist = LLMDataDist(LLMRole.PROMPT if RANK == 0 else LLMRole.DECODER, RANK)
datadist.init(options())
for turn in range(2):
    manager = datadist.cache_manager
    if RANK == 0:
        kept = prefill(2 * turn)
    dist.barrier()
    if RANK == 1:
        result, each = datadist.link_clusters([cluster(0, PORT)], 5000)
        assert result == LLMStatusCode.LLM_SUCCESS, each
        decode(2 * turn)
    dist.barrier()
    if RANK == 0:
        result, _ = datadist.unlink_clusters([cluster(1, 26000)], 5000, True)
        assert result == LLMStatusCode.LLM_SUCCESS
    else:
        datadist.finalize()
        datadist.init(options())
    dist.barrier()
datadist.finalize()
print("done")
