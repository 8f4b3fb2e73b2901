# SPDX-License-Identifier: Apache-2.0
"""KV caches as vLLM passes them to a worker, and the worker for them."""

import time
from collections.abc import Sequence

import torch
from utils import filled
from vllm.v1.kv_offload.base import CanonicalKVCacheRef, CanonicalKVCaches, CanonicalKVCacheTensor, TransferResult

from llm_datadist_torch.vllm import CopyCacheOffloadingWorker

BLOCKS, CHUNKS = 24, 16


def make_caches(
    widths: Sequence[int], groups: Sequence[Sequence[tuple[int, int]]], device: str, blocks: int = BLOCKS
) -> CanonicalKVCaches:
    """Args: the page size of each tensor; for each group the tensors of its layers, with the bytes that a layer uses."""
    tensors = [
        CanonicalKVCacheTensor(filled(blocks, width, dtype=torch.int8, device=device, seed=seed), width)
        for seed, width in enumerate(widths)
    ]
    return CanonicalKVCaches(tensors, [[CanonicalKVCacheRef(*layer) for layer in group] for group in groups])


def make_worker(caches: CanonicalKVCaches, blocks_per_chunk: int) -> CopyCacheOffloadingWorker:
    return CopyCacheOffloadingWorker(caches, blocks_per_chunk, CHUNKS)


def finished(worker: CopyCacheOffloadingWorker, jobs: set[int]) -> list[TransferResult]:
    """The results of these jobs, as the engine gets them: it asks again and again."""
    results: list[TransferResult] = []
    patience = time.monotonic() + 30
    while {result.job_id for result in results} != jobs:
        assert time.monotonic() < patience
        results += worker.get_finished()
    return results
