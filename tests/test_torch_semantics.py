# SPDX-License-Identifier: Apache-2.0
"""What the rest of PyTorch relies on: version counters, autograd, inference tensors, copy on write, profiler, TorchScript."""

from collections.abc import Callable

import pytest
import torch
from torch.autograd import forward_ad
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.two_tensor import TwoTensor
from utils import (
    assert_same_bytes,
    cache,
    check_copy,
    copy_cache,
    copy_cache_batch,
    filled,
    nothing_written,
    reference_batch,
    reference_copy,
    table,
)

from llm_datadist_torch import Cache, CacheManager

BATCH = table([(1, 2, 0, -1), (2, 0, 0, -1)])


class TestAutograd:
    def test_autograd_detects_a_modified_saved_tensor(self) -> None:
        saved, weight = filled(4, 8), torch.ones(4, 8, requires_grad=True)
        loss = (weight * saved).sum()
        copy_cache([saved], [filled(4, 8, seed=1)])
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_requires_grad(self) -> None:
        """It is allowed in src, and under no_grad in dst."""
        dst, src = torch.zeros(4, 8, requires_grad=True), filled(4, 8)
        with torch.no_grad():
            check_copy([dst], [src], 1, 2)
        dst, src = filled(4, 8), filled(4, 8, seed=1).requires_grad_()
        check_copy([dst], [src], 1, 2)
        assert not dst.requires_grad

    def test_requires_grad_of_wrapper_tensors_is_refused(self) -> None:
        """The wrapped tensors do not require grad: with a check of these alone, gradients would be silently wrong."""
        leaf = TwoTensor(filled(4, 8), filled(4, 8)).requires_grad_()
        with pytest.raises(ValueError, match=r"copy_cache: dst\[0\] requires grad"):
            copy_cache([leaf * 1], [TwoTensor(filled(4, 8), filled(4, 8))], 1, 2)

        def overwrites(x: torch.Tensor) -> torch.Tensor:
            copy_cache([x], [filled(4, 8)], 1, 2)
            return (x * x).sum()

        with pytest.raises(ValueError, match=r"copy_cache: dst\[0\] requires grad"):
            torch.func.grad(overwrites)(filled(4, 8))

    def test_derivatives_of_torch_func_are_refused(self) -> None:
        """The copy would make them zero."""

        def through_a_cache(x: torch.Tensor) -> torch.Tensor:
            kv = torch.zeros(4, 8)
            copy_cache([kv], [x * 2], 1, 2)
            return kv.sum()

        with pytest.raises(ValueError, match=r"copy_cache: src\[0\] requires grad"):
            torch.func.grad(through_a_cache)(filled(4, 8))
        with pytest.raises(ValueError, match=r"copy_cache: src\[0\] is a dual tensor"):
            torch.func.jvp(through_a_cache, (torch.ones(4, 8),), (torch.ones(4, 8),))
        assert torch.func.grad(lambda x: x[0, 0] + through_a_cache(x.detach()))(filled(4, 8)).sum() == 1

    @pytest.mark.parametrize("side", [0, 1])
    def test_dual_tensors_are_refused(self, side: int) -> None:
        with forward_ad.dual_level():
            lists = [cache(2, 4, 8), cache(2, 4, 8, seed=1)]
            lists[side][1] = forward_ad.make_dual(lists[side][1], torch.ones(4, 8))
            with (
                pytest.raises(ValueError, match=rf"{('dst', 'src')[side]}\[1\] is a dual tensor"),
                nothing_written(lists[0][0]),
            ):
                copy_cache(*lists, 1, 2)

    def test_inference_tensors(self, device: str) -> None:
        with torch.inference_mode():
            dst, src = cache(2, 4, 8, device=device), cache(2, 4, 8, device=device, seed=1)
            check_copy(dst, src, 1, 2)
        before = [d.clone() for d in dst]
        with pytest.raises(ValueError, match=r"dst\[0\] is an inference tensor, which can be written under"):
            copy_cache(dst, cache(2, 4, 8, device=device, seed=2), 1, 2)
        assert_same_bytes(dst, before)
        # CacheManager copies memory, whatever mode it was allocated in.
        whole, part = (Cache.from_tensors(tensors) for tensors in (dst, cache(2, 4, 8, device=device, seed=2)))
        CacheManager().copy_cache(whole, part, 1, 2)
        assert_same_bytes([d[1] for d in dst], [s[2] for s in part.unstacked])


