# SPDX-License-Identifier: Apache-2.0
"""The kind of enumeration that LLM-DataDist's are."""

from enum import Enum, IntEnum


class NamedIntEnum(IntEnum):
    """An IntEnum that prints its name, in every version of Python: `LLMStatusCode.LLM_TIMEOUT` tells more than a number."""

    __str__ = Enum.__str__
    __format__ = Enum.__format__
