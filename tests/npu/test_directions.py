# SPDX-License-Identifier: Apache-2.0
"""Copies between device, pinned and pageable memory, and tensors that change or are freed right after the call."""

from collections.abc import Callable

import ascend_sim
import pytest
import torch
from busy import busy
from npu_utils import PATIENT, blocked_queue, scattered, stalled_device, wait_for_copies
from torch import Tensor
from utils import (
    assert_same_bytes,
    cache,
    check_copy,
    copy_cache,
    copy_cache_batch,
    filled,
    reference_batch,
    reference_copy,
    table,
)

from llm_datadist_torch import Cache

PLACES = ["npu", "pinned", "pageable"]


def place(tensors: list[Tensor], where: str) -> list[Tensor]:
    if where == "npu":
        return [t.npu() for t in tensors]
    return [t.pin_memory() for t in tensors] if where == "pinned" else tensors


def views_of_one(stacked: Tensor, where: str) -> list[Tensor]:
    return list(place([stacked], where)[0])


@pytest.mark.profiles
@pytest.mark.unaligned
@pytest.mark.assumption("Device, pinned and pageable memory are copied in every direction")
@pytest.mark.parametrize("to", PLACES)
@pytest.mark.parametrize("source", PLACES)
class TestEveryDirection:
    @pytest.mark.parametrize(("offset", "size"), [(0, -1), (5, 9)])
    def test_list(self, to: str, source: str, offset: int, size: int) -> None:
        dst, src = place(cache(3, 4, 8), to), place(cache(3, 2, 8, seed=1), source)
        check_copy(dst, src, 3, 1, offset, size)

    def test_stacked(self, to: str, source: str) -> None:
        dst, src = place([filled(5, 4, 8)], to), place([filled(5, 2, 8, seed=1)], source)
        check_copy(dst, src, 3, 1, 4, 9, batch_dim=1)

    def test_views_of_one_buffer(self, to: str, source: str) -> None:
        dst, src = views_of_one(filled(5, 4, 8), to), views_of_one(filled(5, 2, 8, seed=1), source)
        check_copy(dst, src, 3, 1)


@pytest.mark.simulated
@pytest.mark.profiles
class TestOneStream:
    """Calls run in their order, with no synchronization of the caller, whatever the memory is."""

    @pytest.mark.parametrize("call", [copy_cache, PATIENT.copy_cache], ids=["op", "manager"])
    def test_out_to_pageable_memory_and_back(self, call: Callable[..., None]) -> None:
        on_npu, on_host = filled(3, 4, 64, device="npu"), filled(3, 4, 64, seed=1)
        row, other = on_npu.cpu()[0], on_npu.cpu()[1]
        dst, src = (t if call is copy_cache else Cache.from_tensors(t) for t in ([on_host], [on_npu]))
        torch.npu.synchronize()
        with ascend_sim.delay_tasks(5):
            call(dst, src, 0, 0)
            call(src, src, 0, 1)
            call(src, dst, 2, 0)
        assert_same_bytes([on_npu.cpu()], [torch.stack([other, other, row])])

    def test_pinned_memory_beside_pageable_memory(self) -> None:
        """The bytes of the pinned tensor are still on their way to it when it is the source of another call."""
        on_npu, expected = cache(2, 2, 4, 64, device="npu"), filled(2, 4, 64, seed=9)
        pinned, pageable = torch.zeros(2, 4, 64).pin_memory(), filled(2, 4, 64, seed=8)
        source = expected.npu()
        torch.npu.synchronize()
        with ascend_sim.delay_tasks(5):
            copy_cache([pinned], [source], 0, 1)
            copy_cache(on_npu, [pinned, pageable], 1, 0)
        assert_same_bytes([on_npu[0].cpu()[1], on_npu[1].cpu()[1]], [expected[1], pageable[0]])


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("count", [1, 40])
def test_many_scattered_tensors(pinned: bool, count: int) -> None:
    on_npu, on_host = scattered(count, 4, 8), scattered(count, 4, 8, device="cpu", seed=1, pinned=pinned)
    check_copy(on_npu, on_host, 1, 2)
    check_copy(on_host, on_npu, 3, 1)


def test_pinned_and_pageable_in_one_list() -> None:
    dst, src = cache(2, 4, 8, device="npu"), cache(2, 4, 8, seed=1)
    src[0] = src[0].pin_memory()
    check_copy(dst, src, 1, 2)
    src[0] = src[0].pin_memory()
    check_copy(src, dst, 0, 3)


class TestRightAfterTheCall:
    """The call returns before the device has copied. See also test_busy_streams.py."""

    @pytest.mark.assumption("A pageable source and the tensor copies may be overwritten as soon as the call returns")
    @pytest.mark.parametrize("pinned", [0, 1])
    def test_pageable_source_may_be_written(self, pinned: int) -> None:
        """Also where a part of the list is pinned."""
        dst, src, numbers = cache(2, 4, 8, device="npu"), cache(2, 4, 8, seed=1), [(1, 2, 0, -1), (3, 0, 4, 8)]
        src[:pinned] = [tensor.pin_memory() for tensor in src[:pinned]]
        expected, copies = reference_batch(dst, src, numbers), table(numbers)
        with busy() as end:
            copy_cache_batch(dst, src, copies)
            for tensor in (*src[pinned:], copies):
                tensor.fill_(-7)
            assert not end.query()
        assert_same_bytes(dst, expected)

    @pytest.mark.simulated
    @pytest.mark.parametrize("blocked", [False, pytest.param(True, marks=pytest.mark.task_queue)])
    def test_staging_buffer_lives_until_the_device_is_done(self, blocked: bool) -> None:
        dst, src = cache(2, 4, 8, device="npu"), cache(2, 4, 8, seed=1)
        expected = reference_copy(dst, src, 1, 2)
        torch.npu.synchronize()
        ascend_sim.reset()
        with blocked_queue() if blocked else stalled_device():
            copy_cache(dst, src, 1, 2)
            if not blocked:
                wait_for_copies(1)
            others = [torch.zeros(64, dtype=torch.uint8).pin_memory() for _ in range(8)]  # of the size of the buffer
        assert_same_bytes(dst, expected)
        assert not any(other.any() for other in others)

    @pytest.mark.simulated
    def test_staging_buffers_are_reused(self) -> None:
        dst, src = cache(2, 4, 8, device="npu"), cache(2, 4, 8, seed=1)
        copy_cache(dst, src, 1, 2)
        torch.npu.synchronize()
        ascend_sim.reset()
        for _ in range(200):
            copy_cache(dst, src, 1, 2)
            torch.npu.synchronize()
        # A thread of torch_npu releases finished tasks a little later, so on a busy machine some buffers are still in
        # use. Without reuse there would be 200.
        assert ascend_sim.call_counts()["aclrtMallocHost"] < 150


def test_internal_format_is_refused() -> None:
    import torch_npu

    torch.npu.config.allow_internal_format = True
    try:
        internal = torch_npu.empty_with_format((32, 32), dtype=torch.float16, device="npu", acl_format=29)
    finally:
        torch.npu.config.allow_internal_format = False  # the default
    assert torch_npu.get_npu_format(internal) == 29
    plain = filled(32, 32, dtype=torch.float16, device="npu")
    for dst, src, name in ((internal, plain, "dst"), (plain, internal, "src")):
        with pytest.raises(
            ValueError, match=rf"expected {name}\[0\] to be in a plain format such as ND, got format 29"
        ):
            copy_cache([dst], [src], 1, 2)
