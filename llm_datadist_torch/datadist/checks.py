# SPDX-License-Identifier: Apache-2.0
"""Checks of single arguments (TypeError, ValueError), and the calls that are always refused."""

from typing import Any, NoReturn

from .status import LLMStatusCode, llm_error

INT32 = (-(2**31), 2**31 - 1)
INT64 = (-(2**63), 2**63 - 1)
UINT32 = (0, 2**32 - 1)
UINT64 = (0, 2**64 - 1)


def as_int64(value: int) -> int:
    """The int64 with the bits of a uint64, for C++ functions that take an int64 only."""
    return value if value <= INT64[1] else value - 2**64


def describe(value: Any) -> str:
    """A value for a message: its type, and its value if that is a number or a string.

    Nothing else is printed: the value may be a list of tensors, and printing an NPU tensor computes and synchronises.
    """
    name = type(value).__name__
    return f"{name}: {value!r}" if isinstance(value, int | float | str) else name


def is_int(value: Any) -> bool:
    """Whether the value is an int, also of a subclass, but not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_type(name: str, value: Any, *types: type) -> None:
    """Raises TypeError unless the value has one of the types. A bool does not count as an int."""
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        expected = " or ".join(t.__name__ for t in types)
        raise TypeError(f"{name} must be {expected}, got {describe(value)}")


def check_int(name: str, value: Any, limits: tuple[int, int]) -> None:
    """Raises TypeError for a value that is not an int, ValueError for an int outside the limits (both inclusive)."""
    check_type(name, value, int)
    low, high = limits
    if not low <= value <= high:
        raise ValueError(f"{name} ({value}) out of range [{low}, {high}]")


class UnservedCall:
    """Takes the place of a method of LLM-DataDist that this package cannot serve. Raises LLM_FEATURE_NOT_ENABLED.

    Args:
        why: What the method does, and what to use instead: goes behind its name in the text.
    """

    def __init__(self, why: str) -> None:
        self._why = why

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise llm_error(LLMStatusCode.LLM_FEATURE_NOT_ENABLED, f"{self._name} {self._why}")
