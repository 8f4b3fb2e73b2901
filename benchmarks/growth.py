# SPDX-License-Identifier: Apache-2.0
"""How the cost of a call grows: draws docs/growth.svg. `python benchmarks/growth.py [--quick]`.

With the number of tensors, with the bytes of a row, and with the number of copies in a batch.
"""

import math
from collections.abc import Callable
from pathlib import Path
from timeit import repeat

import matplotlib.pyplot as plt
import torch
from bench import start
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


def seconds(call: Callable[[], object], rounds: int) -> float:
    """The best of some rounds, each of as many calls as take about 10 ms."""
    number = max(1, round(1e-2 / min(repeat(call, number=1, repeat=3))))
    return min(repeat(call, number=number, repeat=rounds)) / number


def of_tensors(count: int, stacked: bool) -> Callable[[], object]:
    dst, src = ([cache(count, 4, 256)] if stacked else [cache(4, 256) for _ in range(count)] for _ in "ds")
    return lambda: copy_cache(dst, src, 1, 2, batch_dim=int(stacked))


def of_bytes(count: int) -> Callable[[], object]:
    dst, src = [cache(2, count)], [cache(2, count)]
    return lambda: copy_cache(dst, src, 1, 0)


def of_copies(count: int, neighbours: bool) -> Callable[[], object]:
    """Copies within 16 stacked tensors, half of whose blocks are read and the other half written."""
    order = torch.arange(count) if neighbours else torch.randperm(count, generator=torch.Generator().manual_seed(0))
    copies = torch.stack([torch.arange(count) + count, order, torch.zeros_like(order), torch.full_like(order, -1)], 1)
    blocks = [cache(16, 2 * count, 256)]
    return lambda: copy_cache_batch(blocks, blocks, copies, batch_dim=1)


@torch.inference_mode()
def main() -> None:
    args = start("How the cost of a call grows")
    rounds = 3 if args.quick else 15
    panels = {
        "tensors, 256 B each": {
            "list": {count: seconds(of_tensors(count, False), rounds) for count in TENSORS},
            "stacked": {count: seconds(of_tensors(count, True), rounds) for count in TENSORS},
        },
        "bytes of one row": {"one tensor": {count: seconds(of_bytes(count), rounds) for count in BYTES}},
        "copies in a batch, 16 tensors x 256 B": {
            "anywhere": {count: seconds(of_copies(count, False), rounds) for count in COPIES},
            "neighbours": {count: seconds(of_copies(count, True), rounds) for count in COPIES},
        },
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 3.2), layout="constrained", sharey=True)
    for axis, (quantity, series) in zip(axes, panels.items(), strict=True):
        print(quantity)
        for name, points in series.items():
            axis.loglog(points.keys(), [value * 1e6 for value in points.values()], marker=".", label=name)
            print(f"  {name}: " + ", ".join(f"{count}: {value * 1e6:.3g} us" for count, value in points.items()))
            (first, early), (last, late) = list(points.items())[-2:]
            growth = math.log(late / early) / math.log(last / first)
            print(f"    from {first} to {last} as their number to the power of {growth:.2f}")
        axis.set_xlabel(quantity)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    axes[0].set_ylabel("us of a call")
    figure.savefig(PICTURE, metadata={"Date": None})
    print(f"drawn to {PICTURE.relative_to(PICTURE.parents[1])}")


if __name__ == "__main__":
    main()
