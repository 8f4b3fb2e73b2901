# SPDX-License-Identifier: Apache-2.0
"""Checks of single arguments. They raise TypeError and ValueError."""

import math
import operator
from typing import Any

from .status import param_invalid

ANY_INT = (-math.inf, math.inf)
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


def as_int(value: Any) -> int | None:
    """A value as a plain int: an int, a NumPy integer, whatever has ``__index__``. None for a bool and everything else."""
    if isinstance(value, bool):
        return None
    try:
        return int(operator.index(value))  # index keeps an int of a subclass as it is
    except TypeError:
        return None


def check_type(name: str, value: Any, *types: type) -> None:
    """Raises TypeError unless the value has one of the types. A bool does not count as an int."""
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        expected = " or ".join(t.__name__ for t in types)
        raise TypeError(f"{name} must be {expected}, got {describe(value)}")


def check_int(name: str, value: Any, limits: tuple[float, float]) -> int:
    """Returns a value as a plain int. Raises TypeError if ``as_int`` has none, ValueError outside the limits (inclusive)."""
    number = as_int(value)
    if number is None:
        raise TypeError(f"{name} must be int, got {describe(value)}")
    low, high = limits
    if not low <= number <= high:
        raise ValueError(f"{name} ({number}) out of range [{low}, {high}]")
    return number


def check_kind(name: str, is_blocks_cache: bool, *, blocks: bool) -> None:
    """Raises LLM_PARAM_INVALID if a cache is a blocks cache and must not be, or the other way round."""
    if is_blocks_cache != blocks:
        kinds = "a contiguous cache", "a blocks cache"
        raise param_invalid(f"{name} must be {kinds[blocks]}, got {kinds[is_blocks_cache]}")
