# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: arguments, times of calls taken in turns, tables on the screen and in a JSON file."""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from timeit import timeit
from typing import Any, NamedTuple, TypeVar

import machine
import torch
from tabulate import tabulate

import llm_datadist_torch  # noqa: F401 - registers the ops

Contenders = dict[str, Callable[[], object]]
T = TypeVar("T")


class Times(NamedTuple):
    """Seconds of one call.

    Attributes:
        device: On the device, by events around many calls; on the CPU, the same as ``host``.
        host: Until the call returns.
        total: Of one call on an idle device, until its bytes are there; on the CPU, the same as ``host``.
    """

    device: float
    host: float
    total: float


Samples = dict[str, list[Times]]


class Bench:
    """A run of a benchmark.

    Args:
        description: What is measured: the first line of the output.
        files: Names of further arguments, each a file to write.
    """

    def __init__(self, description: str, *files: str) -> None:
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--device", help="cpu, or an NPU such as npu:1; by default npu:0 if there is one")
        parser.add_argument("--quick", action="store_true", help="fewer rounds: rougher figures")
        parser.add_argument("--tiny", action="store_true", help="one small case, two rounds: only shows that it runs")
        for name in ("json", *files):
            parser.add_argument(f"--{name}", type=Path, metavar="FILE", help="a file to write")
        self.args = parser.parse_args()
        self.rounds, self.seconds = (2, 0.0) if self.args.tiny else (14, 0.7) if self.args.quick else (50, 4.0)
        environment = machine.facts()
        self.device = torch.device(self.args.device or ("npu:0" if environment["npus"] else "cpu"))
        self.run: dict[str, Any] = {"benchmark": Path(sys.argv[0]).stem, "device": str(self.device)}
        self.run |= {"environment": environment, "tables": {}}
        print(f"{description}, on {self.device}\n{machine.summary(environment)}")

    def few(self, values: Sequence[T]) -> Sequence[T]:
        """The values, or with --tiny the first one."""
        return values[:1] if self.args.tiny else values

    def synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize(self.device)

    def times(self, contenders: Contenders) -> Samples:
        """Samples of each contender. They take turns, so that what disturbs the machine disturbs all alike, and in
        shuffled order: who always follows the same one finds what that one left in the cache."""
        numbers = {name: self._number(call) for name, call in contenders.items()}
        samples: Samples = {name: [] for name in contenders}
        end = time.perf_counter() + self.seconds
        shuffle = random.Random(0).sample
        for turn in range(self.rounds):
            for name in shuffle(list(contenders), len(contenders)):
                samples[name].append(self._sample(contenders[name], numbers[name]))
            if turn > 0 and time.perf_counter() > end:  # two rounds at least
                break
        return samples

    def rows(self, samples: Samples, op: str, **labels: object) -> list[dict[str, Any]]:
        """A row for each contender: medians, and how long it takes in relation to the op, paired by rounds."""
        rows = []
        for name, taken in samples.items():
            device, host, total = (statistics.median(part) * 1e6 for part in zip(*taken, strict=True))
            row = {**labels, "way": name, "us": device}
            if self.device.type != "cpu":
                row |= {"us until it returns": host, "us on an idle device": total}
            ratios = [theirs.device / ours.device for theirs, ours in zip(taken, samples[op], strict=True)]
            rows.append({**row, "time / op's": statistics.median(ratios)})
        return rows

    def table(self, title: str, rows: list[dict[str, Any]]) -> None:
        """Prints rows, and keeps them for the JSON file."""
        self.run["tables"][title] = rows
        names = list(dict.fromkeys(name for row in rows for name in row))
        cells = [[shown(row.get(name)) for name in names] for row in rows]
        align = ["right" if isinstance(rows[0].get(name), (int, float)) else "left" for name in names]
        print(f"\n{title}\n" + tabulate(cells, names, disable_numparse=True, colalign=align), flush=True)

    def end(self) -> None:
        if self.args.json is not None:
            self.args.json.write_text(json.dumps(self.run, indent=2) + "\n")
            print(f"written to {self.args.json}")

    def _number(self, call: Callable[[], object]) -> int:
        """The calls of a sample: 3 ms on the CPU; 20 ms on a device, and at most 50, as its queue has an end."""
        duration, most = (3e-3, 10**6) if self.device.type == "cpu" else (20e-3, 50)
        return max(1, min(most, round(duration / min(self._sample(call, 1).total for _ in range(3)))))

    def _sample(self, call: Callable[[], object], number: int) -> Times:
        if self.device.type == "cpu":
            seconds = timeit(call, number=number) / number
            return Times(seconds, seconds, seconds)
        module = torch.get_device_module(self.device)
        self.synchronize()
        begin = time.perf_counter()
        call()
        returned = time.perf_counter() - begin
        self.synchronize()
        total = time.perf_counter() - begin
        before, after = module.Event(enable_timing=True), module.Event(enable_timing=True)
        before.record()
        for _ in range(number):
            call()
        after.record()
        self.synchronize()
        return Times(before.elapsed_time(after) / 1e3 / number, returned, total)


def shown(value: object) -> str:
    """A cell of a table. Numbers have three digits."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
