# SPDX-License-Identifier: Apache-2.0
"""A page of plots of a run: for each kind of caches, the time on the device over the bytes of a row."""

from pathlib import Path
from typing import Any


def draw(run: dict[str, Any], file: Path) -> None:
    """Draws a run, as the JSON file has it. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(result["caches"] for result in run["results"]))
    columns = 2
    rows = -(-len(kinds) // columns)
    figure = Figure(figsize=(10, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, kind in zip(axes, kinds, strict=False):
        lines: dict[str, list[tuple[float, float]]] = {}
        for result in run["results"]:
            if result["caches"] == kind and not result["error"]:
                lines.setdefault(result["way"], []).append((result["row_bytes"], result["device_seconds"] * 1e6))
        for way, points in lines.items():
            axis.loglog(*zip(*points, strict=True), label=way, marker=".")
        axis.set_title(kind, fontsize=10)
        axis.set_xlabel("bytes of a row")
        axis.set_ylabel("us on the device")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=7)
    for axis in axes[len(kinds) :]:
        axis.remove()
    environment = run["environment"]
    chip = environment["npus"][0]["chip"] if environment["npus"] else environment["host"]["processor"]
    simulated = ", simulated runtime" if environment["runtime"]["simulated"] else ""
    versions = environment["versions"]
    figure.suptitle(f"{run['device']}: {chip}{simulated}, torch {versions['torch']}", fontsize=10)
    figure.savefig(file)
