# SPDX-License-Identifier: Apache-2.0
"""The list of checks. Each tries one assumption of the package on one device."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

_MODULES = ("contents", "limits", "refusals", "commands", "order", "lifetime", "graphs", "manager", "devices")


class DoesNotHold(Exception):
    """The assumption of a check is wrong. The text says what was found instead."""


class NotTried(Exception):
    """A check could not be run. The text says what is missing."""


def expect(condition: bool, found: str) -> None:
    """Raises DoesNotHold with what was found, unless the condition is true."""
    if not condition:
        raise DoesNotHold(found)


@dataclass(frozen=True)
class Check:
    """An assumption and the function that tries it.

    Attributes:
        name: Its name on the command line and in the JSON file, for example ``order.two_streams``.
        assumes: The assumption, as a sentence.
        used_by: What is wrong or slow if the assumption does not hold.
        devices: The types of devices that it is tried on: ``cpu``, ``npu``.
        run: Takes the device. Returns a measurement or an empty text, or raises. Any exception other than NotTried
            means that the assumption does not hold.
    """

    name: str
    assumes: str
    used_by: str
    devices: tuple[str, ...]
    run: Callable[[torch.device], str]


_checks: dict[str, Check] = {}


def check(
    name: str, assumes: str, *, used_by: str, devices: tuple[str, ...] = ("npu",)
) -> Callable[[Callable[[torch.device], str]], Callable[[torch.device], str]]:
    """Adds the decorated function to the list of checks. See ``Check`` for the arguments."""

    def add(run: Callable[[torch.device], str]) -> Callable[[torch.device], str]:
        assert name not in _checks, name
        _checks[name] = Check(name, assumes, used_by, devices, run)
        return run

    return add


def all_checks() -> dict[str, Check]:
    """All checks by name, in the order in which they are run."""
    for module in _MODULES:
        importlib.import_module(f"{__package__}.checks.{module}")
    return _checks
