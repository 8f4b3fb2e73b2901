# SPDX-License-Identifier: Apache-2.0
"""The settings of LLMConfig: their checks, and how their options are parsed."""

import functools
import json
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

from .checks import INT32, UINT32, as_int, check_int, check_type
from .log import warn_once
from .status import param_invalid

T = TypeVar("T")
MEMORY_LIMIT = "ge.flowGraphMemMaxSize"


def check_timeout(name: str, value: Any) -> None:
    check_type(name, value, int, str)
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise param_invalid(f"{name} ({value!r}) must be an int or a string of digits")
    check_int(name, int(value), INT32)
    if int(value) <= 0:
        raise param_invalid(f"{name} ({value!r}) must be greater than 0 (milliseconds)")


def check_device_id(name: str, value: Any) -> None:
    check_type(name, value, int, list, tuple)
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise param_invalid(f"{name} ({value}) must name one device")
        value = value[0]
    if check_int(name, value, INT32) < 0:
        raise param_invalid(f"{name} ({value}) must not be negative")


def check_mem_pool(name: str, value: Any) -> None:
    check_type(name, value, str)
    if value == "":  # no pool, as in LLM-DataDist
        return
    pool = check_json(name, value)
    if not isinstance(pool, dict) or "memory_size" not in pool:
        raise param_invalid(f'{name} ({value!r}) must be a JSON object with "memory_size" (bytes)')
    memory_size, page_shift = pool["memory_size"], pool.get("page_shift", 16)
    if type(memory_size) is not int or memory_size <= 0:
        raise param_invalid(f"{name}: memory_size ({memory_size!r}) must be an int greater than 0 (bytes)")
    if type(page_shift) is not int or not 10 <= page_shift < 31:
        raise param_invalid(f"{name}: page_shift ({page_shift!r}) must be an int in [10, 31)")


def check_mem_utilization(name: str, value: Any) -> None:
    check_type(name, value, float)
    if not 0 <= value <= 1:
        raise param_invalid(f"{name} ({value}) must be in [0, 1]")


def check_json(name: str, value: Any) -> Any:
    check_type(name, value, str)
    try:
        return json.loads(value or "{}")
    except json.JSONDecodeError as error:
        raise param_invalid(f"{name} ({value!r}) must be JSON: {error}") from error


def check_ge_options(name: str, value: Any) -> None:
    check_type(name, value, dict)
    for option, text in value.items():
        check_type(f"a key of {name}", option, str)
        check_type(f"{name}[{option!r}]", text, str)
    limit = value.get(MEMORY_LIMIT)
    if limit is not None and not (limit.isascii() and limit.isdigit()):
        raise param_invalid(f"{MEMORY_LIMIT} ({limit!r}) must be a string of digits: the bytes of one memory pool")


def is_a(*types: type) -> Callable[[str, Any], None]:
    return lambda name, value: check_type(name, value, *types)


def is_within(low: int, high: int) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        check_type(name, value, int)
        if not low <= value <= high:
            raise param_invalid(f"{name} ({value}) must be in [{low}, {high}]")

    return check


is_uint32 = functools.partial(check_int, limits=UINT32)


def parse_flag(option: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise param_invalid(f"{option} ({text!r}) must be 0 or 1")
    return text == "1"


def parse_number(option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise param_invalid(f"{option} ({text!r}) must be one number, in digits")
    return int(text)


def parse_fraction(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise param_invalid(f"{option} ({text!r}) must be a number") from None


def parse_text(option: str, text: str) -> str:
    return text


class Setting(Generic[T]):
    """A setting of LLMConfig. Assigning None restores its default.

    Args:
        option: The name of its option.
        default: Its value until one is assigned.
        check: Raises for a value that is not allowed. Called with the name and the value.
        parse: Converts the text of the option to a value. Called with the name of the option and the text.
        local: Whether the setting has an effect here. If not, another value than the default is logged.
    """

    def __init__(
        self,
        option: str,
        default: T,
        check: Callable[[str, Any], object],
        parse: Callable[[str, str], Any] = parse_text,
        *,
        local: bool = False,
    ) -> None:
        self.option, self.default, self.parse, self._check, self.local = option, default, parse, check, local

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, config: None, owner: type) -> "Setting[T]": ...
    @overload
    def __get__(self, config: object, owner: type) -> T: ...
    def __get__(self, config: object, owner: type) -> "Setting[T] | T":
        value: T = self.default if config is None else vars(config).get(self.name, self.default)
        return self if config is None else value

    def __set__(self, config: object, value: T | None) -> None:
        if value is None:
            vars(config).pop(self.name, None)
            return
        number: Any = as_int(value)
        value = value if number is None else number
        self._check(self.name, value)
        if not self.local and value != self.default:
            warn_once(f"{self.name} (option {self.option}) has no effect here")
        vars(config)[self.name] = value
