# SPDX-License-Identifier: Apache-2.0
"""The device fixture: tests of what an op does run on the device of their environment."""

import importlib.util

import pytest
import torch

import llm_datadist_torch  # noqa: F401  (registers the ops)

# Depends on what is installed, not on what works: where torch_npu is installed but broken, the tests fail.
HAS_NPU = importlib.util.find_spec("torch_npu") is not None
DEVICES = ["npu"] if HAS_NPU else ["cpu"]
# Run in the CPU environment alone: the examples have other tests on the NPU; the rest do not depend on the device.
ONCE = [
    "test_counts.py",
    "manager/test_logging.py",
    "test_examples.py",
    "test_packaging.py",
    "test_plan.py",
    "test_site.py",
    "remote/test_link_life.py",
    "remote/test_links.py",
]
collect_ignore = ONCE if HAS_NPU else ["ascend_sim", "npu"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def fresh_dynamo() -> None:
    torch._dynamo.reset()
