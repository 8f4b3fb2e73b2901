# SPDX-License-Identifier: Apache-2.0
"""How the cost of a call grows: draws docs/growth.svg. `python benchmarks/growth.py [--quick]`.

With the number of tensors, with the bytes of a row, and with the number of copies in a batch, each beside the Python
loop that one would write instead.
"""

import math
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from time import perf_counter
from timeit import repeat, timeit

import matplotlib.pyplot as plt
import torch
from bench import machine, start
from matplotlib.ticker import EngFormatter
from torch import Tensor

import llm_datadist_torch  # noqa: F401 - registers the ops

copy_cache = torch.ops.llm_datadist.copy_cache
copy_cache_batch = torch.ops.llm_datadist.copy_cache_batch

PICTURE = Path(__file__).parent.parent / "docs" / "growth.svg"
TENSORS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
BYTES = tuple(4**power for power in range(15))  # to 256 MiB
COPIES = (1, 10, 100, 1000, 10_000)


def cache(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


def seconds(calls: dict[str, Callable[[], object]], budget: float) -> dict[str, float]:
    """The best time of a call of each: samples of about 1 ms, taken in turns for `budget` seconds."""
    numbers = {name: max(1, round(1e-3 / min(repeat(call, number=1, repeat=5)))) for name, call in calls.items()}
    best = dict.fromkeys(calls, math.inf)
    end = perf_counter() + budget
    while perf_counter() < end or math.inf in best.values():
        for name, call in calls.items():
            best[name] = min(best[name], timeit(call, number=numbers[name]) / numbers[name])
    return best


def of_tensors(count: int, layout: str) -> Callable[[], object]:
    stacked = layout == "stacked"
    dst, src = ([cache(count, 4, 256)] if stacked else [cache(4, 256) for _ in range(count)] for _ in "ds")

    def loop() -> None:
        for to, of in zip(dst, src, strict=True):
            to[1].copy_(of[2])

    return loop if layout == "Python loop" else lambda: copy_cache(dst, src, 1, 2, batch_dim=int(stacked))


def of_bytes(count: int, way: str) -> Callable[[], object]:
    dst, src = cache(2, count), cache(2, count)
    return (lambda: dst[1].copy_(src[0])) if way == "copy_" else lambda: copy_cache([dst], [src], 1, 0)


def of_copies(count: int, way: str) -> Callable[[], object]:
    """Copies within 16 stacked tensors, half of whose blocks are read and the other half written."""
    generator = torch.Generator().manual_seed(0)
    order = torch.arange(count) if way == "batch, neighbours" else torch.randperm(count, generator=generator)
    copies = torch.stack([torch.arange(count) + count, order, torch.zeros_like(order), torch.full_like(order, -1)], 1)
    blocks, rows = [cache(16, 2 * count, 256)], copies.tolist()

    def loop() -> None:
        for row in rows:
            copy_cache(blocks, blocks, *row, batch_dim=1)

    return loop if way == "a call for each" else lambda: copy_cache_batch(blocks, blocks, copies, batch_dim=1)


# What grows: the points, the ways to copy, what makes a call of the two, and the ticks.
PANELS = {
    "tensors, 256 B each": (TENSORS, ("list", "stacked", "Python loop"), of_tensors, {n: str(n) for n in TENSORS[::3]}),
    "bytes of one row": (
        BYTES,
        ("one tensor", "copy_"),
        of_bytes,
        {1: "1 B", 2**10: "1 KiB", 2**20: "1 MiB", 2**28: "256 MiB"},
    ),
    "copies of 16 x 256 B": (
        COPIES,
        ("batch", "batch, neighbours", "a call for each"),
        of_copies,
        {n: str(n) for n in COPIES},
    ),
}


def draw(panels: dict[str, dict[str, dict[int, float]]], machine: str) -> None:
    """Draws seconds by what grows, way and count. Text stays text, which keeps the file small."""
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "growth", "font.family": "sans-serif", "font.size": 9})
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 3), layout="constrained", sharey=True)
    for axis, (quantity, ways) in zip(axes, panels.items(), strict=True):
        ticks = PANELS[quantity][3]
        for name, points in ways.items():
            axis.loglog(points.keys(), points.values(), label=name)
        axis.set_xticks(list(ticks), ticks.values())
        axis.yaxis.set_major_formatter(EngFormatter("s"))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.set_xlabel(quantity)
        axis.legend(frameon=False)
    figure.suptitle(f"Time of a call: {machine}", fontsize=9)
    svg = StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    PICTURE.write_text(svg.getvalue().replace(" \n", " "))  # a path on one line, not a line for each point
    print(f"drawn to {PICTURE.relative_to(PICTURE.parents[1])}, {PICTURE.stat().st_size / 1024:.0f} KiB")


@torch.inference_mode()
def main() -> None:
    args = start("How the cost of a call grows")
    budget = 0.1 if args.quick else 2.0
    panels: dict[str, dict[str, dict[int, float]]] = {}
    for quantity, (counts, ways, make, _) in PANELS.items():
        print(quantity)
        times = {count: seconds({way: make(count, way) for way in ways}, budget) for count in counts}
        panels[quantity] = {way: {count: times[count][way] for count in counts} for way in ways}
        for way, points in panels[quantity].items():
            print(f"  {way}: " + ", ".join(f"{count}: {value * 1e6:.3g} us" for count, value in points.items()))
            (first, early), (last, late) = list(points.items())[-2:]
            growth = math.log(late / early) / math.log(last / first)
            print(f"    from {first} to {last} as their number to the power of {growth:.2f}")
    draw(panels, machine())


if __name__ == "__main__":
    main()
