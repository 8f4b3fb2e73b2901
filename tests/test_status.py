# SPDX-License-Identifier: Apache-2.0
"""Status codes and exceptions."""

import copy
import pickle

import pytest

from llm_datadist_torch import LLMException, LLMRole, LLMStatusCode, Placement
from llm_datadist_torch.datadist.status import llm_error, param_invalid

# In the order of their numbers, 0x5010B000 + 1 and so on, from LLM-DataDist. There are none for 20 to 23.
NAMES = """LLM_WAIT_PROCESS_TIMEOUT LLM_KV_CACHE_NOT_EXIST LLM_REPEAT_REQUEST LLM_REQUEST_ALREADY_COMPLETED
    LLM_PARAM_INVALID LLM_ENGINE_FINALIZED LLM_NOT_YET_LINK LLM_ALREADY_LINK LLM_LINK_FAILED LLM_UNLINK_FAILED
    LLM_NOTIFY_PROMPT_UNLINK_FAILED LLM_CLUSTER_NUM_EXCEED_LIMIT LLM_PROCESSING_LINK LLM_DEVICE_OUT_OF_MEMORY
    LLM_PREFIX_ALREADY_EXIST LLM_PREFIX_NOT_EXIST LLM_SEQ_LENOVERLIMIT LLM_NO_FREE_BLOCK LLM_BLOCKS_OUT_OF_MEMORY
    20 21 22 23 LLM_EXIST_LINK LLM_FEATURE_NOT_ENABLED LLM_TIMEOUT LLM_LINK_BUSY LLM_OUT_OF_MEMORY"""


def test_numbers() -> None:
    expected = {name: 0x5010B000 + k for k, name in enumerate(NAMES.split(), 1) if not name.isdigit()}
    expected |= {"LLM_SUCCESS": 0, "LLM_FAILED": 0xFFFFFFFF, "LLM_UNKNOWN_ERROR": -1}
    expected |= {"LLM_DEVICE_MEM_ERROR": 507053, "LLM_SUSPECT_REMOTE_ERROR": 507057}  # numbers of ACL
    assert {code.name: int(code) for code in LLMStatusCode} == expected


@pytest.mark.parametrize("member", [LLMStatusCode.LLM_TIMEOUT, LLMRole.DECODER, Placement.DEVICE])
def test_enumerations_are_ints_that_print_their_names(member: LLMStatusCode | LLMRole | Placement) -> None:
    name, number = f"{type(member).__name__}.{member.name}", member.value
    assert (str(member), f"{member}", f"{member!s}") == (name, name, name)
    assert f"{member:>40}" == f"{name:>40}"
    assert (f"{member:d}", f"{member:#x}", "%d" % member) == (f"{number:d}", f"{number:#x}", "%d" % number)  # noqa: UP031
    assert member == number and hash(member) == hash(number) and type(int(member)) is int
    assert pickle.loads(pickle.dumps(member)) is member


@pytest.mark.parametrize("args", [(), ("text",), ("one", "two"), (1, None)], ids=repr)
def test_exception_is_a_runtime_error_with_a_code(args: tuple[object, ...]) -> None:
    error = LLMException(*args, status_code=LLMStatusCode.LLM_TIMEOUT)
    assert isinstance(error, RuntimeError) and not isinstance(error, ValueError)
    assert (error.args, str(error)) == (args, str(RuntimeError(*args)))
    assert error.status_code is LLMStatusCode.LLM_TIMEOUT
    assert LLMException(*args).status_code is LLMStatusCode.LLM_SUCCESS


def test_errors_of_this_package_end_in_the_name_of_their_code() -> None:
    error = llm_error(LLMStatusCode.LLM_TIMEOUT, "text")
    assert (type(error), str(error)) == (LLMException, "text [LLM_TIMEOUT]")
    error = param_invalid("text")
    assert isinstance(error, LLMException) and isinstance(error, ValueError)
    assert (error.status_code, str(error)) == (LLMStatusCode.LLM_PARAM_INVALID, "text [LLM_PARAM_INVALID]")


@pytest.mark.parametrize(
    "error", [LLMException("one", 2, status_code=LLMStatusCode.LLM_FAILED), param_invalid("text")], ids=repr
)
def test_copies_and_pickles(error: LLMException) -> None:
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(again), again.args, again.status_code) == (type(error), error.args, error.status_code)
