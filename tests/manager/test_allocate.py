# SPDX-License-Identifier: Apache-2.0
"""CacheManager: allocated caches, their memory, limits and keys, and how a cache ends."""

import gc
import weakref

import pytest
import torch
from manager_utils import desc, fill
from utils import assert_same_bytes, cache, reference_batch, refused

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
        expected = reference_batch(held.tensors, held.tensors, [(3, 1, 0, -1)], batch_dim=2)
        CacheManager().copy_blocks(held, {1: [3]})
        assert_same_bytes(held.tensors, expected)

    def test_host_memory_is_pinned_where_there_is_a_device(self, device: str) -> None:
        (stack,) = CacheManager().allocate_cache(desc("cpu")).tensors
        assert stack.is_cpu
        assert stack.is_pinned() == (device == "npu")

    def test_device_placement_without_a_device(self) -> None:
        (stack,) = CacheManager().allocate_cache(desc("npu")).tensors
        assert stack.device.type == ("npu" if hasattr(torch, "npu") else "cpu")

    def test_more_memory_than_available(self) -> None:
        refused(
            LLMStatusCode.LLM_OUT_OF_MEMORY,
            "allocate_cache: cannot allocate shape (1, 1099511627776, 1048576)",
            CacheManager().allocate_cache,
            desc("cpu", 1, (2**40, 2**20)),
        )


class TestLimit:
    def test_limit_is_exact(self, device: str) -> None:
        pool = f'{{"memory_size": {2 * BYTES}}}'
        manager = CacheManager(LLMConfig(**{"mem_pool_cfg" if device == "npu" else "host_mem_pool_cfg": pool}))
        first, _ = manager.allocate_cache(desc(device)), manager.allocate_blocks_cache(desc(device))
        one_byte = CacheDesc(1, (1, 1), DataType.DT_INT8, first.cache_desc.placement)
        text = f"1 bytes for a cache are more than memory_size ({2 * BYTES}) leaves: {2 * BYTES} are in use"
        refused(LLMStatusCode.LLM_OUT_OF_MEMORY, text, manager.allocate_cache, one_byte)
        manager.deallocate_cache(first)
        manager.allocate_cache(desc(device))

    def test_each_placement_has_its_own_limit(self) -> None:
        manager = CacheManager(LLMConfig(mem_pool_cfg=f'{{"memory_size": {BYTES - 1}}}'))
        refused(LLMStatusCode.LLM_OUT_OF_MEMORY, "memory_size", manager.allocate_cache, desc("npu"))
        manager.allocate_cache(desc("cpu"))

    def test_the_limit_of_the_graph_engine(self, device: str) -> None:
        """The smaller limit of the device counts. There is none for host memory."""
        config = LLMConfig(mem_pool_cfg='{"memory_size": 1048576}')
        config.ge_options = {"ge.flowGraphMemMaxSize": str(BYTES)}
        manager = CacheManager(LLMConfig.from_options(config.generate_options()))
        manager.allocate_cache(desc("npu"))
        text = f"{BYTES} bytes for a cache are more than ge.flowGraphMemMaxSize ({BYTES}) leaves: {BYTES} are in use"
        refused(LLMStatusCode.LLM_OUT_OF_MEMORY, text, manager.allocate_cache, desc("npu"))
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

    def test_memory_held_by_keys_counts(self) -> None:
        manager = CacheManager(LLMConfig(host_mem_pool_cfg=f'{{"memory_size": {BYTES}}}'))
        manager.deallocate_cache(manager.allocate_cache(desc(), [CacheKey(0, 1)]))
        refused(LLMStatusCode.LLM_OUT_OF_MEMORY, "memory_size", manager.allocate_cache, desc())
        manager.remove_cache_key(CacheKey(0, 1))
        manager.allocate_cache(desc())

    def test_registered_memory_does_not_count(self) -> None:
        manager = CacheManager(LLMConfig(host_mem_pool_cfg='{"memory_size": 1}'))
        manager.register_cache(desc(), cache(2, 4, 8))

    def test_a_refused_allocation_reserves_nothing(self) -> None:
        big = desc("cpu", 1, (2**35, 2**20))
        manager = CacheManager(LLMConfig(host_mem_pool_cfg=f'{{"memory_size": {big.size}}}'))
        for _ in range(3):
            refused(LLMStatusCode.LLM_OUT_OF_MEMORY, "cannot allocate", manager.allocate_cache, big, [CacheKey(0, 1)])
        assert manager.allocate_cache(desc(), [CacheKey(0, 1)]).cache_id == 1


