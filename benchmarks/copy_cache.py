# SPDX-License-Identifier: Apache-2.0
"""copy_cache on the CPU side by side with what one would write instead: `python benchmarks/copy_cache.py [--quick]`.

Every contender copies the same rows of the same tensors, is checked byte by byte first, and is timed in rounds in which
each has a turn. Times never fail the run; wrong bytes do.

Large copies, the op's and torch's own, share the work among torch's intra-op threads, which wait for one another by
spinning: on cores with other work to do that can take a whole time slice of the scheduler, milliseconds. Run this on an
idle machine; where there is none, --threads 1 or OMP_WAIT_POLICY=passive tell more.
"""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from bench import effort, load_yardsticks, mark, median, ratio, start
from tabulate import tabulate
from torch import Tensor

from llm_datadist_torch.bench.timing import Contenders, in_turns

copy_cache = torch.ops.llm_datadist.copy_cache

KIB, MIB = 2**10, 2**20
SMALL = [(tensors, row) for tensors in (1, 2, 64, 160) for row in (256, 4 * KIB, 64 * KIB, MIB)]
LARGE = [(1, MIB), (1, 16 * MIB), (1, 160 * MIB), (2, 80 * MIB), (16, 256 * KIB), (160, 64 * KIB), (160, MIB)]
DST_BATCH, SRC_BATCH = 4, 2
DST_INDEX, SRC_INDEX = 2, 1
DTYPE = torch.float16  # a usual dtype of KV caches, and one that NumPy has too; the bytes are random, NaNs included
FILL = 0x5A5A

# By the layout they work on. The first of each is what the others are measured against.
LIST = ("op, list", "python loop", "_foreach_copy_", "_foreach_copy_, views ready", "NumPy loop", "empty op, list")
STACKED = ("op, stacked", "strided copy", "empty op, stacked")
DO_NOTHING = ("empty op, list", "empty op, stacked")


def bar(contender: str, tensors: int, row: int) -> float:
    """How many times as fast as the contender the op is meant to be at a point of the grid."""
    if contender == "python loop" and tensors == 160 and row <= 4 * KIB:
        return 8
    if contender == "NumPy loop" and (tensors != 160 or row > 4 * KIB):
        return 0
    return 0 if contender in ("_foreach_copy_, views ready", *DO_NOTHING) else 1


def bytes_as_text(count: int) -> str:
    unit, size = next((unit, size) for unit, size in (("MiB", MIB), ("KiB", KIB), ("B", 1)) if count >= size)
    return f"{count / size:g} {unit}"


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
            "empty op, list": lambda: torch.ops.yardstick.nothing(d, s, i, j),
            "op, stacked": lambda: copy_cache([dst], [src], i, j, batch_dim=1),
            "strided copy": lambda: dst[:, i].copy_(src[:, j]),
            "empty op, stacked": lambda: torch.ops.yardstick.nothing([dst], [src], i, j, batch_dim=1),
        }

    def large_contenders(self) -> Contenders:
        dst, src, i, j = self.dst_stacked, self.src_stacked, DST_INDEX, SRC_INDEX
        return {
            "op, stacked": lambda: copy_cache([dst], [src], i, j, batch_dim=1),
            "memcpy": lambda: torch.ops.yardstick.copy_rows(dst, src, i, j, False),
            "streaming stores": lambda: torch.ops.yardstick.copy_rows(dst, src, i, j, True),
            "strided copy": lambda: dst[:, i].copy_(src[:, j]),
        }

    def check(self, contenders: Contenders) -> None:
        """Exits unless each leaves the copy, the whole copy and nothing but the copy in dst."""
        for name, call in contenders.items():
            if name in DO_NOTHING:
                continue
            dst = [t.view(torch.int16).fill_(FILL) for t in (self.dst if name in LIST else self.dst_stacked)]
            call()
            for index, tensor in enumerate(dst):
                want = torch.full_like(tensor, FILL)
                want[DST_INDEX] = self.src_stacked[index, SRC_INDEX].view(torch.int16)
                if not torch.equal(tensor, want):
                    sys.exit(f"{name}: wrong bytes in tensor {index} of {len(dst)}, {tensor[0].nbytes} bytes a row")


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


@torch.inference_mode()  # what a server runs under, and where views cost the contenders least
def main() -> None:
    args = start("copy_cache, and what one would write instead")
    load_yardsticks()

    table = []
    for tensors, row in SMALL:
        caches = Caches(tensors, row)
        contenders = caches.contenders()
        caches.check(contenders)
        times = in_turns(contenders, *effort(args))
        line = [tensors, bytes_as_text(row)]
        for op, *others in (LIST, STACKED):
            line.append(f"{median(times, op) * 1e6:.2f}")
            line += [mark(ratio(times, op, name), bar(name, tensors, row)) for name in others]
        table.append(line)
    headers = ["tensors", "row", *(name.replace(" ", "\n") for name in (*LIST, *STACKED))]
    print("The op: median us of a call. The others: their time / the op's on the same tensors, below 1 if faster. An")
    print("empty op has the schema of copy_cache and does nothing: what torch takes to call any such op.")
    print(tabulate(table, headers, disable_numparse=True, colalign=["right"] * len(headers)))

    print(f"\nPeak growth of memory in one call that copies {tensors} x {bytes_as_text(row)} (counted to 0.5 MiB):")
    for name in ("op, list", "op, stacked"):
        print(f"{peak_growth(contenders[name]):>11}  {name}")
    control = peak_growth(lambda: caches.dst_stacked[:, 0].copy_(caches.src_stacked[:, 0].clone()))
    print(f"{control:>11}  control: a copy through a clone")

    table = []
    for tensors, row in LARGE:
        caches = Caches(tensors, row)
        contenders = caches.large_contenders()
        caches.check(contenders)
        times = in_turns(contenders, *effort(args))
        copied = 2 * tensors * row / median(times, "op, stacked") / 1e9
        best = min(("memcpy", "streaming stores"), key=lambda name: median(times, name))
        line = [tensors, bytes_as_text(row), f"{median(times, 'op, stacked') * 1e3:.3f}", f"{copied:.1f}"]
        for name in ("memcpy", "streaming stores", "strided copy"):
            limit = 1 if name == "strided copy" else 0.9 if name == best else 0
            line.append(mark(ratio(times, "op, stacked", name), limit))
        table.append(line)
    print("\nLarge copies, stacked: ms and GB/s (read and written) of the op, and the others' time / the op's. The")
    print("yardsticks are C++ that checks nothing, split by bytes among all threads; the better one is the bar.")
    headers = ["tensors", "row", "op, ms", "GB/s", "memcpy", "streaming\nstores", "strided\ncopy"]
    print(tabulate(table, headers, disable_numparse=True, colalign=["right"] * len(headers)))


if __name__ == "__main__":
    main()
