# SPDX-License-Identifier: Apache-2.0
"""CacheManager: calls from many threads."""

import gc
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from utils import assert_same_bytes, cache, intra_op_threads, to_host

from llm_datadist_torch import (
    Cache,
    CacheDesc,
    CacheKey,
    CacheManager,
    DataType,
    LLMConfig,
    LLMException,
    Placement,
    ops,
)


def run(work: Callable[[int], None]) -> None:
    """Runs the work in eight threads at once, and raises the first exception of a thread."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # switch threads as often as possible
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
    finally:
        sys.setswitchinterval(interval)


class TestThreads:
    def test_10000_allocations_leak_no_memory(self, device: str) -> None:
        placement = Placement.HOST if device == "cpu" else Placement.DEVICE
        desc = CacheDesc(2, (4, 16), DataType.DT_FLOAT, placement)
        pool = f'{{"memory_size": {8 * 2 * 512}}}'  # exactly two caches for each thread
        manager = CacheManager(
            LLMConfig(sync_kv_timeout=60_000, **{f"{'host_' * (device == 'cpu')}mem_pool_cfg": pool})
        )
        ids: list[list[int]] = [[] for _ in range(8)]

        def work(number: int) -> None:
            pattern = torch.full((2, 4, 16), float(number))
            for turn in range(1250):
                key = CacheKey(0, number * 10_000 + turn)
                dst, src = manager.allocate_cache(desc, [key]), manager.allocate_cache(desc)
                ids[number] += [dst.cache_id, src.cache_id]
                if turn % 25 == 0:
                    src.tensors[0].copy_(pattern)
                    manager.copy_cache(dst, src, 3, 1)
                    assert torch.equal(to_host(dst.tensors[0])[:, 3], pattern[:, 1])
                manager.deallocate_cache(dst)
                manager.remove_cache_key(key)
                manager.deallocate_cache(src)

        gc.collect()  # the caches of earlier tests
        begun = torch.npu.memory_allocated() if device == "npu" else 0
        run(work)
        gc.collect()
        if device == "npu":
            torch.npu.synchronize()
            for _ in range(500):  # torch_npu releases the tensors of a finished task a little later
                if torch.npu.memory_allocated() <= begun:
                    break
                time.sleep(0.01)
            assert torch.npu.memory_allocated() <= begun
        assert sorted(number for thread in ids for number in thread) == list(range(1, 20_001))  # each id once
        full = [manager.allocate_cache(desc) for _ in range(16)]  # the whole pool is free
        with pytest.raises(LLMException, match="memory_size"):
            manager.allocate_cache(desc)
        assert len({held.cache_id for held in full}) == 16

    def test_one_cache_deallocated_by_all_threads(self) -> None:
        """One thread ends it; the calls of the others have no effect."""
        manager = CacheManager()
        desc = CacheDesc(1, (4, 16), DataType.DT_FLOAT, Placement.HOST)
        shared = [manager.allocate_cache(desc) for _ in range(1000)]
        run(lambda number: [manager.deallocate_cache(held) for held in shared])
        assert not any(held.tensors for held in shared)

    def test_copies_of_one_manager_are_serialized(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Counts the threads inside the op's function."""
        inside: list[int] = []
        most = 0
        real = ops.copy_cache_blocking

        def counting(*args: object, **kwargs: object) -> bool:
            nonlocal most
            inside.append(0)
            most = max(most, len(inside))
            time.sleep(0.002)
            done = real(*args, **kwargs)
            inside.pop()
            return done

        monkeypatch.setattr(ops, "copy_cache_blocking", counting)
        manager = CacheManager(LLMConfig(sync_kv_timeout=60_000))
        dst, src = Cache.from_tensors(cache(2, 8, 8)), Cache.from_tensors(cache(2, 8, 8, seed=1))
        run(lambda number: manager.copy_cache(dst, src, number, number))
        assert most == 1
        assert_same_bytes(dst.tensors, src.tensors)

    def test_calls_during_a_copy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The time that another copy waits for it counts. finalize waits for its end."""
        entered, leave, events = threading.Event(), threading.Event(), []

        def stuck(*args: object, **kwargs: object) -> bool:
            entered.set()
            leave.wait(60)
            events.append("copied")
            return True

        monkeypatch.setattr(ops, "copy_cache_blocking", stuck)
        manager = CacheManager(LLMConfig(sync_kv_timeout=50))
        held = manager.allocate_cache(CacheDesc(1, (4, 8), DataType.DT_FLOAT, Placement.HOST))
        first = threading.Thread(target=manager.copy_cache, args=(held, held, 0, 1))
        last = threading.Thread(target=lambda: (manager._finalize(), events.append("finalized")))
        first.start()
        try:
            assert entered.wait(60)
            with pytest.raises(LLMException, match="not done after sync_kv_timeout, 50 ms"):
                manager.copy_cache(held, held, 0, 1, req_id=5)
            last.start()
            last.join(0.05)
        finally:
            leave.set()
            first.join()
        last.join()
        assert events == ["copied", "finalized"]
        assert not held.tensors

    def test_a_copy_releases_the_gil(self) -> None:
        """With one intra-op thread the copy runs in the calling thread, so another one runs only without the GIL."""
        big = [Cache.from_tensors(torch.ones(1, 2**28, dtype=torch.uint8)) for _ in range(2)]
        manager = CacheManager(LLMConfig(sync_kv_timeout=60_000))
        ticks, stop = 0, threading.Event()

        def tick() -> None:
            nonlocal ticks
            while not stop.is_set():
                ticks += 1
                time.sleep(1e-4)

        ticking = threading.Thread(target=tick)
        ticking.start()
        with intra_op_threads(1):
            before = ticks
            manager.copy_cache(*big)
            during = ticks - before
        stop.set()
        ticking.join()
        assert during > 10  # 256 MiB take about 50 ms; with the GIL held there would be at most one tick
