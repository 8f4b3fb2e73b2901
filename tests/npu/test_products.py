# SPDX-License-Identifier: Apache-2.0
"""Which chips CacheManager serves."""

import pytest
from npu_utils import run_python

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


@pytest.mark.parametrize("soc", ["Ascend910B1", "Ascend910B3", "Ascend910B4", "Ascend910_9391"])
def test_served(soc: str) -> None:
    done = run_python(CODE, ASCEND_SIM_SOC=soc)
    assert done.stdout == "copied\n" * 4, done.stdout + done.stderr


@pytest.mark.parametrize("soc", ["Ascend310P3", "Ascend310B1", "Ascend910A", "Ascend910ProA", "Ascend910PremiumA"])
def test_not_served(soc: str) -> None:
    done = run_python(CODE, ASCEND_SIM_SOC=soc)
    text = f"npu:0 is an {soc}, which is not served; served are Ascend910B* and Ascend910_93* [LLM_FEATURE_NOT_ENABLED]\n"
    assert done.stdout == text * 3 + "copied\n", done.stdout + done.stderr
