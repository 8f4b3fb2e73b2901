# SPDX-License-Identifier: Apache-2.0
"""The worker alone, called as vLLM calls it, with vLLM's types: bytes against plain indexing, results, failures."""

import logging
import random
from dataclasses import dataclass
from itertools import chain

import pytest
import torch
from torch import Tensor
from utils import filled
from vllm.v1.kv_offload.base import CanonicalKVCacheRef, CanonicalKVCaches, CanonicalKVCacheTensor, GPULoadStoreSpec
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from worker_utils import BLOCKS, CHUNKS, finished, make_caches, make_worker

from llm_datadist_torch.vllm import CopyCacheOffloadingSpec

CASES = {
    "one width": ([64] * 4, [[(0, 64), (1, 64), (2, 64), (3, 64)]]),
    "MLA: rows of two widths": ([128, 16] * 2, [[(0, 128), (1, 16), (2, 128), (3, 16)]]),
    "padded pages": ([64, 64], [[(0, 48), (1, 64)]]),
    "groups over the same tensors": ([64, 64], [[(0, 64), (1, 64)], [(0, 40), (1, 64)], [(1, 64), (1, 64)]]),
}
"""The page size of each tensor, and for each group the tensors of its layers with the bytes that a layer uses."""


@dataclass
class Request:
    """Blocks of a request in each group, from a random block on, as vLLM describes them."""

    blocks: list[list[int]]
    first: list[int]
    chunks: list[list[int]]

    def device_spec(self) -> GPULoadStoreSpec:
        return GPULoadStoreSpec([*chain(*self.blocks)], [len(blocks) for blocks in self.blocks], self.first)

    def host_spec(self) -> CPULoadStoreSpec:
        return CPULoadStoreSpec([*chain(*self.chunks)])


