# SPDX-License-Identifier: Apache-2.0
"""CacheManager: copy_blocks and swap_blocks."""

from collections import UserDict, UserList
from types import MappingProxyType

import pytest
from manager_utils import desc, fill
from utils import cache, check_batch, nothing_written, refused

from llm_datadist_torch import Cache, CacheKey, CacheManager, LLMStatusCode


@pytest.mark.parametrize(
    ("blocks", "pairs"),
    [
        ({0: [1, 2], 1: [0], 2: [5], 5: (6,)}, [(1, 0), (0, 1), (2, 0), (5, 2), (6, 5)]),
        ({0: [1, 3, 1, 1]}, [(1, 0), (3, 0)]),  # a destination named twice for one source
        ({}, []),
        ({1: []}, []),
        (MappingProxyType({0: range(1, 4), 4: UserList([5])}), [(1, 0), (2, 0), (3, 0), (5, 4)]),
    ],
)
def test_copy_blocks(device: str, blocks: object, pairs: list[tuple[int, int]]) -> None:
    """Every source is read before anything is written."""
    manager = CacheManager()
    held = manager.allocate_blocks_cache(desc(device, shape=(8, 8)))
    fill(held)
    copies = [(to, of, 0, -1) for to, of in pairs]
    check_batch(held.unstacked, held.unstacked, copies, call=lambda: manager.copy_blocks(held, blocks))


def test_refusals_write_nothing(device: str) -> None:
    manager = CacheManager()
    blocks, plain = manager.allocate_blocks_cache(desc(device)), manager.allocate_cache(desc(device))
    smaller = manager.allocate_blocks_cache(desc(device, shape=(4, 7)))
    fewer = manager.allocate_blocks_cache(desc(device, num_tensors=1))
    copy, swap = manager.copy_blocks, manager.swap_blocks
    outside, twice = "out of range [0, 4), the blocks of", "would be written from block 0 and from block 2"
    same = "src_cache and dst_cache must have the same"
    for text, call, *args in (
        ("copy_blocks: cache must be a blocks cache", copy, plain, {0: [1]}),
        (f"copy_blocks: copy_block_info: block 4 {outside} cache", copy, blocks, {0: [1], 4: [2]}),
        (f"copy_block_info: block -1 {outside} cache", copy, blocks, {0: [1, -1]}),
        (f"copy_block_info: block {2**63} {outside} cache", copy, blocks, {0: [2**63]}),
        (f"copy_blocks: copy_block_info: block 1 {twice}", copy, blocks, {0: [1], 2: [1]}),
        (f"swap_blocks: src_to_dst: block 3 {twice}", swap, blocks, blocks, {0: 3, 1: 2, 2: 3}),
        ("swap_blocks: src_cache must be a blocks cache", swap, plain, blocks, {0: 1}),
        ("swap_blocks: dst_cache must be a blocks cache", swap, blocks, plain, {0: 1}),
        (f"{same} block size, got 32 and 28 bytes", swap, blocks, smaller, {0: 1}),
        (f"src_to_dst: block 9 {outside} dst_cache", swap, blocks, blocks, {0: 9}),
        (f"src_to_dst: block 5 {outside} src_cache", swap, blocks, blocks, {5: 0}),
        ("must have the same num_tensors, got num_tensors 2 and 1", swap, fewer, blocks, {0: 1}),
    ):
        with nothing_written(*blocks.tensors):
            refused(LLMStatusCode.LLM_PARAM_INVALID, text, call, *args)


def test_other_collections() -> None:
    """See test_stateful.py for the bytes that swap_blocks copies."""
    owners = UserList(cache(2, 4, 8))
    addrs = UserList([t.data_ptr() for t in owners])
    blocks = Cache.from_tensors(owners, is_blocks_cache=True)
    swap = lambda: CacheManager().swap_blocks(blocks, blocks, UserDict({0: 3, 2: 0}))  # noqa: E731
    check_batch(owners, owners, [(3, 0, 0, -1), (0, 2, 0, -1)], call=swap)
    assert CacheManager().register_cache(desc(), addrs, UserList([CacheKey(0, 1)])).tensor_addrs == addrs
    assert Cache.create_cpu_cache(desc(), addrs).tensor_addrs == addrs
    assert Cache.from_tensors(owners).tensor_addrs == addrs
