# SPDX-License-Identifier: Apache-2.0
"""The command line of ``python -m llm_datadist_torch verify``."""

import argparse
import json
from pathlib import Path

from .._native import machine as _machine
from . import report, runner
from .registry import all_checks
from .verdict import Result, Verdict

DESCRIPTION = "Tries what the package relies on, on the devices of this machine. Takes minutes; needs no checkout."
EPILOG = "Exit status: 0 if no assumption is wrong, 1 if one is, 2 for wrong arguments."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("checks", nargs="*", metavar="CHECK", help="checks, or groups such as order; all by default")
    parser.add_argument("--device", help="cpu, or an NPU such as npu:1; by default the CPU and npu:0 if there is one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes versions, driver, chip, host and verdicts")
    parser.add_argument("--list", action="store_true", help="lists the checks with their assumptions, and runs none")
    parser.add_argument(
        "--memory", type=float, metavar="GIB", help="the most memory of a check; all that is free by default"
    )
    parser.add_argument(
        "--deadline", type=float, default=120, metavar="SECONDS", help="of one check; %(default)s by default"
    )


def main(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Runs the checks, prints progress and a table. Returns the exit status."""
    checks = all_checks()
    unknown = [name for name in args.checks if not any(_selects(name, check) for check in checks)]
    if unknown:
        parser.error(f"no check is named {unknown[0]!r}; --list prints all")
    selected = [
        check for check in checks.values() if not args.checks or any(_selects(n, check.name) for n in args.checks)
    ]
    if args.list:
        for check in selected:
            print(f"{check.name} ({', '.join(check.devices)}): {check.assumes}")
        return 0

    print(_machine.summary())
    devices = [args.device] if args.device else _machine.devices()
    plan = {device: [c for c in selected if device.partition(":")[0] in c.devices] for device in devices}
    total = sum(map(len, plan.values()))
    if total == 0:
        parser.error(f"none of these checks is for {', '.join(devices)}")
    results: list[Result] = []
    for device, of_device in plan.items():
        for result in runner.run(of_device, device, deadline=args.deadline, memory=args.memory):
            results.append(result)
            measured = f": {result.detail}" if result.detail else ""
            place = f"[{len(results):>{len(str(total))}}/{total}] {device} {result.check}"
            print(f"{place}: {result.verdict.value} ({result.seconds:.1f} s){measured}", flush=True)

    print(f"\n{report.table(results)}\n\n{report.summary(results)}")
    if args.json is not None:
        args.json.write_text(json.dumps(report.as_json(results, _machine.facts()), indent=2) + "\n")
        print(f"written to {args.json}")
    return 1 if any(result.verdict is Verdict.DOES_NOT_HOLD for result in results) else 0


def _selects(name: str, check: str) -> bool:
    """Whether a name of the command line is a check, or the group in front of its dot."""
    return check == name or check.startswith(f"{name}.")
