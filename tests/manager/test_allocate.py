# SPDX-License-Identifier: Apache-2.0
"""CacheManager: allocated caches, their memory, limits and keys, and how a cache ends. See test_stateful.py too."""

import gc
import weakref

import pytest
import torch
from manager_utils import desc, fill
from utils import assert_same_bytes, cache, check_batch, refused

from llm_datadist_torch import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheManager,
    DataType,
    LLMConfig,
    LLMStatusCode,
    Placement,
)

NONE = 2**64 - 1
BYTES = 2 * 4 * 8 * 4
INVALID, FULL = LLMStatusCode.LLM_PARAM_INVALID, LLMStatusCode.LLM_OUT_OF_MEMORY
TAKEN = " is taken, by another cache or another row of this one"


class TestAllocate:
    def test_allocates_one_stacked_tensor(self, device: str) -> None:
        manager = CacheManager()
        placement = Placement.HOST if device == "cpu" else Placement.DEVICE
        held = manager.allocate_cache(CacheDesc(3, (4, 8), DataType.DT_BF16, placement))
        (stack,) = held.tensors
        assert (stack.shape, stack.dtype, stack.device.type) == ((3, 4, 8), torch.bfloat16, device)
        assert (held.batch_dim, held.cache_id, held.is_blocks_cache) == (1, 1, False)
        assert held.tensor_addrs == [stack[i].data_ptr() for i in range(3)]
        blocks = manager.allocate_blocks_cache(desc(device))
        assert (blocks.cache_id, blocks.is_blocks_cache) == (2, True)

    def test_batch_dim_of_the_description(self, device: str) -> None:
        held = CacheManager().allocate_blocks_cache(desc(device, shape=(2, 4, 8), batch_dim_index=1))
        fill(held)
        copy = lambda: CacheManager().copy_blocks(held, {1: [3]})  # noqa: E731
        check_batch(held.tensors, held.tensors, [(3, 1, 0, -1)], batch_dim=2, call=copy)

    def test_placements(self, device: str) -> None:
        """Host memory is pinned where there is a device. Without one, both are host memory."""
        (on_host,), (on_device,) = (CacheManager().allocate_cache(desc(side)).tensors for side in ("cpu", "npu"))
        assert on_host.is_cpu
        assert on_host.is_pinned() == (device == "npu")
        assert on_device.device.type == device


class TestLimit:
    def test_limit_is_exact(self, device: str) -> None:
        pool = f'{{"memory_size": {2 * BYTES}}}'
        manager = CacheManager(LLMConfig(**{"mem_pool_cfg" if device == "npu" else "host_mem_pool_cfg": pool}))
        first, _ = manager.allocate_cache(desc(device)), manager.allocate_blocks_cache(desc(device))
        one_byte = CacheDesc(1, (1, 1), DataType.DT_INT8, first.cache_desc.placement)
        text = f"1 bytes for a cache are more than memory_size ({2 * BYTES}) leaves: {2 * BYTES} are in use"
        refused(FULL, text, manager.allocate_cache, one_byte)
        manager.deallocate_cache(first)
        manager.allocate_cache(desc(device))

    def test_the_limit_of_the_graph_engine(self) -> None:
        """The smaller limit of the device counts. There is none for host memory, and none for registered memory."""
        config = LLMConfig(mem_pool_cfg='{"memory_size": 1048576}')
        config.ge_options = {"ge.flowGraphMemMaxSize": str(BYTES)}
        manager = CacheManager(LLMConfig.from_options(config.generate_options()))
        manager.allocate_cache(desc("npu"))
        text = f"{BYTES} bytes for a cache are more than ge.flowGraphMemMaxSize ({BYTES}) leaves: {BYTES} are in use"
        refused(FULL, text, manager.allocate_cache, desc("npu"))
        manager.register_cache(desc("npu"), cache(2, 4, 8))
        manager.allocate_cache(desc("cpu"))

    def test_a_description_that_changes_later(self) -> None:
        """A cache has its own description, so that its memory is accounted as it was allocated."""
        manager = CacheManager(LLMConfig(host_mem_pool_cfg=f'{{"memory_size": {BYTES}}}'))
        described = desc()
        held = manager.allocate_cache(described)
        described.update_dim(0, 1)
        held.cache_desc.update_dim(1, 1)
        manager.deallocate_cache(held)
        manager.allocate_cache(desc())

    def test_a_failed_allocation_reserves_nothing(self) -> None:
        big = desc("cpu", 1, (2**40, 2**20))
        manager = CacheManager(LLMConfig(host_mem_pool_cfg=f'{{"memory_size": {big.size}}}'))
        for _ in range(3):
            text = "allocate_cache: cannot allocate shape (1, 1099511627776, 1048576)"
            refused(FULL, text, manager.allocate_cache, big, [CacheKey(0, 1)])
        assert manager.allocate_cache(desc(), [CacheKey(0, 1)]).cache_id == 1


