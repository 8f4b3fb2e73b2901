# SPDX-License-Identifier: Apache-2.0
"""Stream order: the op does not wait, and runs after earlier and before later work of the current stream.

This file runs in one mode of torch_npu's task queue. test_queue_modes.py runs it in the others.
"""

import time

import ascend_sim
import pytest
import torch
from npu_utils import block_the_queue, needs_two_npus, scattered, stalled_device, synchronisations
from utils import assert_same_bytes, cache, copy_cache, filled, reference_copy, to_host


@pytest.mark.simulated
def test_returns_on_a_stalled_stream() -> None:
    dst, src = cache(3, 4, 8, device="npu"), cache(3, 4, 8, device="npu", seed=1)
    expected = reference_copy(dst, src, 1, 2)
    ascend_sim.reset()
    with ascend_sim.stall_device(0):
        copy_cache(dst, src, 1, 2)
        assert not torch.npu.current_stream().query()
    assert_same_bytes(dst, expected)


@pytest.mark.simulated
@pytest.mark.task_queue
def test_does_not_wait_for_the_task_queue() -> None:
    dst, src = filled(4, 8, device="npu"), filled(4, 8, device="npu", seed=1)
    torch.npu.synchronize()
    with stalled_device():
        block_the_queue()
        started = time.monotonic()
        copy_cache([dst], [src], 1, 2)
        assert time.monotonic() - started < 10


@pytest.mark.simulated
def test_never_synchronises() -> None:
    dst, src = scattered(20, 4, 8), scattered(20, 4, 8, seed=1)
    pinned = scattered(20, 4, 8, device="cpu", pinned=True)
    torch.npu.synchronize()
    ascend_sim.reset()
    for _ in range(10):
        copy_cache(dst, src, 1, 2)
        copy_cache(dst, pinned, 1, 2)
        copy_cache(pinned, dst, 1, 2)
        copy_cache(dst, cache(20, 4, 8), 1, 2)
    assert synchronisations() == 0
    torch.npu.synchronize()
    assert synchronisations() == 1


@pytest.mark.simulated
def test_order_with_earlier_and_later_work() -> None:
    """A chain of copies that each read what the previous one wrote. Half of them are torch's own."""
    rows = [filled(1, 64, device="npu", seed=seed) for seed in range(41)]
    first = to_host(rows[0])
    with ascend_sim.stall_device(0):
        for link in range(0, 40, 2):
            copy_cache([rows[link + 1]], [rows[link]])
            rows[link + 2].copy_(rows[link + 1])
    assert_same_bytes([rows[-1]], [first])


@pytest.mark.assumption("Copies run after the earlier and before the later work of their stream")
def test_order_on_a_running_stream() -> None:
    a, b, c = (filled(1, 1024, device="npu", seed=seed) for seed in range(3))
    for round_ in range(200):
        a.copy_(filled(1, 1024, seed=round_).pin_memory(), non_blocking=True)
        copy_cache([b], [a])
        c.copy_(b)
    assert_same_bytes([c], [filled(1, 1024, seed=199)])


@pytest.mark.simulated
def test_two_streams_ordered_by_events() -> None:
    a, b, c = (filled(4, 64, device="npu", seed=seed) for seed in range(3))
    expected = to_host(a)
    one, two = torch.npu.Stream(), torch.npu.Stream()
    torch.npu.synchronize()
    with ascend_sim.stall_stream(one.npu_stream):
        with torch.npu.stream(one):
            for row in range(4):
                copy_cache([b], [a], row, row)
            written = one.record_event()
        with torch.npu.stream(two):
            two.wait_event(written)
            for row in range(4):
                copy_cache([c], [b], row, row)
        assert not two.query()
    torch.npu.synchronize()
    assert_same_bytes([c], [expected])


@pytest.mark.simulated
def test_the_current_stream_is_used() -> None:
    a, b = (filled(4, 64, device="npu", seed=seed) for seed in range(2))
    stream = torch.npu.Stream()
    torch.npu.synchronize()
    ascend_sim.reset()
    with torch.npu.stream(stream):
        copy_cache([a], [b], 1, 2)
    torch.npu.synchronize()
    [copy] = ascend_sim.copies()
    assert copy.stream == stream.npu_stream


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
