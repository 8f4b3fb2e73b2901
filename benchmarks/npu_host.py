# SPDX-License-Identifier: Apache-2.0
"""What a call costs the host on an NPU: commands, and time, on the simulated runtime. Run with `make bench`.

Three ways to copy a row of 160 tensors: the op, a loop of tensor.copy_, and LLM-DataDist's pattern (yardstick_npu.cpp).
The simulated runtime carries commands out with memcpy in a thread per stream, so these times say nothing about an NPU:
they compare what the host does to get there.
"""

import os
import statistics
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import torch
from bench import start
from tabulate import tabulate
from torch import Tensor
from torch.utils import cpp_extension

from llm_datadist_torch import Cache, CacheManager, LLMConfig

HERE = Path(__file__).parent
SIMULATED = HERE.parent / "tests" / "ascend_sim"
sys.path.insert(0, str(SIMULATED.parent))
import ascend_sim  # noqa: E402

TENSORS, BATCH, ROW = 160, 4, 4096
DST_INDEX, SRC_INDEX = 2, 1


def buffer(rows: int, **where: object) -> Tensor:
    return torch.empty(rows, ROW, dtype=torch.uint8, **where)


def of_one_buffer(**where: object) -> list[Tensor]:
    return list(buffer(TENSORS * BATCH, **where).view(TENSORS, BATCH, ROW))


def scattered(*, backward: bool, **where: object) -> list[Tensor]:
    """Views with gaps of many sizes between them; a list of these and one that goes backward have no common stride."""
    whole = buffer(TENSORS * (BATCH + 7), **where)
    starts = [i * BATCH + sum(range(i % 5)) // 4 + i * 2 for i in range(TENSORS)]
    views = [whole[start : start + BATCH] for start in starts]
    return views[::-1] if backward else views


def layouts() -> dict[str, tuple[list[Tensor], list[Tensor], int]]:
    """dst, src and batch_dim."""
    device, pinned = {"device": "npu"}, {"pin_memory": True}
    stacks = [buffer(TENSORS * BATCH, **device).view(TENSORS, BATCH, ROW) for _ in "ds"]
    return {
        "stacked": ([stacks[0]], [stacks[1]], 1),
        "views of one buffer": (of_one_buffer(**device), of_one_buffer(**device), 0),
        "scattered": (scattered(backward=False, **device), scattered(backward=True, **device), 0),
        "pinned host to device": (scattered(backward=False, **device), scattered(backward=True, **pinned), 0),
    }


def separate_tensors(dst: list[Tensor], src: list[Tensor], batch_dim: int) -> list[list[Tensor]]:
    return [list(tensors[0]) if batch_dim else tensors for tensors in (dst, src)]


def check(name: str, call: Callable[[], object], dst: list[Tensor], src: list[Tensor], batch_dim: int) -> None:
    """Exits unless the rows are there afterwards."""
    pairs = list(zip(*separate_tensors(dst, src, batch_dim), strict=True))
    for to, of in pairs:
        to.copy_(torch.zeros(to.shape, dtype=to.dtype))
        of.copy_(torch.randint(1, 256, of.shape, dtype=of.dtype))
    call()
    torch.npu.synchronize()
    for index, (to, of) in enumerate(pairs):
        if not torch.equal(to.cpu()[DST_INDEX], of.cpu()[SRC_INDEX]):
            sys.exit(f"{name}: wrong bytes in tensor {index}")


def contenders(dst: list[Tensor], src: list[Tensor], batch_dim: int) -> dict[str, Callable[[], object]]:
    separate = separate_tensors(dst, src, batch_dim)
    addresses = [
        [tensor[row].data_ptr() for tensor in tensors]
        for tensors, row in zip(separate, (DST_INDEX, SRC_INDEX), strict=True)
    ]
    from_host = src[0].is_cpu
    manager = CacheManager(LLMConfig(sync_kv_timeout=60_000))
    caches = [Cache.from_tensors(tensors[0] if batch_dim else tensors, batch_dim=batch_dim) for tensors in (dst, src)]

    def loop() -> None:
        for to, of in zip(*separate, strict=True):
            to[DST_INDEX].copy_(of[SRC_INDEX], non_blocking=True)

    def pattern() -> None:
        torch.ops.yardstick_npu.blocking_copies(*addresses, ROW, from_host)

    return {
        "op": lambda: torch.ops.llm_datadist.copy_cache(dst, src, DST_INDEX, SRC_INDEX, batch_dim=batch_dim),
        "loop of copy_": loop,
        "CacheManager": lambda: manager.copy_cache(*caches, DST_INDEX, SRC_INDEX),
        "LLM-DataDist's pattern": pattern,
    }


def copy_commands(call: Callable[[], object]) -> int:
    torch.npu.synchronize()
    ascend_sim.reset()
    call()
    torch.npu.synchronize()
    return sum(count for name, count in ascend_sim.call_counts().items() if name.startswith("aclrtMemcpy"))


def host_and_total_us(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Until the call returns, and until the bytes are there: medians. Each call finds the queue empty."""
    host, total = [], []
    for _ in range(repeats):
        torch.npu.synchronize()
        begin = perf_counter()
        call()
        host.append(perf_counter() - begin)
        torch.npu.synchronize()
        total.append(perf_counter() - begin)
    return statistics.median(host) * 1e6, statistics.median(total) * 1e6


def main() -> None:
    args = start(f"Host cost on the simulated runtime: one row of {TENSORS} tensors, {ROW} bytes each")
    cpp_extension.load(
        name="yardstick_npu",
        sources=[str(HERE / "yardstick_npu.cpp")],
        extra_cflags=["-O3", "-std=c++20"],
        extra_include_paths=[str(Path(find_spec("torch_npu").origin).parent / "include")],
        extra_ldflags=[f"-L{SIMULATED / 'build'}", "-lascendcl"],
        is_python_module=False,
    )
    table = []
    for layout, caches in layouts().items():
        for name, call in contenders(*caches).items():
            check(name, call, *caches)
            commands = copy_commands(call)
            host, total = host_and_total_us(call, 30 if args.quick else 200)
            table.append([layout, name, commands, f"{host:.0f}", f"{total:.0f}"])
    headers = ["caches", "way", "copy commands", "us until it returns", "us until the bytes are there"]
    print(tabulate(table, headers))


if __name__ == "__main__":
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # ninja is where python is
    main()
