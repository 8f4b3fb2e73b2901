# SPDX-License-Identifier: Apache-2.0
"""What ``python -m llm_datadist_torch`` reports about NPUs."""

import json
from importlib.metadata import version

import pytest
from npu_utils import run_forked
from utils import run

from llm_datadist_torch._native import library

INSTALLED = f"torch_npu {version('torch_npu')}"
BUILT_WITH = json.dumps({name: library.release(version(name)) for name in ("torch", "torch_npu")})
MODULE = ("python", "-m", "llm_datadist_torch")
RUN = "import runpy, sys; sys.argv[1:] = []; runpy.run_module('llm_datadist_torch', run_name='__main__')"


@pytest.mark.simulated
@pytest.mark.parametrize(
    ("soc", "text"),
    [
        ("Ascend910B3", "npu:0 is an Ascend910B3, which is served\n"),
        ("Ascend310P3", "npu:0 is an Ascend310P3, which is not served; served are Ascend910B1 to B4-1, "),
    ],
)
def test_working_installation(soc: str, text: str) -> None:
    report = run_forked(RUN, ASCEND_SIM_SOC=soc).stdout
    for part in (
        f"{library.NPU_LIBRARY}, built with {BUILT_WITH}\n",
        "NPUs: 2\n",
        text,
        "kernels of llm_datadist::copy_cache: CPU, PrivateUse1, ",
        "copy_cache on npu:0: the bytes are right\n",
    ):
        assert part in report


def test_torch_npu_not_imported() -> None:
    """Without autoload, no runtime is needed."""
    report = run(*MODULE, TORCH_DEVICE_BACKEND_AUTOLOAD="0", LD_LIBRARY_PATH=None).stdout
    assert INSTALLED in report
    assert "torch_npu has not been imported: the CPU alone\n" in report
    assert "copy_cache on cpu: the bytes are right\n" in report
    assert str(library.NPU_LIBRARY) not in report


@pytest.mark.simulated
def test_device_fails() -> None:
    """TASK_QUEUE_ENABLE=0: the failing call itself raises."""
    fault = "ascend_sim.fail_call('aclrtMemcpy2dAsync', 507015)\n"
    report = run_forked(fault + RUN, code=1, TASK_QUEUE_ENABLE="0").stdout
    assert "copy_cache on cpu: the bytes are right\nBROKEN: copy_cache on npu:0: RuntimeError: " in report
    assert "failed with code 507015" in report


def test_no_runtime() -> None:
    """The final error, not only an earlier one of the chain, names the library that was not found, and what helps."""
    stderr = run(*MODULE, code=1, LD_LIBRARY_PATH=None).stderr
    error = stderr[stderr.rindex("ImportError: llm_datadist_torch") :]
    for part in (
        "importing torch failed",
        ".so: cannot open shared object file",
        "set_env.sh",
        "TORCH_DEVICE_BACKEND_AUTOLOAD=0",
        "Found: llm_datadist_torch",
        INSTALLED,
    ):
        assert part in error
