# SPDX-License-Identifier: Apache-2.0
"""The verdicts, and the result of one check on one device."""

from dataclasses import dataclass
from enum import Enum


class Verdict(str, Enum):
    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    NOT_TRIED = "not tried"


@dataclass(frozen=True)
class Result:
    """What became of a check.

    Attributes:
        check: Its name.
        device: The device that it was tried on.
        assumes: The assumption.
        used_by: What is wrong or slow if the assumption does not hold.
        verdict: Whether it holds.
        detail: What was measured or found, or why it was not tried.
        seconds: How long it took.
    """

    check: str
    device: str
    assumes: str
    used_by: str
    verdict: Verdict
    detail: str
    seconds: float
