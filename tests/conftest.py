# SPDX-License-Identifier: Apache-2.0
"""Fixtures. Every test of what the op does runs on each device that the environment is made for."""

import importlib.util

import llm_datadist_torch  # noqa: F401  (registers the ops)
import pytest

# Decided by what is installed, not by what works: where torch_npu is installed but broken, the tests fail.
DEVICES = ["cpu", "npu"] if importlib.util.find_spec("torch_npu") else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param
