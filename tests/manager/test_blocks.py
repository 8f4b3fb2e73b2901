# SPDX-License-Identifier: Apache-2.0
"""CacheManager: copy_blocks and swap_blocks."""

from collections import UserDict, UserList
from types import MappingProxyType

import pytest
from manager_utils import desc, fill
from utils import assert_same_bytes, cache, reference_batch, refused, to_host

from llm_datadist_torch import Cache, CacheKey, CacheManager, LLMStatusCode


class TestBlocks:
    def test_copy_blocks_reads_every_source_before_it_writes(self, device: str) -> None:
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
        expected = reference_batch(owners, on_device.unstacked, [(1, 3, 0, -1)])
        manager.swap_blocks(on_device, on_host, {3: 1})
        assert_same_bytes(owners, expected)

    def test_a_destination_named_twice_for_one_source(self, device: str) -> None:
        manager = CacheManager()
        held = manager.allocate_blocks_cache(desc(device))
        fill(held)
        expected = reference_batch(held.tensors, held.tensors, [(1, 0, 0, -1), (3, 0, 0, -1)], batch_dim=1)
        manager.copy_blocks(held, {0: [1, 3, 1, 1]})
        assert_same_bytes(held.tensors, expected)

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
        copy, swap = manager.copy_blocks, manager.swap_blocks
        outside, twice = "out of range [0, 4), the blocks of", "would be written from block 0 and from block 2"
        for text, call, *args in (
            ("copy_blocks: cache must be a blocks cache", copy, plain, {0: [1]}),
            (f"copy_blocks: copy_block_info: block 4 {outside} cache", copy, blocks, {0: [1], 4: [2]}),
            (f"copy_block_info: block -1 {outside} cache", copy, blocks, {0: [1, -1]}),
            (f"copy_block_info: block {2**63} {outside} cache", copy, blocks, {0: [2**63]}),
            (f"copy_blocks: copy_block_info: block 1 {twice}", copy, blocks, {0: [1], 2: [1]}),
            (f"swap_blocks: src_to_dst: block 3 {twice}", swap, blocks, blocks, {0: 3, 1: 2, 2: 3}),
            ("swap_blocks: src_cache must be a blocks cache", swap, plain, blocks, {0: 1}),
            ("swap_blocks: dst_cache must be a blocks cache", swap, blocks, plain, {0: 1}),
            (
                "src_cache and dst_cache must have the same block size, got 32 and 28 bytes",
                swap,
                blocks,
                smaller,
                {0: 1},
            ),
            (f"src_to_dst: block 9 {outside} dst_cache", swap, blocks, blocks, {0: 9}),
            (f"src_to_dst: block 5 {outside} src_cache", swap, blocks, blocks, {5: 0}),
            (
                "dst_cache and src_cache must have the same num_tensors, got num_tensors 2 and 1",
                swap,
                fewer,
                blocks,
                {0: 1},
            ),
            ("copy_cache: dst must be a contiguous cache", manager.copy_cache, blocks, plain),
        ):
            refused(LLMStatusCode.LLM_PARAM_INVALID, text, call, *args)
        assert_same_bytes(blocks.tensors, expected)

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
