# SPDX-License-Identifier: Apache-2.0
"""The kind of enumeration that LLM-DataDist's are."""

from enum import Enum, IntEnum


class NamedIntEnum(IntEnum):
    """An IntEnum that prints its name, in every version of Python: `LLMStatusCode.LLM_TIMEOUT` and not a number."""

    __str__ = Enum.__str__

    def __format__(self, spec: str) -> str:
        """The name, unless the spec is one for integers, as in ``f"{code:#x}"``."""
        return format(int(self) if spec.endswith(tuple("bcdnoxX")) else str(self), spec)
