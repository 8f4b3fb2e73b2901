# SPDX-License-Identifier: Apache-2.0
"""The table for people and the JSON object of a run."""

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .verdict import Result, Verdict

_WIDTH = 120


def as_json(results: Sequence[Result], environment: dict[str, Any]) -> dict[str, Any]:
    """The run as it is written to a file."""
    return {
        "command": "verify",
        "format": 1,
        "environment": environment,
        "counts": {verdict.value: count for verdict, count in _counts(results).items()},
        "results": [asdict(result) for result in results],
    }


def table(results: Sequence[Result]) -> str:
    """A line for each check; below it, what was found if it does not hold, or why it was not tried."""
    name_width = max(len(_name(result)) for result in results)
    lines = [f"{'verdict':<13}  {'check':<{name_width}}  assumption"]
    for result in results:
        lines.append(f"{result.verdict.value:<13}  {_name(result):<{name_width}}  {result.assumes}")
        if result.verdict is not Verdict.HOLDS:
            lines += _indented(result.detail, name_width + 17)
        if result.verdict is Verdict.DOES_NOT_HOLD:
            lines += _indented(f"needed by: {result.used_by}", name_width + 17)
    return "\n".join(lines)


def summary(results: Sequence[Result]) -> str:
    """How many checks had which verdict."""
    return ", ".join(f"{count} {verdict.value}" for verdict, count in _counts(results).items())


def _counts(results: Sequence[Result]) -> dict[Verdict, int]:
    found = Counter(result.verdict for result in results)
    return {verdict: found[verdict] for verdict in Verdict}


def _name(result: Result) -> str:
    return f"{result.device.partition(':')[0]} {result.check}"


def _indented(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)
