# SPDX-License-Identifier: Apache-2.0
"""What CacheManager itself refuses: Python types, LLM-DataDist's integer types and kinds of caches."""

import logging
import re
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import pytest
import torch
from manager_utils import desc
from utils import cache, filled, nothing_written, refused

from llm_datadist_torch import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheManager,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    MemInfo,
    Memtype,
    Placement,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

INVALID = LLMStatusCode.LLM_PARAM_INVALID
NUMBERS = ["dst_batch_index", "src_batch_index", "offset", "size", "req_id"]


class Number(IntEnum):
    ZERO, ONE, FOUR, EIGHT = 0, 1, 4, 8


class Index:
    """An integer that is not an int, as those of NumPy."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


class TestCopyCache:
    def setup_method(self) -> None:
        self.dst, self.src = (Cache.from_tensors(cache(2, 4, 8, seed=seed)) for seed in (0, 1))

    def refused(self, error: type[Exception], text: str, *args: object, **kwargs: object) -> Exception:
        with nothing_written(*self.dst.tensors), pytest.raises(error, match=re.escape(text)) as refusal:
            CacheManager().copy_cache(*(args or (self.dst, self.src)), **kwargs)
        return refusal.value

    @pytest.mark.parametrize("wrong", [None, 1, "cache", [torch.zeros(4, 8)]], ids=lambda wrong: type(wrong).__name__)
    def test_caches_of_another_type(self, wrong: object) -> None:
        """Messages print no tensors."""
        error = self.refused(TypeError, "dst must be Cache, got", wrong, self.src)
        assert "tensor(" not in str(error)
        self.refused(TypeError, "src must be Cache, got", self.dst, wrong)

    @pytest.mark.parametrize("name", NUMBERS)
    def test_numbers_of_another_type(self, name: str) -> None:
        for wrong in (True, 1.0, "1", [1], *([None] if name != "req_id" else [])):
            self.refused(TypeError, f"{name} must be int, got {type(wrong).__name__}", **{name: wrong})

    @pytest.mark.parametrize("kind", [Number, Index])
    def test_other_ints(self, kind: Callable[[int], Any], caplog: pytest.LogCaptureFixture) -> None:
        """For every number, also in blocks and descriptions. Messages have the number."""
        zero, one, four, eight = map(kind, (0, 1, 4, 8))
        with caplog.at_level(logging.DEBUG, "LLM_DATADIST"):
            CacheManager().copy_cache(self.dst, self.src, one, zero, four, eight, eight)
        assert torch.equal(self.dst.tensors[0][1, 1:3], self.src.tensors[0][0, 1:3])
        assert "offset 4, size 8 (req_id 8)" in caplog.text
        self.refused(LLMException, "(req_id 1)", self.dst, self.src, four, req_id=one)

        described = CacheDesc(one, [four, eight], DataType.DT_INT8, Placement.HOST, zero)
        blocks = CacheManager().allocate_blocks_cache(described)
        blocks.tensors[0].copy_(filled(1, 4, 8, dtype=torch.int8))
        CacheManager().copy_blocks(blocks, {zero: [one]})
        assert torch.equal(blocks.tensors[0][0, 1], blocks.tensors[0][0, 0])

    @pytest.mark.parametrize(
        ("name", "limits"),
        list(zip(NUMBERS, [[0, 2**32 - 1]] * 2 + [[0, 2**64 - 1], [-(2**63), 2**63 - 1], [0, 2**64 - 1]], strict=True)),
    )
    def test_numbers_outside_their_integer_type(self, name: str, limits: list[int]) -> None:
        for value in (limits[0] - 1, limits[1] + 1):
            error = self.refused(ValueError, f"{name} ({value}) out of range {limits}", **{name: value})
            assert not isinstance(error, LLMException)

    @pytest.mark.parametrize("offset", [2**63, 2**64 - 1])
    def test_offset_above_int64(self, offset: int) -> None:
        text = f"copy_cache: offset ({offset}) must be at most {2**63 - 1}: no row is longer (req_id 7)"
        copy_cache = CacheManager().copy_cache
        refused(INVALID, text, copy_cache, self.dst, self.src, offset=offset, req_id=7)

    def test_kinds_of_caches(self) -> None:
        blocks = Cache.from_tensors(cache(2, 4, 8), is_blocks_cache=True)
        two, one = (Cache.from_tensors(filled(count, 4, 8), batch_dim=1) for count in (2, 1))
        for text, *args in (
            ("copy_cache: dst must be a contiguous cache, got a blocks cache", blocks, self.src),
            ("copy_cache: src must be a contiguous cache, got a blocks cache", self.dst, blocks),
            ("copy_cache: dst and src must have the same num_tensors, got num_tensors 2 and 1", two, one),
        ):
            refused(INVALID, text, CacheManager().copy_cache, *args)


def test_ints_of_other_calls_and_types() -> None:
    """They are kept as plain ints, because messages to other processes have them."""
    five, manager = Index(5), CacheManager()
    address = filled(4, 8)
    config, cluster = LLMConfig(sync_kv_timeout=five, device_id=[five]), LLMClusterInfo()
    config.link_retry_count = config.output_max_size = five
    cluster.remote_cluster_id = five
    cluster.append_remote_ip_info(five, five)
    described = desc()
    described.update_dim(Index(0), five)
    transfer = TransferConfig(five, [five], src_batch_index=five)
    assert [
        *(config.sync_kv_timeout, config.link_retry_count, config.output_max_size, config.options["ge.exec.deviceId"]),
        *(
            cluster.remote_cluster_id,
            cluster.remote_ip_info_list,
            described.dims,
            LLMDataDist(LLMRole.MIX, five).cluster_id,
        ),
        *(transfer.dst_cluster_id, transfer.dst_addrs, transfer.src_batch_index),
        TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(0, 0), src_batch_index=five).src_batch_index,
        *(
            MemInfo(Memtype.MEM_TYPE_HOST, five, five).addr,
            CacheKey(five, five),
            CacheKeyByIdAndIndex(five, five, five),
        ),
    ] == [5, 5, 5, "5", 5, [("0.0.0.5", 5)], (5, 8), 5, 5, [5], 5, 5, 5, CacheKey(5, 5), CacheKeyByIdAndIndex(5, 5, 5)]
    held = manager.register_blocks_cache(desc(num_tensors=1), [Index(address.data_ptr())])
    assert held.tensor_addrs == [address.data_ptr()]
    assert Cache.from_tensors(filled(1, 4, 8), batch_dim=Index(1)).num_tensors == 1
    plain, one = Cache.from_tensors(filled(4, 8)), Index(1)
    for call, *args in (
        (manager.pull_cache, CacheKey(0, 1), plain, one, one),
        (manager.push_cache, CacheKeyByIdAndIndex(0, 1), plain, one, None, None, one, one),
        (manager.pull_blocks, BlocksCacheKey(0), held, [one], [one]),
        (manager.push_blocks, BlocksCacheKey(0), held, [one], [one]),
    ):
        with pytest.raises(LLMException, match="LLM_NOT_YET_LINK"):
            call(*args)
    manager.unregister_cache(Index(held.cache_id))
    assert not held.tensors


def test_wrong_types_in_other_calls() -> None:
    manager = CacheManager()
    held, allocate = manager.allocate_blocks_cache(desc()), manager.allocate_cache
    copy, swap = manager.copy_blocks, manager.swap_blocks
    for text, call, *args in (
        ("cache must be Cache, got NoneType", copy, None, {}),
        ("copy_block_info must be Mapping, got list", copy, held, [(0, 1)]),
        ("copy_block_info[0] must be Sequence, got int: 1", copy, held, {0: 1}),
        ("a block of copy_block_info must be int, got str: '0'", copy, held, {"0": [1]}),
        ("a block of copy_block_info must be int, got bool: True", copy, held, {0: [True]}),
        ("src_cache must be Cache, got list", swap, [], held, {}),
        ("dst_cache must be Cache, got NoneType", swap, held, None, {}),
        ("src_to_dst must be Mapping, got list", swap, held, held, [0, 1]),
        ("a block of src_to_dst must be int, got str: '1'", swap, held, held, {0: "1"}),
        ("cache_desc must be CacheDesc, got NoneType", allocate, None),
        ("cache_desc must be CacheDesc, got NoneType", manager.allocate_blocks_cache, None),
        ("cache_desc must be CacheDesc, got NoneType", manager.register_cache, None, [8]),
        ("cache_desc must be CacheDesc, got NoneType", manager.register_blocks_cache, None, [8]),
        ("addrs must be Sequence, got NoneType", manager.register_blocks_cache, desc(), None),
        ("cache_keys must be Sequence, got CacheKey", allocate, desc(), CacheKey(0, 1)),
        ("cache_keys[0] must be CacheKey, got BlocksCacheKey", allocate, desc(), [BlocksCacheKey(0)]),
        ("blocks_cache_key must be BlocksCacheKey, got str: '1'", manager.allocate_blocks_cache, desc(), "1"),
        ("cache must be Cache, got int: 1", manager.deallocate_cache, 1),
        ("cache must be Cache, got int: 1", manager.deallocate_blocks_cache, 1),
        ("cache_id must be int, got Cache", manager.unregister_cache, held),
        ("cache_key must be CacheKey, got BlocksCacheKey", manager.remove_cache_key, BlocksCacheKey(0)),
    ):
        with pytest.raises(TypeError) as refusal:
            call(*args)
        assert str(refusal.value) == f"{call.__name__}: {text}"
