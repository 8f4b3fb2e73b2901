# SPDX-License-Identifier: Apache-2.0
"""Order, waits and lifetime of memory behind work that keeps a stream busy: on NPUs as on the simulated runtime."""

import gc
import threading

import pytest
import torch
from busy import busy
from npu_utils import PATIENT, scattered, seconds_to_timeout
from torch import Tensor
from utils import assert_same_bytes, copy_cache, copy_cache_batch, filled, reference_batch, reference_copy, table

from llm_datadist_torch import Cache, CacheManager, LLMConfig

assumption = pytest.mark.assumption
SHAPE = (4, 128)
COPIES = [(1, 2, 0, -1), (3, 0, 64, 128)]
PLACES = {"npu": {"device": "npu"}, "pinned": {"pin_memory": True}, "pageable": {}}


def stacked(seed: int = 0) -> list[Tensor]:
    return [filled(6, *SHAPE, device="npu", seed=seed)]


def pair() -> tuple[Cache, Cache]:
    dst, src = (Cache.from_tensors(stacked(seed), batch_dim=1) for seed in (0, 1))
    PATIENT.copy_cache(dst, dst, 0, 0)  # makes the side stream
    return dst, src


class TestOp:
    @assumption("Calls return while the stream is busy, unless dst is pageable memory")
    @pytest.mark.parametrize(("to", "of"), [("npu", "npu"), ("npu", "pinned"), ("pinned", "npu"), ("npu", "pageable")])
    def test_returns_at_once(self, to: str, of: str) -> None:
        dst, src = (
            scattered(6, *SHAPE, device="npu" if where == "npu" else "cpu", pinned=where == "pinned", seed=seed)
            for seed, where in enumerate((to, of))
        )
        expected = reference_batch(dst, src, COPIES)
        with busy() as end:
            copy_cache(dst, src, *COPIES[0])
            copy_cache_batch(dst, src, table(COPIES[1:]))
            assert not end.query()
        assert_same_bytes(dst, expected)

    @assumption("Copies run after the earlier and before the later work of their stream")
    def test_one_stream(self) -> None:
        dst, src, first, last = (scattered(6, *SHAPE, seed=seed) for seed in range(4))
        expected = reference_copy(dst, first, 1, 2)
        with busy():
            torch._foreach_copy_(src, first)
            copy_cache(dst, src, 1, 2)
            torch._foreach_copy_(src, last)
        assert_same_bytes(dst, expected)

    @assumption("A stream that waits for an event runs its copies after the copies before the event")
    def test_two_streams(self) -> None:
        last, middle, first = (stacked(seed) for seed in range(3))
        one, two = torch.npu.Stream(), torch.npu.Stream()
        with busy(one) as end:
            for stream, dst, src in ((one, middle, first), (two, last, middle)):
                with torch.npu.stream(stream):
                    for row in range(SHAPE[0]):
                        copy_cache(dst, src, row, row, batch_dim=1)
                two.wait_stream(one)
            assert not end.query()
        assert_same_bytes(last, first)

    @assumption("A busy stream does not delay the copies of another stream")
    def test_independent_streams(self) -> None:
        dst, src, other = stacked(), stacked(1), torch.npu.Stream()
        expected = reference_copy(dst, src, 1, 2, batch_dim=1)
        with busy() as end:
            with torch.npu.stream(other):
                copy_cache(dst, src, 1, 2, batch_dim=1)
            other.synchronize()
            assert not end.query()
        assert_same_bytes(dst, expected)

    @assumption("Threads with streams of their own copy at the same time")
    def test_threads(self) -> None:
        pairs = [(stacked(seed), stacked(9 + seed)) for seed in range(4)]
        expected = [reference_batch(dst, src, COPIES, batch_dim=1) for dst, src in pairs]

        def copy(dst: list[Tensor], src: list[Tensor]) -> None:
            torch.npu.set_device(0)
            with torch.npu.stream(torch.npu.Stream()):
                for step in range(100):
                    copy_cache(dst, src, *COPIES[step % 2], batch_dim=1)

        threads = [threading.Thread(target=copy, args=pair) for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        torch.npu.synchronize()
        for (dst, _), bytes_ in zip(pairs, expected, strict=True):
            assert_same_bytes(dst, bytes_)


class TestMemory:
    @assumption("A source may be freed as soon as the call returns, and its memory used again")
    @pytest.mark.parametrize(("to", "of"), [("npu", "npu"), ("npu", "pinned"), ("npu", "pageable"), ("pinned", "npu")])
    def test_freed_source(self, to: str, of: str) -> None:
        dst, src = (
            [torch.empty(6, *SHAPE, **PLACES[where]).copy_(filled(6, *SHAPE, seed=seed))]
            for seed, where in enumerate((to, of))
        )
        expected = reference_copy(dst, src, 1, 2, batch_dim=1)
        with busy():
            copy_cache(dst, src, 1, 2, batch_dim=1)
            del src
            gc.collect()
            others = [torch.empty(6, *SHAPE, **PLACES[of]).fill_(7) for _ in range(8)]
        assert_same_bytes(dst, expected)
        del others

    @assumption("A destination on the host may be freed as soon as the call returns, and its memory used again")
    @pytest.mark.parametrize("to", ["pinned", "pageable"])
    def test_freed_destination(self, to: str) -> None:
        """The pending copy must not write to tensors that use the memory."""
        src, dst = stacked(), [torch.empty(6, *SHAPE, **PLACES[to])]
        with busy():
            copy_cache(dst, src, 1, 2, batch_dim=1)
            del dst
            gc.collect()
            others = [torch.empty(6, *SHAPE, **PLACES[to]).fill_(7) for _ in range(8)]
        assert torch.cat(others).unique().tolist() == [7]


class TestManager:
    @assumption("A blocking copy runs after the earlier work of the current stream")
    def test_after_earlier_work(self) -> None:
        (dst, src), late = pair(), stacked(5)
        expected = reference_copy(dst.tensors, late, 1, 2, batch_dim=1)
        with busy() as end:
            src.tensors[0].copy_(late[0])
            PATIENT.copy_cache(dst, src, 1, 2)
            assert end.query()
        assert_same_bytes(dst.tensors, expected)

    @assumption("A blocking copy behind longer work times out in time, and later work of the stream comes after it")
    @pytest.mark.parametrize("pageable", [False, True])
    def test_timeout(self, record_property: object, pageable: bool) -> None:
        """The runtime blocks a thread that copies to pageable memory. That must not be the caller or the task queue."""
        (dst, src), last = pair(), stacked(7)
        dst = Cache.from_tensors([filled(6, *SHAPE)], batch_dim=1) if pageable else dst
        with busy(seconds=0.6) as end:
            seconds = seconds_to_timeout(CacheManager(LLMConfig(sync_kv_timeout=50)), dst, src)
            record_property("timeout of 50 ms after", f"{seconds * 1e3:.1f} ms")
            assert not end.query()
            dst.tensors[0].copy_(last[0])
        assert seconds >= 0.05
        assert_same_bytes(dst.tensors, last)

    @assumption("Work of other streams does not delay a blocking copy")
    def test_other_streams(self) -> None:
        dst, src = pair()
        expected = reference_copy(dst.tensors, src.tensors, 1, 2, batch_dim=1)
        with busy(torch.npu.Stream()) as end:
            PATIENT.copy_cache(dst, src, 1, 2)
            assert not end.query()
        assert_same_bytes(dst.tensors, expected)
