# SPDX-License-Identifier: Apache-2.0
"""The caches of a CacheManager: allocated, registered, with keys, within a limit; and copies of their blocks."""

import gc
import weakref
from collections import UserDict, UserList
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
import torch
from utils import assert_same_bytes, cache, filled, reference_batch, to_host

from llm_datadist_torch import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheManager,
    DataType,
    LLMConfig,
    LLMException,
    LLMStatusCode,
    Placement,
)

NONE = 2**64 - 1
BYTES = 2 * 4 * 8 * 4


def desc(device: str = "cpu", num_tensors: int = 2, shape: tuple[int, ...] = (4, 8), **kwargs: Any) -> CacheDesc:
    placement = Placement.HOST if device == "cpu" else Placement.DEVICE
    return CacheDesc(num_tensors, shape, DataType.DT_FLOAT, placement, **kwargs)


def refused(code: LLMStatusCode, text: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    with pytest.raises(LLMException) as refusal:
        call(*args, **kwargs)
    assert refusal.value.status_code is code, refusal.value
    assert text in str(refusal.value)


def fill(held: Cache, seed: int = 0) -> None:
    for index, tensor in enumerate(held.tensors):
        tensor.copy_(filled(*tensor.shape, seed=seed + index))


class TestAllocate:
    def test_a_stacked_cache(self, device: str) -> None:
        manager = CacheManager()
        held = manager.allocate_cache(desc(device, num_tensors=3))
        (stack,) = held.tensors
        assert (stack.shape, stack.dtype, stack.device.type) == ((3, 4, 8), torch.float32, device)
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

    def test_more_than_there_is(self) -> None:
        refused(
            LLMStatusCode.LLM_OUT_OF_MEMORY,
            "allocate_cache: cannot allocate shape (1, 1099511627776, 1048576)",
            CacheManager().allocate_cache,
            desc("cpu", 1, (2**40, 2**20)),
        )


class TestLimit:
    def test_up_to_the_last_byte(self, device: str) -> None:
        pool = f'{{"memory_size": {2 * BYTES}}}'
        manager = CacheManager(LLMConfig(**{"mem_pool_cfg" if device == "npu" else "host_mem_pool_cfg": pool}))
        first, _ = manager.allocate_cache(desc(device)), manager.allocate_blocks_cache(desc(device))
        one_byte = CacheDesc(1, (1, 1), DataType.DT_INT8, first.cache_desc.placement)
        text = f"1 bytes for a cache are more than memory_size ({2 * BYTES}) leaves: {2 * BYTES} are in use"
        refused(LLMStatusCode.LLM_OUT_OF_MEMORY, text, manager.allocate_cache, one_byte)
        manager.deallocate_cache(first)
        manager.allocate_cache(desc(device))

    def test_each_placement_has_its_own(self) -> None:
        manager = CacheManager(LLMConfig(mem_pool_cfg=f'{{"memory_size": {BYTES - 1}}}'))
        refused(LLMStatusCode.LLM_OUT_OF_MEMORY, "memory_size", manager.allocate_cache, desc("npu"))
        manager.allocate_cache(desc("cpu"))

    def test_what_keys_hold_counts(self) -> None:
        manager = CacheManager(LLMConfig(host_mem_pool_cfg=f'{{"memory_size": {BYTES}}}'))
        manager.deallocate_cache(manager.allocate_cache(desc(), [CacheKey(0, 1)]))
        refused(LLMStatusCode.LLM_OUT_OF_MEMORY, "memory_size", manager.allocate_cache, desc())
        manager.remove_cache_key(CacheKey(0, 1))
        manager.allocate_cache(desc())

    def test_registered_memory_does_not_count(self) -> None:
        manager = CacheManager(LLMConfig(host_mem_pool_cfg='{"memory_size": 1}'))
        manager.register_cache(desc(), cache(2, 4, 8))

    def test_a_refused_allocation_takes_nothing(self) -> None:
        manager = CacheManager(LLMConfig(host_mem_pool_cfg=f'{{"memory_size": {2**60}}}'))
        big = desc("cpu", 1, (2**35, 2**20))
        for _ in range(3):
            refused(LLMStatusCode.LLM_OUT_OF_MEMORY, "cannot allocate", manager.allocate_cache, big, [CacheKey(0, 1)])
        assert manager.allocate_cache(desc(), [CacheKey(0, 1)]).cache_id == 1


class TestKeys:
    def test_memory_lives_until_deallocation_and_the_last_key(self) -> None:
        manager = CacheManager()
        held = manager.allocate_cache(desc(), [CacheKey(0, 1), CacheKey(0, NONE), CacheKey(0, 2)])
        memory = weakref.ref(held.tensors[0])
        manager.remove_cache_key(CacheKey(0, 1))
        manager.deallocate_cache(held)
        gc.collect()
        assert memory() is not None
        assert held.tensors == [] and held.tensor_addrs == []
        manager.remove_cache_key(CacheKey(5, 2))  # the cluster is not looked at: it is this one
        assert memory() is None

    def test_keys_removed_first(self) -> None:
        manager = CacheManager()
        held = manager.allocate_cache(desc(), [CacheKey(0, 1)])
        memory = weakref.ref(held.tensors[0])
        manager.remove_cache_key(CacheKey(0, 1))
        manager.remove_cache_key(CacheKey(0, 1))  # not there: nothing to do
        assert memory() is not None
        manager.deallocate_cache(held)
        assert memory() is None

    def test_a_key_of_a_blocks_cache_ends_with_it(self) -> None:
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
        assert manager.register_cache(desc(), cache(2, 4, 8), [CacheKey(0, 8)]).cache_id == 2  # not left behind
        if free:
            manager.allocate_cache(desc(), [asked])

    def test_the_same_key_twice_in_one_call(self) -> None:
        keys = [CacheKey(0, 1), CacheKey(1, 1)]
        refused(
            LLMStatusCode.LLM_PARAM_INVALID, "is one of a cache already", CacheManager().allocate_cache, desc(), keys
        )

    def test_more_keys_than_batch_entries(self) -> None:
        keys = [CacheKey(0, NONE)] * 5
        text = "allocate_cache: cache_keys must hold at most 4 keys (the batch size), got 5"
        refused(LLMStatusCode.LLM_PARAM_INVALID, text, CacheManager().allocate_cache, desc(), keys)
        CacheManager().allocate_cache(desc(), keys[:4])


class TestRegister:
    def test_addresses_are_wrapped_and_not_copied(self, device: str) -> None:
        owners = cache(2, 4, 8, device=device)
        manager = CacheManager()
        held = manager.register_cache(desc(device), [t.data_ptr() for t in owners])
        assert held.tensor_addrs == [t.data_ptr() for t in owners]
        assert_same_bytes(held.tensors, owners)
        source = Cache.from_tensors(cache(2, 4, 8, device=device, seed=9))
        expected = reference_batch(owners, source.tensors, [(3, 1, 4, 8)])
        manager.copy_cache(held, source, 3, 1, 4, 8)
        assert_same_bytes(owners, expected)

    def test_tensors_are_kept_alive(self, device: str) -> None:
        owners = cache(2, 4, 8, device=device)
        alive, expected = weakref.ref(owners[0]), [to_host(t) for t in owners]
        manager = CacheManager()
        held = manager.register_blocks_cache(desc(device), owners, BlocksCacheKey(0))
        del owners
        gc.collect()
        assert_same_bytes(held.tensors, expected)
        assert held.is_blocks_cache
        manager.unregister_cache(held.cache_id)
        gc.collect()
        assert alive() is None

    def test_unregistering(self) -> None:
        manager = CacheManager()
        held = manager.register_cache(desc(), cache(2, 4, 8))
        manager.unregister_cache(held.cache_id)
        manager.unregister_cache(held.cache_id)
        manager.unregister_cache(-1)
        keyed = manager.allocate_cache(desc(), [CacheKey(0, 1)])
        manager.deallocate_cache(keyed)
        manager.unregister_cache(keyed.cache_id)  # ended already, although its memory is still there for the key
        text = "copy_cache: dst: cache 1 was deallocated or unregistered (req_id 3)"
        refused(LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, text, manager.copy_cache, held, held, 0, 1, req_id=3)

    @pytest.mark.parametrize(
        ("addrs", "error", "text"),
        [
            ([8], LLMException, "register_cache: addrs must hold 2 addresses (num_tensors), got 1"),
            ([8, 0], LLMException, "register_cache: addrs[1] (0) must not be 0"),
            ([8, 2**64 - 8], LLMException, "runs past the last address"),
            ([8, 2**64], ValueError, "register_cache: addrs[1] (18446744073709551616) out of range"),
            ([8, True], TypeError, "register_cache: addrs[1] must be int, got bool"),
            ([8, torch.zeros(4, 8)], TypeError, "register_cache: addrs[1] must be int, got Tensor"),
            ([torch.zeros(4, 8), torch.zeros(4, 9)], LLMException, "addrs[1] must be a tensor of ((4, 8), "),
            ([torch.zeros(4, 8), torch.zeros(4, 8).half()], LLMException, "addrs[1] must be a tensor of ((4, 8), "),
            ("8,", TypeError, "register_cache: addrs[0] must be int, got str"),
            (8, TypeError, "register_cache: addrs must be Sequence, got int: 8"),
        ],
    )
    def test_addresses_that_are_refused(self, addrs: Any, error: type, text: str) -> None:
        manager = CacheManager()
        with pytest.raises(error) as refusal:
            manager.register_cache(desc(), addrs)
        assert text in str(refusal.value)
        assert manager.allocate_cache(desc()).cache_id == 1

    def test_remote_access(self) -> None:
        manager = CacheManager()
        manager.register_cache(desc(), cache(2, 4, 8), (), False)
        args = (desc(), cache(2, 4, 8), (), True)
        refused(LLMStatusCode.LLM_FEATURE_NOT_ENABLED, "remote_accessible (True)", manager.register_cache, *args)
        with pytest.raises(TypeError, match="remote_accessible must be bool"):
            manager.register_cache(desc(), cache(2, 4, 8), (), 1)


class TestBlocks:
    def test_copy_blocks_reads_all_before_it_writes(self, device: str) -> None:
        manager = CacheManager()
        held = manager.allocate_blocks_cache(desc(device, shape=(8, 8)))
        fill(held)
        copies = [(1, 0), (0, 1), (2, 0), (5, 2), (6, 5)]
        rows = [(to, of, 0, -1) for to, of in copies]
        expected = reference_batch(held.tensors, held.tensors, rows, batch_dim=1)
        manager.copy_blocks(held, {0: [1, 2], 1: [0], 2: [5], 5: (6,)})
        assert_same_bytes(held.tensors, expected)

    @pytest.mark.parametrize("to_host_side", [True, False])
    def test_swap_blocks(self, device: str, to_host_side: bool) -> None:
        manager = CacheManager()
        on_device, on_host = manager.allocate_blocks_cache(desc("npu")), manager.allocate_blocks_cache(desc("cpu"))
        src, dst = (on_device, on_host) if to_host_side else (on_host, on_device)
        fill(src, 1)
        fill(dst, 2)
        expected = reference_batch(dst.tensors, src.tensors, [(3, 0, 0, -1), (0, 2, 0, -1)], batch_dim=1)
        manager.swap_blocks(src, dst, {0: 3, 2: 0})
        assert_same_bytes(dst.tensors, expected)

    def test_swap_with_a_cache_at_host_addresses(self, device: str) -> None:
        owners = cache(2, 4, 8)
        manager, on_host = CacheManager(), Cache.create_cpu_cache(desc(), [t.data_ptr() for t in owners])
        on_device = manager.allocate_blocks_cache(desc(device))
        fill(on_device)
        expected = reference_batch(owners, on_device.separate_tensors, [(1, 3, 0, -1)])
        manager.swap_blocks(on_device, on_host, {3: 1})
        assert_same_bytes(owners, expected)

    def test_nothing_to_copy(self) -> None:
        manager = CacheManager()
        held = manager.allocate_blocks_cache(desc())
        fill(held)
        expected = [t.clone() for t in held.tensors]
        manager.copy_blocks(held, {})
        manager.copy_blocks(held, {1: []})
        manager.swap_blocks(held, held, {})
        assert_same_bytes(held.tensors, expected)

    def test_refusals_write_nothing(self, device: str) -> None:
        manager = CacheManager()
        blocks, plain = manager.allocate_blocks_cache(desc(device)), manager.allocate_cache(desc(device))
        smaller = manager.allocate_blocks_cache(desc(device, shape=(4, 7)))
        fewer = manager.allocate_blocks_cache(desc(device, num_tensors=1))
        fill(blocks)
        expected = [to_host(t) for t in blocks.tensors]
        invalid = LLMStatusCode.LLM_PARAM_INVALID
        for text, call, *args in (
            ("copy_blocks: cache must be a blocks cache", manager.copy_blocks, plain, {0: [1]}),
            (
                "copy_blocks: copy_block_info: block 4 out of range [0, 4), the blocks of cache",
                manager.copy_blocks,
                blocks,
                {0: [1], 4: [2]},
            ),
            (
                "copy_block_info: block -1 out of range [0, 4), the blocks of cache",
                manager.copy_blocks,
                blocks,
                {0: [1, -1]},
            ),
            ("write the same bytes", manager.copy_blocks, blocks, {0: [1], 2: [1]}),
            ("swap_blocks: src_cache must be a blocks cache", manager.swap_blocks, plain, blocks, {0: 1}),
            ("swap_blocks: dst_cache must be a blocks cache", manager.swap_blocks, blocks, plain, {0: 1}),
            (
                "src_cache and dst_cache must have blocks of one size, got 32 and 28 bytes",
                manager.swap_blocks,
                blocks,
                smaller,
                {0: 1},
            ),
            (
                "src_to_dst: block 9 out of range [0, 4), the blocks of dst_cache",
                manager.swap_blocks,
                blocks,
                blocks,
                {0: 9},
            ),
            (
                "src_to_dst: block 5 out of range [0, 4), the blocks of src_cache",
                manager.swap_blocks,
                blocks,
                blocks,
                {5: 0},
            ),
            ("swap_blocks: ", manager.swap_blocks, fewer, blocks, {0: 1}),
            ("copy_cache: dst must be a contiguous cache", manager.copy_cache, blocks, plain),
        ):
            refused(invalid, text, call, *args)
        assert_same_bytes(blocks.tensors, expected)

    def test_wrong_types(self) -> None:
        manager = CacheManager()
        held = manager.allocate_blocks_cache(desc())
        for call, *args in (
            (manager.copy_blocks, None, {}),
            (manager.copy_blocks, held, [(0, 1)]),
            (manager.copy_blocks, held, {0: 1}),
            (manager.copy_blocks, held, {"0": [1]}),
            (manager.copy_blocks, held, {0: [True]}),
            (manager.swap_blocks, held, None, {}),
            (manager.swap_blocks, held, held, [0, 1]),
            (manager.swap_blocks, held, held, {0: "1"}),
            (manager.allocate_cache, None),
            (manager.allocate_cache, desc(), CacheKey(0, 1)),
            (manager.allocate_cache, desc(), [BlocksCacheKey(0)]),
            (manager.allocate_blocks_cache, desc(), CacheKey(0, 1)),
            (manager.deallocate_cache, 1),
            (manager.unregister_cache, held),
            (manager.remove_cache_key, BlocksCacheKey(0)),
        ):
            with pytest.raises(TypeError, match=f"{call.__name__}: "):
                call(*args)
        text = "copy_blocks: copy_block_info: block 9223372036854775808 out of range [0, 4)"
        refused(LLMStatusCode.LLM_PARAM_INVALID, text, manager.copy_blocks, held, {0: [2**63]})

    def test_other_mappings_and_sequences(self) -> None:
        manager = CacheManager()
        held = manager.allocate_blocks_cache(desc(num_tensors=1, shape=(8, 8)))
        fill(held)
        rows = [(to, 0, 0, -1) for to in (1, 2, 3)] + [(5, 4, 0, -1)]
        expected = reference_batch(held.tensors, held.tensors, rows, batch_dim=1)
        manager.copy_blocks(held, MappingProxyType({0: range(1, 4), 4: UserList([5])}))
        assert_same_bytes(held.tensors, expected)
        manager.swap_blocks(held, held, UserDict({5: 6}))
        keys = UserList([CacheKey(0, 1)])
        addrs = UserList([held.tensor_addrs[0]])
        again = manager.register_cache(held.cache_desc, addrs, keys)
        assert again.tensor_addrs == addrs
        assert Cache.create_cpu_cache(held.cache_desc, addrs).tensor_addrs == addrs
        assert Cache.from_tensors(UserList(again.tensors)).tensor_addrs == addrs


class TestEnd:
    def test_dead_caches_are_refused_everywhere(self, device: str) -> None:
        manager = CacheManager()
        plain, blocks = manager.allocate_cache(desc(device)), manager.allocate_blocks_cache(desc(device))
        live, live_blocks = manager.allocate_cache(desc(device)), manager.allocate_blocks_cache(desc(device))
        manager.deallocate_cache(plain)
        manager.deallocate_blocks_cache(blocks)
        manager.deallocate_cache(plain)  # again: nothing to do
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

    def test_the_wrong_way_to_end_a_cache(self) -> None:
        manager = CacheManager()
        plain, blocks = manager.allocate_cache(desc()), manager.allocate_blocks_cache(desc())
        registered = manager.register_cache(desc(), cache(2, 4, 8))
        invalid = LLMStatusCode.LLM_PARAM_INVALID
        refused(invalid, "cache must be a contiguous cache, got a blocks cache", manager.deallocate_cache, blocks)
        refused(invalid, "cache must be a blocks cache, got a contiguous cache", manager.deallocate_blocks_cache, plain)
        refused(invalid, "cache 3 is registered, not allocated", manager.deallocate_cache, registered)
        refused(invalid, "cache_id (1) is an allocated cache", manager.unregister_cache, 1)
        for held in (plain, blocks, registered):
            assert held.tensors

    def test_caches_of_another_manager(self) -> None:
        manager, other = CacheManager(), CacheManager()
        mine, theirs = manager.allocate_cache(desc()), other.allocate_cache(desc())
        assert mine.cache_id == theirs.cache_id
        manager.deallocate_cache(theirs)  # not there: nothing to do
        assert mine.tensors and theirs.tensors
        fill(theirs)
        expected = reference_batch(mine.tensors, theirs.tensors, [(0, 1, 0, -1)], batch_dim=1)[0][:, 0]
        manager.copy_cache(mine, theirs, 0, 1)
        assert torch.equal(mine.tensors[0][:, 0], expected)
