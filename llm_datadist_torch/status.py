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


class LLMException(RuntimeError):
    """An error with a status code.

    Args:
        message: What went wrong.
        status_code: The status code, also available as the property of that name.
    """

    def __init__(self, message: str = "", status_code: LLMStatusCode = LLMStatusCode.LLM_FAILED) -> None:
        # Both go to args, so that the exception can be pickled on its way out of a worker process.
        super().__init__(message, status_code)

    @property
    def status_code(self) -> LLMStatusCode:
        """The outcome of the call."""
        code: LLMStatusCode = self.args[1]
        return code

    def __str__(self) -> str:
        return f"{self.args[0]} [{self.status_code.name}]"


class LLMParamInvalid(LLMException, ValueError):
    """LLM_PARAM_INVALID. Also a ValueError: LLM-DataDist's pages promise that for wrong arguments."""

    def __init__(self, message: str = "", status_code: LLMStatusCode = LLMStatusCode.LLM_PARAM_INVALID) -> None:
        super().__init__(message, status_code)
