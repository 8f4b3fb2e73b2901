# SPDX-License-Identifier: Apache-2.0
"""The chips that CacheManager supports."""

import pytest
import torch
from npu_utils import run_forked
from versions import KNOWS_ASCEND950

from llm_datadist_torch import LLMException, LLMStatusCode
from llm_datadist_torch.datadist.memory import check_served

CODE = """
from llm_datadist_torch import *
from utils import *
on_npu = Cache.from_tensors(cache(2, 4, 8, device="npu"))
on_cpu = Cache.from_tensors(cache(2, 4, 8))
for dst, src in ((on_npu, on_npu), (on_cpu, on_npu), (on_npu, on_cpu), (on_cpu, on_cpu)):
    try:
        CacheManager().copy_cache(dst, src, 1, 2)
        print("copied")
    except LLMException as error:
        print(error)
"""


# torch_npu fills tensors on a 950 with operators that the simulated runtime does not have.
UNFILLED = """
from llm_datadist_torch import *
held = CacheManager().allocate_cache(CacheDesc(2, (4, 8), DataType.DT_FLOAT))
CacheManager().copy_cache(held, held, 1, 2)
print("copied on", held.tensors[0].device)
"""

NPU = torch.device("npu:0")


@pytest.mark.parametrize(
    "soc",
    [
        *("Ascend910B1", "Ascend910B2", "Ascend910B2C", "Ascend910B3", "Ascend910B4", "Ascend910B4-1"),
        *("Ascend910_9391", "Ascend910_9362", "Ascend950PR_9589", "Ascend950DT_9582"),
    ],
)
def test_served(soc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.npu, "get_device_name", lambda device: soc)
    check_served.__wrapped__(NPU)


@pytest.mark.parametrize(
    "soc",
    [
        *("Ascend310P3", "Ascend310B1", "Ascend310", "Ascend910A", "Ascend910ProA", "Ascend910PremiumA", "Ascend910"),
        *("Ascend910B", "Ascend910ProB"),
    ],
)
def test_not_served(soc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.npu, "get_device_name", lambda device: soc)
    with pytest.raises(LLMException, match=rf"npu:0 is an {soc}, which is not served") as refusal:
        check_served.__wrapped__(NPU)
    assert refusal.value.status_code is LLMStatusCode.LLM_FEATURE_NOT_ENABLED


@pytest.mark.simulated
def test_the_runtime_is_asked() -> None:
    done = run_forked(CODE, ASCEND_SIM_SOC="Ascend910_9391")
    assert done.stdout == "copied\n" * 4, done.stdout + done.stderr
    done = run_forked(CODE, ASCEND_SIM_SOC="Ascend310P3")
    text = "npu:0 is an Ascend310P3, which is not served; served are Ascend910B1 to B4-1, Ascend910_93*, Ascend950*"
    assert done.stdout == f"copy_cache: {text} [LLM_FEATURE_NOT_ENABLED]\n" * 3 + "copied\n", done.stdout + done.stderr


@pytest.mark.skipif(not KNOWS_ASCEND950, reason="this torch_npu refuses to start on an Ascend950")
def test_ascend950() -> None:
    assert run_forked(UNFILLED, ASCEND_SIM_SOC="Ascend950PR_9589").stdout == "copied on npu:0\n"
