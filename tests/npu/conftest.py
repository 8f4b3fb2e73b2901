# SPDX-License-Identifier: Apache-2.0
"""Each test starts and ends on an idle runtime; on the simulated one, also without faults."""

from collections.abc import Iterator

import ascend_sim
import pytest
import torch


@pytest.fixture(autouse=True)
def quiet_runtime() -> Iterator[None]:
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
