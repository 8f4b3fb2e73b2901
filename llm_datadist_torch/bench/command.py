# SPDX-License-Identifier: Apache-2.0
"""The command line of ``python -m llm_datadist_torch bench``."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .._native import counters as _commands
from .._native import machine as _machine
from .cases import OP, TENSORS, Case, cases
from .plot import draw
from .timing import measure

DESCRIPTION = "Times the ops beside what one would write instead, on the device of this machine. Takes minutes."
_ROWS = (256, 4096, 65536, 524288)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, or an NPU such as npu:1; by default npu:0 if there is one")
    parser.add_argument("--quick", action="store_true", help="two row sizes and few rounds: rough figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes versions, driver, chip, host and figures")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draws a page of plots (svg, pdf, png); needs matplotlib"
    )
    parser.add_argument(
        "--load", type=Path, metavar="FILE", help="takes the figures from a JSON file, and times nothing"
    )


@torch.inference_mode()
def main(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Times all cases, prints a table. Returns the exit status: 1 if a way copied wrong bytes or failed."""
    if args.load is not None:
        run: dict[str, Any] = json.loads(args.load.read_text())
    else:
        device = torch.device(args.device or _machine.devices()[-1])
        print(
            f"{_machine.summary()}\n{TENSORS} tensors on {device}. Times in us; GB/s are bytes copied by time on the device;"
        )
        print("the device's copy moves as many bytes in one piece.\n")
        results = []
        print(f"{'caches':<20} {'row':>7}  {'way':<28} {'device':>9} {'host':>9} {'total':>9} {'GB/s':>8}  commands")
        rows, effort = (_ROWS[:2], (3, 0.1)) if args.quick else (_ROWS, (30, 3.0))
        for case in cases(device, rows):
            results += _results(case, device, *effort)
        run = {
            "command": "bench",
            "format": 1,
            "environment": _machine.facts(),
            "device": str(device),
            "results": results,
        }
    if args.json is not None:
        args.json.write_text(json.dumps(run, indent=2) + "\n")
        print(f"written to {args.json}")
    if args.plot is not None:
        try:
            draw(run, args.plot)
        except ModuleNotFoundError as error:
            parser.error(f"--plot needs matplotlib: {error}")
        print(f"drawn to {args.plot}")
    return 1 if any(result["error"] for result in run["results"]) else 0


def _results(case: Case, device: torch.device, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Checks and times the ways of a case, and prints a line for each."""
    errors = {name: _error(case, way) for name, way in case.ways.items()}
    ways = {name: way for name, way in case.ways.items() if not errors[name]}
    commands = _commands_of(case.ways[OP], device) if device.type == "npu" and not errors[OP] else None
    errors["the device's copy"] = ""
    times = measure({**ways, "the device's copy": case.device_copy}, device, rounds, seconds)
    results = []
    for name, error in errors.items():
        result: dict[str, Any] = {"caches": case.name, "row_bytes": case.row, "copied_bytes": case.copied, "way": name}
        result |= {"error": error, "commands": commands if name == OP else None}
        line = f"{case.name:<20} {case.row:>7}  {name:<28} "
        if error:
            line += error
        else:
            taken = times[name]
            gigabytes = case.copied / taken.device / 1e9
            result |= {f"{part}_seconds": value for part, value in taken._asdict().items()} | {
                "gb_per_second": gigabytes
            }
            line += " ".join(f"{value * 1e6:9.1f}" for value in taken) + f" {gigabytes:8.2f}"
            line += f"  {commands}" if name == OP and commands is not None else ""
        print(line, flush=True)
        results.append(result)
    return results


def _error(case: Case, way: Callable[[], object]) -> str:
    """Runs a way once. Returns what is wrong with it, or an empty text."""
    case.clear()
    expected = case.expected()
    try:
        way()
        if hasattr(torch, "npu"):
            torch.get_device_module("npu").synchronize()
        right = all(torch.equal(tensor.cpu(), wanted) for tensor, wanted in zip(case.dst, expected, strict=True))
    except Exception as error:  # a way that the device lacks is a line of the table
        return f"{type(error).__name__}: {error}"
    return "" if right else "wrong bytes"


def _commands_of(way: Callable[[], object], device: torch.device) -> int:
    """The number of commands of one call."""
    npu = torch.get_device_module(device)
    npu.synchronize(device)
    before = _commands.issued()
    way()
    npu.synchronize(device)
    return sum(_commands.issued() - before)