class TestKeys:
    def test_memory_is_released_after_deallocation_and_the_last_key(self) -> None:
        """In either order. The cluster id is ignored, and where there is a prefix, the request too."""
        for first in ("keys", "cache"):
            manager = CacheManager(LLMConfig(host_mem_pool_cfg=f'{{"memory_size": {BYTES}}}'))
            held = manager.allocate_cache(desc(), [CacheKey(0, 1), CacheKey(0, NONE), CacheKey(1, 5, prefix_id=9)])
            memory = weakref.ref(held.tensors[0])
            if first == "cache":
                manager.deallocate_cache(held)
                assert held.tensors == []
                refused(FULL, "memory_size", manager.allocate_cache, desc())
            manager.remove_cache_key(CacheKey(5, 1))
            manager.remove_cache_key(CacheKey(0, 1))  # unknown: no effect
            manager.remove_cache_key(CacheKey(1, 5))
            gc.collect()
            assert memory() is not None
            manager.remove_cache_key(CacheKey(1, 77, prefix_id=9))
            if first == "keys":
                assert memory() is not None
                manager.deallocate_cache(held)
            assert memory() is None
            manager.allocate_cache(desc())

    def test_deallocating_a_blocks_cache_removes_its_key(self) -> None:
        manager, key = CacheManager(), BlocksCacheKey(0, 7)
        held = manager.allocate_blocks_cache(desc(), key)
        memory = weakref.ref(held.tensors[0])
        refused(INVALID, TAKEN, manager.allocate_blocks_cache, desc(), key)
        manager.deallocate_blocks_cache(held)
        assert memory() is None
        manager.allocate_blocks_cache(desc(), key)

    @pytest.mark.parametrize(
        ("taken", "asked", "free"),
        [
            (CacheKey(0, 1), CacheKey(1, 1), False),
            (CacheKey(0, 1), CacheKey(0, 1, 1), True),
            (CacheKey(0, NONE, 0, 1), CacheKey(0, NONE, 0, 1), False),
            (CacheKey(0, NONE, 0, 1), CacheKey(0, 1), True),
            (CacheKey(0, 5, 0, 1), CacheKey(0, 6, 0, 1), False),
            (CacheKey(0, 5, 0, 1), CacheKey(0, 5), True),
            (CacheKey(0, NONE), CacheKey(0, NONE), True),
        ],
    )
    def test_repeated_keys(self, taken: CacheKey, asked: CacheKey, free: bool) -> None:
        manager = CacheManager()
        manager.allocate_cache(desc(), [taken])
        if free:
            manager.allocate_cache(desc(), [asked, CacheKey(0, 8)])
        else:
            refused(INVALID, TAKEN, CacheManager().allocate_cache, desc(), [taken, asked])
            refused(INVALID, TAKEN, manager.allocate_cache, desc(), [CacheKey(0, 8), asked])
            manager.register_cache(desc(), cache(2, 4, 8), [CacheKey(0, 8)])  # the refused call left no key

    def test_more_keys_than_batch_entries(self) -> None:
        keys = [CacheKey(0, NONE)] * 5
        text = "allocate_cache: cache_keys must hold at most 4 keys (the batch size), got 5"
        refused(INVALID, text, CacheManager().allocate_cache, desc(), keys)
        CacheManager().allocate_cache(desc(), keys[:4])


class TestEnd:
    def test_every_call_refuses_ended_caches(self, device: str) -> None:
        manager = CacheManager()
        plain, blocks = manager.allocate_cache(desc(device)), manager.allocate_blocks_cache(desc(device))
        live, live_blocks = manager.allocate_cache(desc(device)), manager.allocate_blocks_cache(desc(device))
        for _ in range(2):  # the second time: no effect
            manager.deallocate_cache(plain)
            manager.deallocate_blocks_cache(blocks)
        for name, call, *args in (
            ("dst: cache 1", manager.copy_cache, plain, live),
            ("src: cache 1", manager.copy_cache, live, plain),
            ("cache: cache 2", manager.copy_blocks, blocks, {9: [1]}),
            ("src_cache: cache 2", manager.swap_blocks, blocks, live_blocks, {0: 1}),
            ("dst_cache: cache 2", manager.swap_blocks, live_blocks, blocks, {0: 1}),
        ):
            text = f"{call.__name__}: {name} was deallocated or unregistered"
            refused(LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, text, call, *args)

    def test_deallocating_what_was_not_allocated_does_nothing(self) -> None:
        manager, other = CacheManager(), CacheManager()
        owners = cache(2, 4, 8)
        plain, blocks = manager.register_cache(desc(), owners), manager.register_blocks_cache(desc(), owners)
        on_host, theirs = Cache.create_cpu_cache(desc(), owners), other.allocate_cache(desc())
        assert plain.cache_id == theirs.cache_id
        for held in (plain, on_host, theirs):
            manager.deallocate_cache(held)
            assert held.tensors
        for held in (blocks, on_host):
            manager.deallocate_blocks_cache(held)
            assert_same_bytes(held.tensors, owners)
        copy = lambda: manager.copy_cache(plain, theirs, 0, 1)  # noqa: E731
        check_batch(plain.unstacked, theirs.unstacked, [(0, 1, 0, -1)], call=copy)

    def test_addresses_stay_as_they_were(self, device: str) -> None:
        manager = CacheManager()
        owners = cache(2, 4, 8, device=device)
        registered, allocated = manager.register_cache(desc(device), owners), manager.allocate_cache(desc(device))
        unregistered, memory = manager.allocate_blocks_cache(desc(device)), weakref.ref(allocated.tensors[0])
        every = (registered, allocated, unregistered)
        addrs = [list(held.tensor_addrs) for held in every]
        manager.unregister_cache(registered.cache_id)
        manager.deallocate_cache(allocated)
        manager.unregister_cache(unregistered.cache_id)  # also ends an allocated cache
        assert [held.tensor_addrs for held in every] == addrs
        assert addrs[0] == [tensor.data_ptr() for tensor in owners]
        assert not any(held.tensors for held in every)
        assert memory() is None
