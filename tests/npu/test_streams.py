# SPDX-License-Identifier: Apache-2.0
"""Streams: the op does not wait, and runs on the current stream of the device of its tensors.

test_busy_streams.py has calls behind other work, test_order.py the order among kernels. All three run in one mode of
torch_npu's task queue here, and test_queue_modes.py runs them in the others.
"""

import ascend_sim
import pytest
import torch
from npu_utils import needs_two_npus
from utils import assert_same_bytes, cache, copy_cache, copy_cache_batch, nothing_written, reference_copy


@pytest.mark.simulated
@pytest.mark.parametrize("on_host", ["none", "dst", "src"])
def test_tensors_on_a_device_other_than_the_current_one(on_host: str) -> None:
    dst, src = (
        [t.pin_memory() if side == on_host else t.to("npu:1") for t in cache(2, 4, 8, seed=seed)]
        for seed, side in enumerate(("dst", "src"))
    )
    expected = reference_copy(dst, src, 1, 2)
    torch.npu.synchronize("npu:1")
    ascend_sim.reset()
    copy_cache(dst, src, 1, 2)
    torch.npu.synchronize("npu:1")
    assert {copy.device for copy in ascend_sim.copies()} == {1}
    assert torch.npu.current_device() == 0
    assert_same_bytes(dst, expected)


@needs_two_npus
def test_two_npus_are_refused() -> None:
    dst, src = cache(2, 4, 8, device="npu:0"), cache(2, 4, 8, device="npu:1")
    with pytest.raises(ValueError, match=r"copy_cache: expected dst and src on one NPU, .* got npu:0 and npu:1"):
        copy_cache(dst, src, 1, 2)


@pytest.mark.parametrize("device", ["npu", "cpu"])
def test_copies_on_the_device_are_refused(device: str) -> None:
    """Reading them would wait for the device."""
    dst, src = cache(2, 4, 8, device=device), cache(2, 4, 8, device=device, seed=1)
    copies = torch.tensor([(1, 0, 0, -1)]).to("npu")
    with nothing_written(*dst, *src), pytest.raises(ValueError, match="expected copies on the CPU, got npu:0"):
        copy_cache_batch(dst, src, copies)
