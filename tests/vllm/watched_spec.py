# SPDX-License-Identifier: Apache-2.0
"""The spec with a worker that the tests watch and hold up. vLLM loads it by the name of this module."""

import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, GPULoadStoreSpec, TransferResult
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec

from llm_datadist_torch.vllm import CopyCacheOffloadingSpec, CopyCacheOffloadingWorker


class WatchedWorker(CopyCacheOffloadingWorker):
    """Compares each loaded block with what the block held when it was stored. One group, one block per chunk.

    Attributes:
        loaded: How many blocks were compared.
        hold_loads: While this is True, the ends of loads are not reported.
    """

    def __init__(self, kv_caches: CanonicalKVCaches, blocks_per_chunk: int, num_chunks: int) -> None:
        super().__init__(kv_caches, blocks_per_chunk, num_chunks)
        assert blocks_per_chunk == len(kv_caches.group_data_refs) == 1
        self._tensors = [tensor.tensor for tensor in kv_caches.tensors]
        self._stored: dict[int, torch.Tensor] = {}
        self._load_jobs: set[int] = set()
        self.loaded = 0
        self.hold_loads = False
        self._held: list[TransferResult] = []

    def block(self, block: int) -> torch.Tensor:
        return torch.cat([tensor[block] for tensor in self._tensors])

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: CPULoadStoreSpec) -> bool:
        for block, chunk in zip(src_spec.block_ids, dst_spec.block_ids, strict=True):
            self._stored[int(chunk)] = self.block(block)
        return super().submit_store(job_id, src_spec, dst_spec)

    def submit_load(self, job_id: int, src_spec: CPULoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        submitted = super().submit_load(job_id, src_spec, dst_spec)
        for block, chunk in zip(dst_spec.block_ids, src_spec.block_ids, strict=True):
            assert torch.equal(self.block(block), self._stored[int(chunk)])
            self.loaded += 1
        self._load_jobs.add(job_id)
        return submitted

    def get_finished(self) -> list[TransferResult]:
        finished = [*self._held, *super().get_finished()]
        self._held = [result for result in finished if self.hold_loads and result.job_id in self._load_jobs]
        return [result for result in finished if result not in self._held]


class WatchedSpec(CopyCacheOffloadingSpec):
    """Keeps the worker that it made last."""

    worker: WatchedWorker

    def get_worker(self, kv_caches: CanonicalKVCaches) -> WatchedWorker:
        WatchedSpec.worker = WatchedWorker(kv_caches, self.blocks_per_chunk, self.num_chunks)
        return WatchedSpec.worker
