# SPDX-License-Identifier: Apache-2.0
"""Each test starts and ends with a quiet runtime."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch_npu  # noqa: F401  registers torch.npu

import ascend_sim


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the simulated runtime need its handle."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("simulated")


@pytest.fixture(autouse=True)
def quiet_runtime() -> Iterator[None]:
    torch.npu.synchronize()
    ascend_sim.reset()
    yield
    left = ascend_sim.armed_faults()
    ascend_sim.reset()
    torch.npu.synchronize()
    assert left == 0, "a fault was never met: the test did not test it"
