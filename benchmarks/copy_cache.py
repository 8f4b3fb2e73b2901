# SPDX-License-Identifier: Apache-2.0
"""copy_cache on the CPU side by side with what one would write instead: `python benchmarks/copy_cache.py [--quick]`.

Every contender copies the same rows of the same tensors, is checked byte by byte first, and is timed in rounds in which
each has a turn. Times never fail the run; wrong bytes do.

Large copies, the op's and torch's own, share the work among torch's intra-op threads, which wait for one another by
spinning: on cores with other work to do that can take a whole time slice of the scheduler, milliseconds. Run this on an
idle machine; where there is none, --threads 1 or OMP_WAIT_POLICY=passive tell more.
"""

import argparse
import ctypes
import os
import platform
import random
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from timeit import repeat, timeit
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor

import llm_datadist_torch  # noqa: F401 - registers the op

copy_cache = torch.ops.llm_datadist.copy_cache

TENSORS = (1, 2, 64, 160)
ROW_BYTES = {"256 B": 256, "4 KiB": 4 * 1024, "64 KiB": 64 * 1024, "1 MiB": 1024 * 1024}
DST_BATCH, SRC_BATCH = 4, 2
DST_INDEX, SRC_INDEX = 2, 1
DTYPE = torch.float16  # a usual dtype of KV caches, and one that NumPy has too; the bytes are random, NaNs included
FILL = 0x5A5A

# By the tensors they work on. The first of each is what the others are measured against.
LIST = ("op, list", "python loop", "_foreach_copy_", "_foreach_copy_, views ready", "NumPy loop")
STACKED = ("op, stacked", "strided copy")
OPS = {name: names[0] for names in (LIST, STACKED) for name in names}

Contenders = dict[str, Callable[[], object]]
Times = dict[str, list[float]]


class Bar(NamedTuple):
    """A claim: at these points of the grid, the op is at least `ratio` times as fast as the contender."""

    text: str
    contender: str
    tensors: tuple[int, ...]
    rows: tuple[str, ...]
    ratio: float


BARS = (
    Bar("at least 5 times faster than the python loop", "python loop", (160,), ("4 KiB",), 5.0),
    Bar("not slower than torch._foreach_copy_", "_foreach_copy_", TENSORS, ("1 MiB",), 1.0),
)


