# SPDX-License-Identifier: Apache-2.0
"""Checks of single Python arguments: a wrong type is a TypeError, a number outside its C type a ValueError."""

from typing import Any

INT32 = (-(2**31), 2**31 - 1)
INT64 = (-(2**63), 2**63 - 1)
UINT32 = (0, 2**32 - 1)
UINT64 = (0, 2**64 - 1)


def as_int64(value: int) -> int:
    """The int64 with the bits of a uint64, for C++ that takes no other."""
    return value if value <= INT64[1] else value - 2**64


def in_words(value: Any) -> str:
    """A value for a message: its type, and itself where it is a number or a text.

    Nothing else is printed: that could be a list of tensors, and printing an NPU tensor computes and waits for it.
    """
    name = type(value).__name__
    return f"{name}: {value!r}" if isinstance(value, int | float | str) else name


def check_type(name: str, value: Any, *types: type) -> None:
    """Refuses a value of another type. A bool is not taken for an int."""
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        expected = " or ".join(t.__name__ for t in types)
        raise TypeError(f"{name} must be {expected}, got {in_words(value)}")


def check_int(name: str, value: Any, limits: tuple[int, int]) -> None:
    """Refuses what is not an int, or does not fit between the limits, both counted."""
    check_type(name, value, int)
    low, high = limits
    if not low <= value <= high:
        raise ValueError(f"{name} ({value}) out of range [{low}, {high}]")
