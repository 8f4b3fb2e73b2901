# SPDX-License-Identifier: Apache-2.0
"""What copies cost an NPU, counted on the simulated runtime: `python benchmarks/npu_work.py`.

Calls of the runtime, tasks on the stream, queries of the attributes of addresses; and estimates of the times that they
take, from public figures. A measurement needs an NPU.
"""

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import Bench, Contenders
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "tests"))
sys.path.append(str(Path(__file__).parents[1] / "tests/npu"))
import ascend_sim
from kernel_stand_in import load_stand_in

from llm_datadist_torch._native.warm_up import KernelUse, use_kernel

copy_cache_batch = torch.ops.llm_datadist.copy_cache_batch

TENSORS, BLOCKS, ROW = 160, 2048, 256
BY_KERNEL = "copy_cache_batch, by the kernel"
PLACES = {
    "within the device": ("npu", "npu"),
    "pinned to device": ("npu", "pinned"),
    "device to pinned": ("pinned", "npu"),
    "device to pageable": ("pageable", "npu"),
}

# hixl, benchmarks/performance_en.md, FabricMem on one A3 with blocks of 16 KiB: 2.87 GB/s where the host submits each block,
# 16.1 GB/s where the device does.
CALL_US, TASK_US = 5.7, 1.0
LAUNCH_US = 10.0  # a guess, and without the bytes: that of csrc/npu/device_kernel.cpp
# The runtime queries the addresses of a plain copy so often. In a batch it does so for each copy, within one call.
QUERIES = 6


def counted(call: Callable[[], object]) -> dict[str, Any]:
    """The cost of a call, as cells of a table. Nothing on real NPUs, which do not tell."""
    if not ascend_sim.available:
        return {}
    torch.npu.synchronize()
    ascend_sim.reset()
    begin = time.perf_counter()
    call()
    returned = time.perf_counter() - begin
    torch.npu.synchronize()
    # The copies, the kernel, and the operators of torch_npu, each of which is two calls.
    copies, launches, operators = map(ascend_sim.work, ("aclrtMemcpy", "aclrtLaunchKernel", "aclnn"))
    calls, tasks, queries = map(sum, zip(copies, launches, operators, strict=True))
    return {
        "us until it returns": returned * 1e6,
        "calls": calls,
        "tasks": tasks,
        "queries": queries,
        "queue us, estimated": CALL_US * max(calls, queries / QUERIES),
        "device us, estimated": TASK_US * (tasks - launches.tasks) + LAUNCH_US * launches.tasks,
    }


def tensors_of(place: str, stacked: bool, backward: bool) -> list[Tensor]:
    """A cache: one stacked tensor, or views of one buffer at changing distances."""

    def made(*shape: int) -> Tensor:
        tensor = torch.zeros(shape, dtype=torch.uint8)
        return tensor.npu() if place == "npu" else tensor.pin_memory() if place == "pinned" else tensor

    if stacked:
        return [made(TENSORS, BLOCKS, ROW)]
    size = BLOCKS * ROW
    starts = [i * (size + 512) + 64 * (i * i % 7) for i in range(TENSORS)]
    buffer = made(starts[-1] + size)
    views = [buffer[start : start + size].view(BLOCKS, ROW) for start in starts]
    return views[::-1] if backward else views


def ways(dst: list[Tensor], src: list[Tensor], pairs: list[tuple[int, int]], kind: int) -> Contenders:
    stacked = len(dst) == 1
    to, of = (list(side[0]) if stacked else side for side in (dst, src))
    copies = torch.tensor([(block, source, 0, -1) for block, source in pairs])
    rows = [(d[block], s[source]) for block, source in pairs for d, s in zip(to, of, strict=True)]
    stream, memcpy = torch.npu.current_stream().npu_stream, ascend_sim.library.aclrtMemcpyAsync
    memcpy.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_void_p,
    ]

    def pattern() -> None:
        for d, s in rows:
            assert memcpy(d.data_ptr(), ROW, s.data_ptr(), ROW, kind, stream) == 0

    def strided() -> None:
        for block, source in pairs:
            dst[0][:, block].copy_(src[0][:, source], non_blocking=True)

    calls: Contenders = {
        "copy_cache_batch": lambda: copy_cache_batch(dst, src, copies, batch_dim=int(stacked)),
        "a copy for each row": pattern,
        "_foreach_copy_": lambda: torch._foreach_copy_(*map(list, zip(*rows, strict=True)), non_blocking=True),
    }
    if kind == 3:
        calls[BY_KERNEL] = by_kernel(calls["copy_cache_batch"])
    return calls | ({"a strided copy_ for each block": strided} if stacked else {})


def by_kernel(call: Callable[[], object]) -> Callable[[], None]:
    def called() -> None:
        use_kernel(torch.npu.current_device(), KernelUse.ALWAYS)
        call()
        use_kernel(torch.npu.current_device(), KernelUse.NEVER)

    return called


def within(rows: int) -> dict[str, list[tuple[int, int, int, int]]]:
    """Copies whose order matters, within a cache."""
    return {
        "one row": [(1, 2, 0, -1)],
        f"a chain of {rows}": [(row + 1, row, 0, -1) for row in range(rows)],
        f"a permutation of {rows}": [((5 * row + 1) % rows, row, 0, -1) for row in range(rows)],
    }


@torch.inference_mode()
def main() -> None:
    bench = Bench("What copies of blocks cost")
    if ascend_sim.available:
        load_stand_in(torch.npu.current_device())
    rows = []
    for direction, (to, of) in PLACES.items():
        kind = 3 if to == of else 1 if to == "npu" else 2
        for caches in ("stacked", "scattered"):
            dst, src = (tensors_of(place, caches == "stacked", place is to) for place in (to, of))
            for count in bench.few((64, 1000)):
                shuffled = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(0)).tolist()
                pairs = list(zip(shuffled[:count], shuffled[-count:], strict=True))
                for way, call in ways(dst, src, pairs, kind).items():
                    if way == "copy_cache_batch" or to != "pageable":
                        rows.append({"": direction, "caches": caches, "blocks": count, "way": way} | counted(call))
    bench.table(f"blocks anywhere in {TENSORS} tensors", rows)
    rows = []
    for caches in ("stacked", "scattered"):
        held = tensors_of("npu", caches == "stacked", backward=False)
        for copied, copies in within(64).items():
            table = torch.tensor(copies)

            def call(held: list[Tensor] = held, table: Tensor = table) -> None:
                copy_cache_batch(held, held, table, batch_dim=int(len(held) == 1))

            for way, made in {"copy_cache_batch": call, BY_KERNEL: by_kernel(call)}.items():
                rows.append({"": copied, "caches": caches, "way": way} | counted(made))
    bench.table(f"rows within {TENSORS} tensors", rows)
    bench.end()


if __name__ == "__main__":
    main()
