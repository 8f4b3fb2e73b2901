# SPDX-License-Identifier: Apache-2.0
"""The tail of one call: `python benchmarks/tail.py`, on an idle machine.

Times single calls of the op, of the op with one intra-op thread, and of torch's own copy of the same bytes: back to back, a
call every 5 ms (threads have gone to sleep in between), and beside as many spinning processes as there are cores.
"""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from time import perf_counter

import torch
from bench import Bench

copy_cache = torch.ops.llm_datadist.copy_cache

KIB, MIB = 2**10, 2**20
SIZES = [64 * KIB, 4 * KIB, 256 * KIB, MIB, 2 * MIB, 4 * MIB, 16 * MIB, 64 * MIB]
TENSORS = 64
PERCENTILES = (50, 99, 99.9)


@contextlib.contextmanager
def neighbors(count: int) -> Iterator[None]:
    """Runs so many processes that never rest."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    time.sleep(0.5 if count else 0)
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def contenders(caches: str, size: int, device: torch.device) -> dict[str, tuple[int, Callable[[], object]]]:
    """Threads and call of each contender."""
    threads = torch.get_num_threads()
    dst, src = (torch.zeros(TENSORS, rows, size // TENSORS, dtype=torch.uint8).to(device) for rows in (4, 2))
    if caches == "stacked":
        op, torchs = (lambda: copy_cache([dst], [src], 2, 1, batch_dim=1)), (lambda: dst[:, 2].copy_(src[:, 1]))
    else:
        into, out_of = ([tensor.clone() for tensor in cache] for cache in (dst, src))
        rows = [t[2] for t in into], [t[1] for t in out_of]
        op, torchs = (lambda: copy_cache(into, out_of, 2, 1)), (lambda: torch._foreach_copy_(*rows))
    return {"op": (threads, op), "op, one thread": (1, op), "torch's copy": (threads, torchs)}


def single_calls(bench: Bench, caches: str, size: int, gap: float) -> dict[str, list[float]]:
    """Seconds of each call until its bytes are there."""
    default, choose = torch.get_num_threads(), random.Random(0)
    candidates = contenders(caches, size, bench.device)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    calls, end = 20 * bench.rounds, perf_counter() + bench.seconds
    while len(times["op"]) < calls and (perf_counter() < end or not times["op"]):
        for name in choose.sample(list(candidates), len(candidates)):
            threads, call = candidates[name]
            torch.set_num_threads(threads)
            time.sleep(gap)
            for _ in range(1 if gap else 10):
                begin = perf_counter()
                call()
                bench.synchronize()
                times[name].append(perf_counter() - begin)
    torch.set_num_threads(default)
    return times


@torch.inference_mode()
def main() -> None:
    bench = Bench("The tail of one call")
    cores = os.cpu_count() or 1
    for title, busy, gap in (
        ("back to back", 0, 0.0),
        ("a call every 5 ms", 0, 5e-3),
        (f"beside {cores} spinning processes", cores, 0.0),
    ):
        rows = []
        with neighbors(busy):
            for caches in ("stacked", "list"):
                for size in bench.few(SIZES):
                    for way, times in single_calls(bench, caches, size, gap).items():
                        at = {f"p{p}, us": sorted(times)[int((len(times) - 1) * p / 100)] * 1e6 for p in PERCENTILES}
                        rows.append({"caches": caches, "bytes in all": size, "way": way, "calls": len(times), **at})
        bench.table(title, rows)
    bench.end()


if __name__ == "__main__":
    main()
