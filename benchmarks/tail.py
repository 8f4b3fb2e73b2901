# SPDX-License-Identifier: Apache-2.0
"""The tail of one call on the CPU: `python benchmarks/tail.py [--quick]`. Wants an idle machine.

Times single calls of the op, of the op with one intra-op thread, and of torch's own copy of the same bytes, in shuffled
order: back to back, a call every 5 ms (threads have gone to sleep in between), and beside as many spinning processes as
there are cores.
"""

import argparse
import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from time import perf_counter

import torch
from bench import machine
from tabulate import tabulate
from torch import Tensor

import llm_datadist_torch  # noqa: F401 - registers the op

copy_cache = torch.ops.llm_datadist.copy_cache

KIB, MIB = 2**10, 2**20
SIZES = [4 * KIB, 64 * KIB, 256 * KIB, MIB, 2 * MIB, 4 * MIB, 16 * MIB, 64 * MIB]
TENSORS = 64
PERCENTILES = (50, 99, 99.9)
# Up to this size, the op's p99 beside busy neighbors should be at most 1.2 times that of one thread; above, at most that
# of torch's copy.
ONE_THREAD_UP_TO = MIB


@contextlib.contextmanager
def neighbors(count: int) -> Iterator[None]:
    """Runs so many processes that never rest."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    time.sleep(0.5)
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def contenders(layout: str, size: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """Per contender, its threads and its call."""
    threads = torch.get_num_threads()
    dst, src = (
        torch.full((TENSORS, rows, size // TENSORS), fill, dtype=torch.uint8) for rows, fill in ((4, 0), (2, 1))
    )
    op: Callable[[], object]
    if layout == "stacked":
        op = lambda: copy_cache([dst], [src], 2, 1, batch_dim=1)  # noqa: E731
        torchs = lambda: dst[:, 2].copy_(src[:, 1])  # noqa: E731
    else:
        into, out_of = ([tensor.clone() for tensor in cache] for cache in (dst, src))
        rows: list[list[Tensor]] = [[t[2] for t in into], [t[1] for t in out_of]]
        op = lambda: copy_cache(into, out_of, 2, 1)  # noqa: E731
        torchs = lambda: torch._foreach_copy_(*rows)  # noqa: E731
    return {"op": (threads, op), "one thread": (1, op), "torch": (threads, torchs)}


def percentiles(layout: str, size: int, calls: int, seconds: float, gap: float) -> dict[str, list[float]]:
    """Microseconds of one call at each percentile. Fewer calls if they would take longer than that."""
    default, choose = torch.get_num_threads(), random.Random(0)
    candidates = contenders(layout, size)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    end = perf_counter() + seconds * len(candidates)
    while len(times["op"]) < calls and perf_counter() < end:
        for name in choose.sample(list(candidates), len(candidates)):
            threads, call = candidates[name]
            torch.set_num_threads(threads)
            if gap:
                time.sleep(gap)
            for _ in range(1 if gap else 10):
                begin = perf_counter()
                call()
                times[name].append(perf_counter() - begin)
    torch.set_num_threads(default)
    return {
        name: [1e6 * sorted(taken)[min(len(taken) - 1, int(len(taken) * p / 100))] for p in PERCENTILES]
        for name, taken in times.items()
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer calls: rougher numbers")
    quick = parser.parse_args().quick
    print(f"The tail of one call: microseconds at p50 / p99 / p99.9\n{machine()}, load {os.getloadavg()[0]:.1f}")
    for title, busy, gap in (
        ("back to back", 0, 0.0),
        ("a call every 5 ms", 0, 5e-3),
        (f"beside {os.cpu_count()} spinning processes", os.cpu_count() or 1, 0.0),
    ):
        table = []
        with neighbors(busy):
            for layout in ("stacked", "list"):
                for size in SIZES:
                    taken = percentiles(layout, size, 300 if quick else 1000, 1, gap)
                    bar = 1.2 * taken["one thread"][1] if size <= ONE_THREAD_UP_TO else taken["torch"][1]
                    below = busy and taken["op"][1] > bar
                    amount = f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"
                    cells = [" / ".join(f"{value:,.0f}" for value in values) for values in taken.values()]
                    table.append([layout, amount, *cells, f"above {bar:,.0f}" if below else ""])
        print(f"\n{title}:")
        print(tabulate(table, ["", "in all", "op", "op, one thread", "torch's copy", "p99"], disable_numparse=True))


if __name__ == "__main__":
    main()