class Caches:
    """A dst and a src cache in both layouts: separately allocated tensors, and one stacked tensor of the same bytes."""

    def __init__(self, tensors: int, row_bytes: int) -> None:
        def allocate(*shape: int) -> Tensor:
            return torch.full((*shape, row_bytes // DTYPE.itemsize), FILL, dtype=torch.int16).view(DTYPE)

        self.dst_stacked = allocate(tensors, DST_BATCH)
        self.src_stacked = allocate(tensors, SRC_BATCH)
        self.src_stacked.view(torch.int64).random_()
        self.dst = [allocate(DST_BATCH) for _ in range(tensors)]
        self.src = [tensor.clone() for tensor in self.src_stacked]

    def contenders(self) -> Contenders:
        d, s, dst, src, i, j = self.dst, self.src, self.dst_stacked, self.src_stacked, DST_INDEX, SRC_INDEX
        dst_rows, src_rows = [tensor[i] for tensor in d], [tensor[j] for tensor in s]
        dst_arrays, src_arrays = [tensor.numpy() for tensor in d], [tensor.numpy() for tensor in s]

        def python_loop() -> None:
            for to, of in zip(d, s, strict=True):
                to[i].copy_(of[j])

        def numpy_loop() -> None:
            for to, of in zip(dst_arrays, src_arrays, strict=True):
                to[i] = of[j]

        return {
            "op, list": lambda: copy_cache(d, s, i, j),
            "python loop": python_loop,
            # The views are made in the call, as they must be where the indices change from call to call ...
            "_foreach_copy_": lambda: torch._foreach_copy_([to[i] for to in d], [of[j] for of in s]),
            # ... and this is the bound for someone who could keep them.
            "_foreach_copy_, views ready": lambda: torch._foreach_copy_(dst_rows, src_rows),
            "NumPy loop": numpy_loop,
            "op, stacked": lambda: copy_cache([dst], [src], i, j, batch_dim=1),
            "strided copy": lambda: dst[:, i].copy_(src[:, j]),
        }

    def check(self, name: str, call: Callable[[], object]) -> None:
        """Exits unless `call` leaves the copy, the whole copy and nothing but the copy in dst."""
        dst = [t.view(torch.int16).fill_(FILL) for t in (self.dst_stacked if name in STACKED else self.dst)]
        call()
        for index, tensor in enumerate(dst):
            want = torch.full_like(tensor, FILL)
            want[DST_INDEX] = self.src_stacked[index, SRC_INDEX].view(torch.int16)
            if not torch.equal(tensor, want):
                sys.exit(f"{name}: wrong bytes in tensor {index} of {len(dst)}, {tensor[0].nbytes} bytes a row")


def measure(contenders: Contenders, rounds: int, seconds: float) -> Times:
    """Seconds of one call of each contender in each round: at most so many rounds, and no new one after so long."""
    # timeit (perf_counter, no garbage collection) and not torch.utils.benchmark.Timer, which sets one thread and times
    # one statement to its end before the next: here each round takes one sample of every contender, so that drift hits
    # all alike, in shuffled order: who always follows the same one finds what that one left in the cache.
    # A sample is as many calls as take 1 ms, ten thousand times what the clock resolves.
    numbers = {name: max(1, round(3e-3 / min(repeat(call, number=3)))) for name, call in contenders.items()}
    names = list(contenders)
    times: Times = {name: [] for name in names}
    end = perf_counter() + seconds
    shuffle = random.Random(0).sample
    for turn in range(rounds):
        for name in shuffle(names, len(names)):
            times[name].append(timeit(contenders[name], number=numbers[name]) / numbers[name])
        if turn > 0 and perf_counter() > end:  # two rounds at least
            break
    return times


def ratios(times: Times, name: str) -> list[float]:
    """Time of the contender / time of its op, in each round: paired, so that drift between rounds cancels."""
    return [contender / op for contender, op in zip(times[name], times[OPS[name]], strict=True)]


def peak_growth(call: Callable[[], object]) -> str:
    """How far resident memory rose at its peak during `call`: by any allocator, freed again or not."""
    status = Path("/proc/self/status")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or a temporary could hide in memory that is free but still resident
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the high-water mark, is VmRSS again
        before = int(status.read_text().split("VmRSS:")[1].split()[0])
        call()
        peak = int(status.read_text().split("VmHWM:")[1].split()[0])
    except (OSError, AttributeError) as error:  # not Linux with glibc
        return f"not measured: {error}"
    return f"{max(0, peak - before) / 1024:.1f} MiB"


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    return found[1] if found else platform.machine()


@torch.inference_mode()  # what a server runs under, and where views cost the contenders least
def main() -> None:
    parser = argparse.ArgumentParser(description="Times copy_cache and what one would write instead.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: rougher numbers")
    parser.add_argument("--threads", type=int, help="torch's intra-op threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {cpu_model()}")
    print(f"{os.cpu_count()} cores with a load of {os.getloadavg()[0]:.1f} at the start; {DTYPE}")

    points: dict[tuple[int, str], Times] = {}
    for tensors, row in [(tensors, row) for tensors in TENSORS for row in ROW_BYTES]:
        caches = Caches(tensors, ROW_BYTES[row])
        contenders = caches.contenders()
        for name, call in contenders.items():
            caches.check(name, call)
        points[tensors, row] = measure(contenders, *((14, 1.0) if args.quick else (70, 7.0)))

    print("\nThe op: median us of a call. The others: their time / the op's on the same tensors, below 1 if faster.")
    table = []
    for (tensors, row), times in points.items():
        medians = {name: statistics.median(ratios(times, name)) for name in OPS}
        medians.update((name, statistics.median(times[name]) * 1e6) for name in OPS.values())
        table.append([tensors, row, *(f"{median:.2f}" for median in medians.values())])
    headers = ["tensors", "row", *(name.replace(" ", "\n") for name in OPS)]
    print(tabulate(table, headers, disable_numparse=True, colalign=["right"] * len(headers)))

    print(f"\nPeak growth of memory in one call that copies {tensors} x {row} (the kernel counts to about 0.5 MiB):")
    for name in dict.fromkeys(OPS.values()):
        print(f"{peak_growth(contenders[name]):>11}  {name}")
    control = peak_growth(lambda: caches.dst_stacked[:, 0].copy_(caches.src_stacked[:, 0].clone()))
    print(f"{control:>11}  control: a copy through a clone")

    print("\nThe bars: how many times as fast as the contender, median and middle half of the rounds.")
    for bar in BARS:
        for tensors, row in [(tensors, row) for tensors in bar.tensors for row in bar.rows]:
            low, middle, high = statistics.quantiles(ratios(points[tensors, row], bar.contender), method="inclusive")
            mark = "ok" if middle >= bar.ratio else "BELOW"
            print(f"{mark:5}  {tensors:3} x {row:6}  {bar.text}: {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