class TestKindsOfTensors:
    def test_conjugated_source_is_resolved(self) -> None:
        dst, src = filled(4, 2, dtype=torch.complex64), torch.randn(4, 2, dtype=torch.complex64)
        copy_cache([dst], [src.conj()], 1, 2)
        assert torch.equal(dst[1], src[2].conj())

    def test_parameters_and_tuples(self) -> None:
        check_copy((torch.nn.Parameter(filled(4, 8), requires_grad=False),), (filled(4, 8, seed=1),), 1, 2)

    def test_meta_tensors_pass_through(self) -> None:
        meta = [torch.empty(4, 8, device="meta")]
        copy_cache(meta, meta, 1, 2)


class TestCopyOnWrite:
    """A lazily cloned tensor shares its bytes until it is written. The op must not write the shared bytes."""

    @pytest.mark.parametrize("batch", [False, True])
    def test_destination(self, batch: bool) -> None:
        original, src = filled(4, 8), filled(4, 8, seed=1)
        expected = reference_batch([original], [src], BATCH.tolist() if batch else [(1, 2, 0, -1)])
        before, lazy = original.clone(), torch._lazy_clone(original)
        copy_cache_batch([lazy], [src], BATCH) if batch else copy_cache([lazy], [src], 1, 2)
        assert_same_bytes([lazy, original], [*expected, before])

    def test_destination_that_is_a_source_too(self) -> None:
        """Materializing it changes its address, so that precedes the use of any address, in any order of the lists."""
        original, first, source = filled(4, 8), filled(4, 8, seed=1), filled(4, 8, seed=2)
        for lazy_dst in (True, False):
            lazy = torch._lazy_clone(original)
            dst, src = [first, lazy if lazy_dst else original], [original, source if lazy_dst else lazy]
            expected = [reference_copy([d], [s], 1, 2)[0] for d, s in zip(dst, src, strict=True)]
            copy_cache(dst, src, 1, 2)
            assert_same_bytes(dst, expected)

    def test_source(self) -> None:
        """It is only read, so it is not materialized."""
        dst, original = filled(4, 8), filled(4, 8, seed=1)
        lazy = torch._lazy_clone(original)
        expected = reference_copy([dst], [original], 1, 2)
        copy_cache([dst], [lazy], 1, 2)
        assert torch._C._is_cow_tensor(lazy)
        assert_same_bytes([dst], expected)


def by_manager(dst: list[torch.Tensor], src: list[torch.Tensor]) -> None:
    CacheManager().copy_cache(Cache.from_tensors(dst), Cache.from_tensors(src), 1, 2, 0, 8, req_id=9)


SWAP = table([(0, 1, 0, 20), (1, 0, 0, 20), (2, 3, 0, -1)])


@pytest.mark.parametrize(
    ("call", "op", "bytes_written"),
    [
        (lambda dst, src: copy_cache(dst, src, 1, 2), "copy_cache", "96 bytes"),
        (lambda dst, src: copy_cache(dst, src, 1, 2, 3, 5, 7), "copy_cache", "15 bytes (req_id 7)"),
        (lambda dst, src: copy_cache(dst, dst, 1, 1), "copy_cache", "0 bytes"),
        # On an NPU they are first gathered in pinned memory, which does not count.
        (lambda dst, src: copy_cache(dst[:1], [filled(4, 8)], 1, 2), "copy_cache", "32 bytes"),
        (by_manager, "_copy_cache_blocking", "24 bytes (req_id 9)"),
        # The 60 staged bytes do not count.
        (lambda dst, src: copy_cache_batch(dst, dst, SWAP, 8), "copy_cache_batch", "216 bytes (req_id 8)"),
    ],
)
def test_profiler(device: str, call: Callable, op: str, bytes_written: str) -> None:
    """torch.profiler records the op, the bytes that it writes, and the request."""
    dst, src = cache(3, 4, 8, device=device), cache(3, 4, 8, device=device, seed=1)
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        call(dst, src)
    found = [event.name for event in trace.events() if "copy_cache" in event.name]
    assert found[0] == f"llm_datadist::{op}"
    name = "copy_cache_batch" if "batch" in op else "copy_cache"
    assert found.count(f"{name}: {bytes_written}") == 1


class TestTorchScript:
    """It drops calls whose schema does not say that they have an effect."""

    def test_script_and_trace_keep_the_calls(self) -> None:
        def model(kv: torch.Tensor, copies: torch.Tensor) -> torch.Tensor:
            torch.ops.llm_datadist.copy_cache([kv], [kv], 1, 0)
            torch.ops.llm_datadist.copy_cache_batch([kv], [kv], copies)
            return kv.sum()

        expected = filled(4, 8, dtype=torch.int32)
        total = model(expected, BATCH)
        for compiled in (torch.jit.script(model), torch.jit.trace(model, (filled(4, 8, dtype=torch.int32), BATCH))):
            for _ in range(3):  # optimized from the second call on
                kv = filled(4, 8, dtype=torch.int32)
                assert compiled(kv, BATCH) == total
                assert_same_bytes([kv], [expected])
