# SPDX-License-Identifier: Apache-2.0
"""A fixture for every test on the runtime: import it in a conftest.py."""

from collections.abc import Iterator

import pytest
import torch
import torch_npu  # noqa: F401  registers torch.npu

import ascend_sim


@pytest.fixture(autouse=True)
def quiet_runtime() -> Iterator[None]:
    """Each test starts and ends on an idle runtime; on the simulated one, also without faults."""
    torch.npu.synchronize()
    if not ascend_sim.available:
        yield
        torch.npu.synchronize()
        return
    ascend_sim.reset()
    yield
    left = ascend_sim.armed_faults()
    ascend_sim.reset()
    torch.npu.synchronize()
    assert left == 0, "an injected fault was not triggered: the test did not test it"