class TestKeys:
    def test_memory_is_released_after_deallocation_and_the_last_key(self) -> None:
        manager = CacheManager()
        held = manager.allocate_cache(desc(), [CacheKey(0, 1), CacheKey(0, NONE), CacheKey(0, 2)])
        memory = weakref.ref(held.tensors[0])
        manager.remove_cache_key(CacheKey(0, 1))
        manager.deallocate_cache(held)
        gc.collect()
        assert memory() is not None
        assert held.tensors == []
        manager.remove_cache_key(CacheKey(5, 2))  # the cluster id is ignored
        assert memory() is None

    def test_where_there_is_a_prefix_the_request_does_not_count(self) -> None:
        manager = CacheManager()
        held = manager.allocate_cache(desc(), [CacheKey(1, 5, prefix_id=9)])
        memory = weakref.ref(held.tensors[0])
        manager.deallocate_cache(held)
        manager.remove_cache_key(CacheKey(1, 5))
        assert memory() is not None
        manager.remove_cache_key(CacheKey(1, 77, prefix_id=9))
        assert memory() is None

    def test_memory_is_released_after_the_last_key_and_deallocation(self) -> None:
        manager = CacheManager()
        held = manager.allocate_cache(desc(), [CacheKey(0, 1)])
        memory = weakref.ref(held.tensors[0])
        manager.remove_cache_key(CacheKey(0, 1))
        manager.remove_cache_key(CacheKey(0, 1))  # unknown: no effect
        assert memory() is not None
        manager.deallocate_cache(held)
        assert memory() is None

    def test_deallocating_a_blocks_cache_removes_its_key(self) -> None:
        manager = CacheManager()
        held = manager.allocate_blocks_cache(desc(), BlocksCacheKey(0, 7))
        memory = weakref.ref(held.tensors[0])
        refused(
            *(LLMStatusCode.LLM_PARAM_INVALID, "is one of a cache already", manager.allocate_blocks_cache, desc()),
            BlocksCacheKey(0, 7),
        )
        manager.deallocate_blocks_cache(held)
        assert memory() is None
        manager.allocate_blocks_cache(desc(), BlocksCacheKey(0, 7))

    @pytest.mark.parametrize(
        ("taken", "asked", "free"),
        [
            (CacheKey(0, 1), CacheKey(0, 1), False),
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
        for keys in ([asked], [CacheKey(0, 8), asked]):
            if not free:
                refused(
                    LLMStatusCode.LLM_PARAM_INVALID, "is one of a cache already", manager.allocate_cache, desc(), keys
                )
        assert (
            manager.register_cache(desc(), cache(2, 4, 8), [CacheKey(0, 8)]).cache_id == 2
        )  # the refused call left no key
        if free:
            manager.allocate_cache(desc(), [asked])

    def test_one_key_twice_in_one_call(self) -> None:
        keys = [CacheKey(0, 1), CacheKey(1, 1)]
        refused(
            LLMStatusCode.LLM_PARAM_INVALID, "is one of a cache already", CacheManager().allocate_cache, desc(), keys
        )

    def test_more_keys_than_batch_entries(self) -> None:
        keys = [CacheKey(0, NONE)] * 5
        text = "allocate_cache: cache_keys must hold at most 4 keys (the batch size), got 5"
        refused(LLMStatusCode.LLM_PARAM_INVALID, text, CacheManager().allocate_cache, desc(), keys)
        CacheManager().allocate_cache(desc(), keys[:4])


class TestEnd:
    def test_every_call_refuses_ended_caches(self, device: str) -> None:
        manager = CacheManager()
        plain, blocks = manager.allocate_cache(desc(device)), manager.allocate_blocks_cache(desc(device))
        live, live_blocks = manager.allocate_cache(desc(device)), manager.allocate_blocks_cache(desc(device))
        manager.deallocate_cache(plain)
        manager.deallocate_blocks_cache(blocks)
        manager.deallocate_cache(plain)  # a second time: no effect
        manager.deallocate_blocks_cache(blocks)
        for name, call, *args in (
            ("dst", manager.copy_cache, plain, live),
            ("src", manager.copy_cache, live, plain),
            ("cache", manager.copy_blocks, blocks, {0: [1]}),
            ("cache", manager.copy_blocks, blocks, {9: [1]}),
            ("src_cache", manager.swap_blocks, blocks, live_blocks, {0: 1}),
            ("dst_cache", manager.swap_blocks, live_blocks, blocks, {0: 1}),
        ):
            text = f"{call.__name__}: {name}: cache {plain.cache_id if 'copy_cache' in call.__name__ else 2} was"
            refused(LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, text, call, *args)

    def test_ending_a_cache_with_the_wrong_call(self) -> None:
        manager = CacheManager()
        plain, blocks = manager.allocate_cache(desc()), manager.allocate_blocks_cache(desc())
        invalid = LLMStatusCode.LLM_PARAM_INVALID
        refused(invalid, "cache must be a contiguous cache, got a blocks cache", manager.deallocate_cache, blocks)
        refused(invalid, "cache must be a blocks cache, got a contiguous cache", manager.deallocate_blocks_cache, plain)
        for held in (plain, blocks):
            assert held.tensors

    def test_deallocating_what_was_not_allocated_does_nothing(self) -> None:
        manager = CacheManager()
        owners = cache(2, 4, 8)
        plain, blocks = manager.register_cache(desc(), owners), manager.register_blocks_cache(desc(), owners)
        on_host = Cache.create_cpu_cache(desc(), owners)
        for call, held in (
            (manager.deallocate_cache, plain),
            (manager.deallocate_blocks_cache, blocks),
            (manager.deallocate_cache, on_host),
            (manager.deallocate_blocks_cache, on_host),
        ):
            call(held)
            assert_same_bytes(held.tensors, owners)
        manager.copy_cache(plain, on_host, 0, 1)
        manager.copy_blocks(blocks, {1: [2]})

    def test_unregistering_an_allocated_cache_frees_it(self, device: str) -> None:
        pool = f'{{"memory_size": {BYTES}}}'
        manager = CacheManager(LLMConfig(mem_pool_cfg=pool, host_mem_pool_cfg=pool))
        held = manager.allocate_cache(desc(device))
        memory = weakref.ref(held.tensors[0])
        manager.unregister_cache(held.cache_id)
        assert memory() is None
        manager.allocate_cache(desc(device))

    def test_addresses_stay_as_they_were(self, device: str) -> None:
        manager = CacheManager()
        owners = cache(2, 4, 8, device=device)
        registered, allocated = manager.register_cache(desc(device), owners), manager.allocate_cache(desc(device))
        closed = manager.allocate_blocks_cache(desc(device))
        addrs = [list(held.tensor_addrs) for held in (registered, allocated, closed)]
        manager.unregister_cache(registered.cache_id)
        manager.deallocate_cache(allocated)
        manager.finalize()
        assert [held.tensor_addrs for held in (registered, allocated, closed)] == addrs
        assert addrs[0] == [tensor.data_ptr() for tensor in owners]
        assert not registered.tensors and not allocated.tensors and not closed.tensors

    def test_caches_of_another_manager(self) -> None:
        manager, other = CacheManager(), CacheManager()
        mine, theirs = manager.allocate_cache(desc()), other.allocate_cache(desc())
        assert mine.cache_id == theirs.cache_id
        manager.deallocate_cache(theirs)  # unknown: no effect
        assert mine.tensors and theirs.tensors
        fill(theirs)
        expected = reference_batch(mine.tensors, theirs.tensors, [(0, 1, 0, -1)], batch_dim=1)[0][:, 0]
        manager.copy_cache(mine, theirs, 0, 1)
        assert torch.equal(mine.tensors[0][:, 0], expected)
