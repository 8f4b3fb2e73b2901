# SPDX-License-Identifier: Apache-2.0
"""The status codes and exceptions of LLM-DataDist, with its names and numbers."""

from enum import Enum, IntEnum


class NamedIntEnum(IntEnum):
    """An IntEnum that prints its name in every version of Python: `LLMStatusCode.LLM_TIMEOUT`, not a number.

    All enumerations of LLM-DataDist with meaningful numbers are of this kind.
    """

    __str__ = Enum.__str__

    def __format__(self, spec: str) -> str:
        """The name, unless the spec is one for integers, as in ``f"{code:#x}"``."""
        return format(int(self) if spec.endswith(tuple("bcdnoxX")) else str(self), spec)


class LLMStatusCode(NamedIntEnum):
    """The outcome of a call. Names and numbers are those of LLM-DataDist."""

    LLM_SUCCESS = 0
    LLM_FAILED = 0xFFFFFFFF
    LLM_UNKNOWN_ERROR = -1
    LLM_WAIT_PROCESS_TIMEOUT = 0x5010B001
    LLM_KV_CACHE_NOT_EXIST = 0x5010B002
    LLM_REPEAT_REQUEST = 0x5010B003
    LLM_REQUEST_ALREADY_COMPLETED = 0x5010B004
    LLM_PARAM_INVALID = 0x5010B005
    LLM_ENGINE_FINALIZED = 0x5010B006
    LLM_NOT_YET_LINK = 0x5010B007
    LLM_ALREADY_LINK = 0x5010B008
    LLM_LINK_FAILED = 0x5010B009
    LLM_UNLINK_FAILED = 0x5010B00A
    LLM_NOTIFY_PROMPT_UNLINK_FAILED = 0x5010B00B
    LLM_CLUSTER_NUM_EXCEED_LIMIT = 0x5010B00C
    LLM_PROCESSING_LINK = 0x5010B00D
    LLM_DEVICE_OUT_OF_MEMORY = 0x5010B00E
    LLM_PREFIX_ALREADY_EXIST = 0x5010B00F
    LLM_PREFIX_NOT_EXIST = 0x5010B010
    LLM_SEQ_LENOVERLIMIT = 0x5010B011
    LLM_NO_FREE_BLOCK = 0x5010B012
    LLM_BLOCKS_OUT_OF_MEMORY = 0x5010B013
    LLM_EXIST_LINK = 0x5010B018
    LLM_FEATURE_NOT_ENABLED = 0x5010B019
    LLM_TIMEOUT = 0x5010B01A
    LLM_LINK_BUSY = 0x5010B01B
    LLM_OUT_OF_MEMORY = 0x5010B01C
    LLM_DEVICE_MEM_ERROR = 507053  # this and the next are numbers of ACL
    LLM_SUSPECT_REMOTE_ERROR = 507057


class LLMException(RuntimeError):
    """An error with a status code.

    The text of an error that this package raises ends in the name of its code, as in ``[LLM_TIMEOUT]``.

    Args:
        args: As for RuntimeError.
        status_code: The status code, also available as the property of that name.
    """

    def __init__(self, *args: object, status_code: LLMStatusCode = LLMStatusCode.LLM_SUCCESS) -> None:
        super().__init__(*args)
        self._status_code = status_code

    @property
    def status_code(self) -> LLMStatusCode:
        """The outcome of the call."""
        return self._status_code


class Status:
    """A status code as an object. No call of this package returns one.

    Args:
        status: The code.
    """

    def __init__(self, status: LLMStatusCode) -> None:
        self.status_code = status

    def is_ok(self) -> bool:
        """Whether the code is LLM_SUCCESS."""
        return self.status_code == LLMStatusCode.LLM_SUCCESS


class LLMParamInvalid(LLMException, ValueError):
    """LLM_PARAM_INVALID. Also a ValueError: LLM-DataDist's pages promise that for wrong arguments."""


def llm_error(status_code: LLMStatusCode, message: str) -> LLMException:
    """An error of this package."""
    kind = LLMParamInvalid if status_code is LLMStatusCode.LLM_PARAM_INVALID else LLMException
    return kind(f"{message} [{status_code.name}]", status_code=status_code)


def message_of(error: LLMException) -> str:
    """The message that ``llm_error`` was given."""
    return str(error).removesuffix(f" [{error.status_code.name}]")


def param_invalid(message: str) -> LLMException:
    """An LLM_PARAM_INVALID of this package."""
    return llm_error(LLMStatusCode.LLM_PARAM_INVALID, message)
