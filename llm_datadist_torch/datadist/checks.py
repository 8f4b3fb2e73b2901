# SPDX-License-Identifier: Apache-2.0
"""Checks of single arguments. They raise TypeError and ValueError."""

from typing import Any

from .status import param_invalid

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


def check_kind(name: str, is_blocks_cache: bool, *, blocks: bool) -> None:
    """Raises LLM_PARAM_INVALID if a cache is a blocks cache and must not be, or the other way round."""
    if is_blocks_cache != blocks:
        kinds = "a contiguous cache", "a blocks cache"
        raise param_invalid(f"{name} must be {kinds[blocks]}, got {kinds[is_blocks_cache]}")
