# SPDX-License-Identifier: Apache-2.0
"""Offloads vLLM's KV cache to host memory with copy_cache_batch. Imported by vLLM alone: docs/vllm.md.

The lookup, the eviction and the metrics are vLLM's. Its shared memory region, its canonical layout and its further tiers
are not served: each worker process keeps its own blocks in its own host memory.
"""

import contextlib
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    GPULoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

from .blocks import swap_blocks
from .datadist.memory import allocate

logger = logging.getLogger("vllm.llm_datadist_torch")  # vLLM shows its own loggers, and those below them


class CopyCacheOffloadingSpec(CPUOffloadingSpec):
    """vLLM's CPUOffloadingSpec with another worker. It serves the CPU, and each device that copy_cache_batch serves."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if self.extra_config.get("canonical_layout"):
            raise ValueError("CopyCacheOffloadingSpec: canonical_layout is not served: leave it out")

    def _uses_shared_region(self) -> bool:
        # vLLM asks. With True it would expect ranks with the same blocks to share what rank 0 stores.
        return False

    def get_worker(self, kv_caches: CanonicalKVCaches) -> "CopyCacheOffloadingWorker":
        # vLLM 0.28 calls the chunks blocks.
        num_chunks = self.num_chunks if hasattr(self, "num_chunks") else self.num_blocks
        if num_chunks == 0:
            raise ValueError(
                f"CopyCacheOffloadingSpec: cpu_bytes_to_use ({self.extra_config['cpu_bytes_to_use']}) is less than one "
                f"chunk of {self.blocks_per_chunk} blocks, {self.kv_bytes_per_chunk} bytes"
            )
        return CopyCacheOffloadingWorker(kv_caches, self.blocks_per_chunk, num_chunks)


class CopyCacheOffloadingWorker(OffloadingWorker):
    """Copies blocks between the KV caches of one worker process and its host memory.

    A transfer is one call of copy_cache_batch for each KV cache group, with all tensors of the group. It runs after all
    work that is on the compute stream when it is submitted, and after the earlier transfers of its direction. vLLM uses
    loaded blocks, and writes to stored ones, only after get_finished() or wait() has said that the copy is complete.

    If a transfer fails, a log line names its job, and its result has success=False. vLLM up to 0.32 then ends the engine.

    Args:
        kv_caches: vLLM's views of the KV caches, int8 of shape ``[num_blocks, page size]``, and the tensors of each group.
        blocks_per_chunk: The blocks of a chunk, vLLM's unit of host memory.
        num_chunks: The capacity of the host memory. It is allocated here, pinned if there is an NPU.

    Raises:
        LLMException: LLM_OUT_OF_MEMORY.
    """

    def __init__(self, kv_caches: CanonicalKVCaches, blocks_per_chunk: int, num_chunks: int) -> None:
        self._blocks_per_chunk = blocks_per_chunk
        device = kv_caches.tensors[0].tensor.device
        rows = num_chunks * blocks_per_chunk
        widths = _used_bytes([ref for refs in kv_caches.group_data_refs for ref in refs])
        # One buffer: tensors of one width lie at equal distances, which saves calls of the device's runtime.
        buffer = allocate([rows * sum(widths.values())], torch.int8, torch.device("cpu"))
        pieces = torch.split(buffer, [rows * width for width in widths.values()])
        host = {i: piece.view(rows, widths[i]) for i, piece in zip(widths, pieces, strict=True)}
        self._groups = []
        for refs in kv_caches.group_data_refs:
            used = _used_bytes(refs)
            self._groups.append(
                _Group(
                    device=[kv_caches.tensors[i].tensor[:, :width] for i, width in used.items()],
                    host=[host[i][:, :width] for i, width in used.items()],
                    block_bytes=sum(used.values()),
                )
            )
        self._stores, self._loads = _Direction("store", device), _Direction("load", device)
        logger.info(
            "copy_cache_batch offloads the KV caches on %s: %d chunks of %d blocks, %.2f GB of host memory",
            device,
            num_chunks,
            blocks_per_chunk,
            len(buffer) / 1e9,
        )

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: CPULoadStoreSpec) -> bool:
        """Copies blocks of the KV caches to chunks of host memory."""
        return self._stores.submit(job_id, lambda: self._copy(src_spec, dst_spec, to_host=True))

    def submit_load(self, job_id: int, src_spec: CPULoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        """Copies chunks of host memory to blocks of the KV caches."""
        return self._loads.submit(job_id, lambda: self._copy(dst_spec, src_spec, to_host=False))

    def get_finished(self) -> list[TransferResult]:
        """The results of the transfers that ended since the last call, with bytes and seconds."""
        return self._stores.get_finished() + self._loads.get_finished()

    def wait(self, job_ids: set[int]) -> None:
        """Returns when these transfers are complete."""
        self._stores.wait(job_ids)
        self._loads.wait(job_ids)

    def shutdown(self) -> None:
        """Waits for all transfers, and frees the host memory."""
        self._stores.shutdown()
        self._loads.shutdown()
        self._groups = []

    def _copy(self, blocks: GPULoadStoreSpec, chunks: CPULoadStoreSpec, *, to_host: bool) -> int:
        """Copies all blocks of a transfer. Returns the number of bytes."""
        copied = 0
        for group, block_rows, host_rows in self._rows(blocks, chunks):
            if to_host:
                swap_blocks(group.device, group.host, torch.stack([block_rows, host_rows], dim=1))
            else:
                swap_blocks(group.host, group.device, torch.stack([host_rows, block_rows], dim=1))
            copied += len(block_rows) * group.block_bytes
        return copied

    def _rows(self, blocks: GPULoadStoreSpec, chunks: CPULoadStoreSpec) -> Iterator[tuple["_Group", Tensor, Tensor]]:
        """For each group with blocks, their rows in the KV caches and in host memory.

        The blocks of a group are successive blocks of a request, beginning with number block_indices[group]. So the first
        one may lie inside its chunk.
        """
        per_chunk = self._blocks_per_chunk
        block_ids, chunk_ids = (torch.as_tensor(spec.block_ids, dtype=torch.int64) for spec in (blocks, chunks))
        places = [
            torch.arange(index % per_chunk, index % per_chunk + size)
            for index, size in zip(blocks.block_indices, blocks.group_sizes, strict=True)
        ]
        used = [int(place[-1]) // per_chunk + 1 if len(place) else 0 for place in places]
        for group, block_rows, group_chunks, place in zip(
            self._groups,
            torch.split(block_ids, list(blocks.group_sizes)),
            torch.split(chunk_ids, used),
            places,
            strict=True,
        ):
            if len(block_rows):
                yield group, block_rows, group_chunks[place // per_chunk] * per_chunk + place % per_chunk


@dataclass
class _Group:
    """The tensors of a KV cache group, and the host memory of each.

    Attributes:
        device: int8 tensors of shape ``[num_blocks, used bytes of a page]``.
        host: For each of them a tensor of shape ``[num_chunks * blocks_per_chunk, used bytes of a page]``.
        block_bytes: The bytes of a block in all tensors.
    """

    device: list[Tensor]
    host: list[Tensor]
    block_bytes: int


def _used_bytes(refs: Sequence[CanonicalKVCacheRef]) -> dict[int, int]:
    """The bytes of a page to copy, by the number of the tensor: without padding. Several layers may share a tensor."""
    used: dict[int, int] = {}
    for ref in refs:
        used[ref.tensor_idx] = max(ref.page_size_bytes, used.get(ref.tensor_idx, 0))
    return used


class _Direction:
    """The transfers of one direction, in order, and their results."""

    def __init__(self, name: str, device: torch.device) -> None:
        self._name = name
        if device.type == "cpu":
            self._start: Callable[[Callable[[], int]], _Transfer] = _Transfer
        else:
            accelerator = torch.get_device_module(device)
            self._start = functools.partial(_StreamTransfer, accelerator, accelerator.Stream(device))
        self._running: deque[tuple[int, _Transfer]] = deque()
        self._failed: list[TransferResult] = []

    def submit(self, job_id: int, copy: Callable[[], int]) -> bool:
        try:
            self._running.append((job_id, self._start(copy)))
        except (ValueError, RuntimeError):
            self._failed.append(self._failure(job_id))
        return True

    def get_finished(self) -> list[TransferResult]:
        results, self._failed = self._failed, []
        while self._running:
            job_id, transfer = self._running[0]
            try:
                if not transfer.done():
                    break
                results.append(TransferResult(job_id, True, transfer.copied, transfer.seconds()))
            except RuntimeError:
                results.append(self._failure(job_id))
            self._running.popleft()
        return results

    def wait(self, job_ids: set[int]) -> None:
        for job_id, transfer in self._running:
            if job_id in job_ids:
                with contextlib.suppress(RuntimeError):  # get_finished() reports it
                    transfer.wait()

    def shutdown(self) -> None:
        self.wait({job_id for job_id, _ in self._running})

    def _failure(self, job_id: int) -> TransferResult:
        logger.exception("KV offloading job %d failed: a %s", job_id, self._name)
        return TransferResult(job_id, False)


class _Transfer:
    """A transfer that has been started. On the CPU: the copy is made at once, where vLLM submits it.

    A thread could save little: the copy took 0.3 to 2 percent of the time in which a model of 8 layers computed the same
    blocks, and the thread would take a core from the model.
    """

    def __init__(self, copy: Callable[[], int]) -> None:
        begin = time.monotonic()
        self.copied = copy()  # bytes
        self._seconds = time.monotonic() - begin

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def seconds(self) -> float:
        return self._seconds


class _StreamTransfer(_Transfer):
    """On a device: the copy is enqueued on a side stream, after the work on the current stream."""

    def __init__(self, accelerator: Any, stream: Any, copy: Callable[[], int]) -> None:
        self._begin, self._end = (accelerator.Event(enable_timing=True) for _ in range(2))
        stream.wait_stream(accelerator.current_stream(stream.device))
        with accelerator.stream(stream):
            self._begin.record()
            self.copied = copy()
            self._end.record()

    def done(self) -> bool:
        return bool(self._end.query())

    def wait(self) -> None:
        self._end.synchronize()

    def seconds(self) -> float:
        return float(self._begin.elapsed_time(self._end)) / 1000
