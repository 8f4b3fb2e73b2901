# SPDX-License-Identifier: Apache-2.0
"""How the time of a call grows: `python benchmarks/growth.py --picture docs/growth.svg`.

With the number of tensors, with the bytes of a row, and with the number of copies in a batch, each beside the loop that
one would write instead.
"""

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import torch
from bench import Bench
from torch import Tensor

copy_cache, copy_cache_batch = torch.ops.llm_datadist.copy_cache, torch.ops.llm_datadist.copy_cache_batch


def cache(device: torch.device, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8).to(device)


def of_tensors(count: int, way: str, device: torch.device) -> Callable[[], object]:
    stacked = way == "stacked"
    shape = (count, 4, 256) if stacked else (4, 256)
    dst, src = ([cache(device, *shape) for _ in range(1 if stacked else count)] for _ in "ds")

    def loop() -> None:
        for to, of in zip(dst, src, strict=True):
            to[1].copy_(of[2])

    return loop if way == "loop of copy_" else lambda: copy_cache(dst, src, 1, 2, batch_dim=int(stacked))


def of_bytes(count: int, way: str, device: torch.device) -> Callable[[], object]:
    dst, src = cache(device, 2, count), cache(device, 2, count)
    return (lambda: dst[1].copy_(src[0])) if way == "copy_" else lambda: copy_cache([dst], [src], 1, 0)


def of_copies(count: int, way: str, device: torch.device) -> Callable[[], object]:
    """Copies within 16 stacked tensors, half of whose blocks are read and the other half written."""
    generator = torch.Generator().manual_seed(0)
    order = torch.arange(count) if way == "batch, neighbours" else torch.randperm(count, generator=generator)
    copies = torch.stack([torch.arange(count) + count, order, torch.zeros_like(order), torch.full_like(order, -1)], 1)
    blocks, rows = [cache(device, 16, 2 * count, 256)], copies.tolist()

    def loop() -> None:
        for row in rows:
            copy_cache(blocks, blocks, *row, batch_dim=1)

    return loop if way == "a call for each" else lambda: copy_cache_batch(blocks, blocks, copies, batch_dim=1)


# What grows: the ways to copy, what makes a call of one, and the points.
PANELS = {
    "tensors, 256 B each": (
        ("list", "stacked", "loop of copy_"),
        of_tensors,
        (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
    ),
    "bytes of one row": (("one tensor", "copy_"), of_bytes, tuple(4**power for power in range(15))),  # to 256 MiB
    "copies of 16 x 256 B": (("batch", "batch, neighbours", "a call for each"), of_copies, (1, 10, 100, 1000, 10_000)),
}


def draw(picture: Path, bench: Bench) -> None:
    """Draws the tables of a run. Text stays text, which keeps the file small."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "growth", "font.family": "sans-serif", "font.size": 9})
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10, 3), layout="constrained", sharey=True)
    for axis, (quantity, (ways, _, _)) in zip(axes, PANELS.items(), strict=True):
        for way in ways:
            points = [(row[quantity], row["us"] / 1e6) for row in bench.run["tables"][quantity] if row["way"] == way]
            axis.loglog(*zip(*points, strict=True), label=way)
        axis.xaxis.set_major_formatter(EngFormatter())
        axis.yaxis.set_major_formatter(EngFormatter("s"))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.set_xlabel(quantity)
        axis.legend(frameon=False)
    host, versions = (bench.run["environment"][part] for part in ("host", "versions"))
    words = f"torch {versions['torch']}, {host['processor']}, {host['cores']} cores"
    figure.suptitle(f"Time of a call on {bench.device}: {words}", fontsize=9)
    svg = StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    picture.write_text(svg.getvalue().replace(" \n", " "))  # a path on one line, not a line for each point
    print(f"drawn to {picture}")


@torch.inference_mode()
def main() -> None:
    bench = Bench("How the time of a call grows", "picture")
    for quantity, (ways, make, counts) in PANELS.items():
        rows = []
        for count in counts[:2] if bench.args.tiny else counts:
            times = bench.times({way: make(count, way, bench.device) for way in ways})
            rows += bench.rows(times, ways[0], **{quantity: count})
        bench.table(quantity, rows)
    if bench.args.picture:
        draw(bench.args.picture, bench)
    bench.end()


if __name__ == "__main__":
    main()