def random_request(groups: int, blocks_per_chunk: int, chosen: random.Random) -> Request:
    blocks, first, chunks = [], [], []
    free_blocks, free_chunks = (chosen.sample(range(count), count) for count in (BLOCKS, CHUNKS))
    for _ in range(groups):
        count, begin = chosen.choice([0, 1, 5]), chosen.randrange(9)
        used = -(-(begin % blocks_per_chunk + count) // blocks_per_chunk) if count else 0
        blocks.append([free_blocks.pop() for _ in range(count)])
        first.append(begin)
        chunks.append([free_chunks.pop() for _ in range(used)])
    return Request(blocks, first, chunks)


def places(request: Request, group: int, blocks_per_chunk: int) -> list[tuple[int, tuple[int, int]]]:
    """Each block of a group with its chunk and its place in that chunk."""
    begin = request.first[group] // blocks_per_chunk
    found = []
    for number, block in enumerate(request.blocks[group], request.first[group]):
        found.append((block, (request.chunks[group][number // blocks_per_chunk - begin], number % blocks_per_chunk)))
    return found


@pytest.mark.parametrize("blocks_per_chunk", [1, 4])
@pytest.mark.parametrize("case", CASES)
def test_bytes(device: str, case: str, blocks_per_chunk: int) -> None:
    """Random stores and loads. A model in Python keeps what each place of host memory holds."""
    widths, groups = CASES[case]
    caches = make_caches(widths, groups, device)
    worker = make_worker(caches, blocks_per_chunk)
    expected = [cache.tensor.cpu() for cache in caches.tensors]
    host: dict[tuple[int, int, int, int], Tensor] = {}  # by group, chunk, place in the chunk, tensor
    chosen = random.Random(0)
    stored: list[Request] = []
    for job in range(40):
        if job % 2 == 0:
            request = random_request(len(groups), blocks_per_chunk, chosen)
            assert worker.submit_store(job, request.device_spec(), request.host_spec())
            taken = {*chain(*request.chunks)}
            stored = [old for old in stored if not taken.intersection(chain(*old.chunks))] + [request]
        else:
            # The same part of the request, to other blocks.
            request = chosen.choice(stored)
            free = chosen.sample(range(BLOCKS), BLOCKS)
            request = Request(
                [[free.pop() for _ in blocks] for blocks in request.blocks], request.first, request.chunks
            )
            assert worker.submit_load(job, request.host_spec(), request.device_spec())
        copied = 0
        for group, refs in enumerate(groups):
            for block, place in places(request, group, blocks_per_chunk):
                for tensor, used in dict(refs).items():
                    copied += used
                    key = (group, *place, tensor)
                    if job % 2 == 0:
                        host[key] = expected[tensor][block, :used].clone()
                    else:
                        expected[tensor][block, :used] = host[key]
        [result] = finished(worker, {job})
        assert (result.job_id, result.success, result.transfer_size) == (job, True, copied)
        assert result.transfer_time >= 0
        for cache, wanted in zip(caches.tensors, expected, strict=True):
            assert torch.equal(cache.tensor.cpu(), wanted)
        if job % 2 == 0:  # the next load finds other bytes in the caches
            for tensor, cache in enumerate(caches.tensors):
                expected[tensor] = filled(BLOCKS, widths[tensor], dtype=torch.int8, seed=job + 1)
                cache.tensor.copy_(expected[tensor])
    worker.shutdown()


def test_blocks_with_gaps(device: str) -> None:
    """Layers interleaved in each block: the rows of a tensor do not follow each other."""
    blocks = filled(BLOCKS, 3, 32, dtype=torch.int8, device=device)
    tensors = [CanonicalKVCacheTensor(blocks[:, layer], 32) for layer in range(3)]
    caches = CanonicalKVCaches(tensors, [[CanonicalKVCacheRef(layer, 32) for layer in range(3)]])
    worker = make_worker(caches, 1)
    worker.submit_store(1, GPULoadStoreSpec([4, 2], [2], [0]), CPULoadStoreSpec([0, 3]))
    finished(worker, {1})
    before = blocks.cpu()
    worker.submit_load(2, CPULoadStoreSpec([3, 0]), GPULoadStoreSpec([7, 8], [2], [0]))
    finished(worker, {2})
    before[7], before[8] = before[2].clone(), before[4].clone()
    assert torch.equal(blocks.cpu(), before)


@pytest.mark.parametrize(
    ("blocks", "chunks", "reason"),
    [
        ([BLOCKS], [0], "copies[0]: src_batch_index (24) out of range"),
        ([0], [CHUNKS], "copies[0]: dst_batch_index (16) out of range"),
        ([0, 1], [0], "split"),
        ([0], [0, 1], "split"),
    ],
)
def test_failure(
    device: str, caplog: pytest.LogCaptureFixture, blocks: list[int], chunks: list[int], reason: str
) -> None:
    """A failed transfer ends its own job. A line of the log names it. Others go on."""
    caches = make_caches([64], [[(0, 64)]], device)
    worker = make_worker(caches, 1)
    assert worker.submit_store(7, GPULoadStoreSpec(blocks, [len(blocks)], [0]), CPULoadStoreSpec(chunks))
    assert worker.submit_store(8, GPULoadStoreSpec([3], [1], [0]), CPULoadStoreSpec([1]))
    results = {result.job_id: result.success for result in finished(worker, {7, 8})}
    assert results == {7: False, 8: True}
    [line] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert line.getMessage() == "KV offloading job 7 failed: a store"
    assert reason in str(line.exc_info[1])


def make_spec(blocks_per_chunk: int = 2, **extra: object) -> CopyCacheOffloadingSpec:
    """The spec as vLLM makes it for two ranks whose blocks are the same, as those of MLA are: 1 KiB for a block."""
    return CopyCacheOffloadingSpec(
        OffloadingConfig(
            groups=(OffloadingGroupConfig(16, ("layer",), 0),),
            worker_kv_bytes_per_block=1024,
            enable_kv_cache_events=False,
            extra_config=extra,
            engine_id="engine",
            model=OffloadingModelConfig("model", "float32"),
            cache=OffloadingCacheConfig(16, blocks_per_chunk),
            parallel=OffloadingParallelConfig(0, 2, 2, 1, 1, 1, 0, 1, None, False),
            replicated_layout=True,
        )
    )


def test_capacity(device: str) -> None:
    """cpu_bytes_to_use is for both ranks, since each keeps its own blocks. The last chunk exists, and no other."""
    chunks = 5
    spec = make_spec(cpu_bytes_to_use=chunks * 2 * 1024 * 2 + 100)
    worker = spec.get_worker(make_caches([256] * 4, [[(layer, 256) for layer in range(4)]], device))
    for chunk, success in ((chunks - 1, True), (chunks, False)):
        worker.submit_store(chunk, GPULoadStoreSpec([0, 1], [2], [0]), CPULoadStoreSpec([chunk]))
        assert [result.success for result in finished(worker, {chunk})] == [success]


def test_capacity_by_the_name_of_vllm_0_28(device: str) -> None:
    spec = make_spec(cpu_bytes_to_use=10_000)
    spec.num_blocks = 3
    del spec.num_chunks
    worker = spec.get_worker(make_caches([256], [[(0, 256)]], device))
    worker.submit_store(1, GPULoadStoreSpec([0, 1], [2], [0]), CPULoadStoreSpec([3]))
    assert not finished(worker, {1})[0].success


def test_refused_configurations(device: str) -> None:
    with pytest.raises(ValueError, match=r"cpu_bytes_to_use \(4095\) is less than one chunk of 2 blocks, 4096 bytes"):
        make_spec(cpu_bytes_to_use=4095).get_worker(make_caches([256], [[(0, 256)]], device))
    with pytest.raises(ValueError, match="canonical_layout is not served"):
        make_spec(cpu_bytes_to_use=10_000, canonical_layout=True)
