# SPDX-License-Identifier: Apache-2.0
"""Pulls and pushes that are refused, with nothing written."""

import pytest
import torch
from remote_utils import PEER, Pair, desc, ours
from utils import nothing_written, refused

from llm_datadist_torch import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex, LLMStatusCode

INVALID = LLMStatusCode.LLM_PARAM_INVALID
ROWS = "allocate_cache(desc(2, 2, 8))"
WIDE = "allocate_cache(desc(2, 2, 16))"
FIRST = {"src_layer_range": range(1)}


@pytest.mark.parametrize(
    ("text", "make", "own", "row", "kwargs"),
    [
        ("the batch index of cache_key (2) out of range [0, 2)", ROWS, (2, 2, 8), 2, {}),
        ("batch_index (2) out of range [0, 2), the batch of cache", ROWS, (2, 2, 8), 0, {"batch_index": 2}),
        ("size (36) must be -1 or in [1, 32]", WIDE, (2, 2, 8), 0, {"size": 36}),
        ("size (0) must be -1 or in [1, 32]", WIDE, (2, 2, 8), 0, {"size": 0}),
        ("size (64) must be -1 or in [1, 32], the bytes of a row of the cache of cache_key", ROWS, (2, 2, 16), 0, {}),
        ("the same num_tensors, got 2 to write and 3 to read", "allocate_cache(desc(3, 2, 8))", (2, 2, 8), 0, {}),
        (
            "the same element type, got float32 and int32",
            f"{ROWS[:-2]}, data_type=DataType.DT_INT32))",
            (2, 2, 8),
            0,
            {},
        ),
        ("must be a contiguous cache, got a blocks cache", "allocate_blocks_cache(desc(2, 2, 8))", (2, 2, 8), 0, {}),
        ("src_layer_range (range(0, 2)) out of range [0, 1)", ROWS, (2, 2, 8), 0, {"src_layer_range": range(2)}),
        ("(3) must be in [1, 2]", ROWS, (2, 2, 8), 0, {**FIRST, "tensor_num_per_layer": 3}),
        ("(2) must divide num_tensors, 3", "allocate_cache(desc(3, 2, 8))", (3, 2, 8), 0, FIRST),
        ("tensors in the layers, got 4 to write and 2 to read", "allocate_cache(desc(4, 2, 8))", (4, 2, 8), 0, FIRST),
        ("must have the step 1", WIDE, (2, 2, 16), 0, {"src_layer_range": range(0, 2, 2)}),
    ],
)
def test_refused_pulls(pair: Pair, text: str, make: str, own: tuple[int, ...], row: int, kwargs: dict) -> None:
    held = pair.manager.allocate_cache(desc(*own))
    ours(held)
    pair.theirs(make)
    with nothing_written(held.tensors[0]):
        refused(INVALID, text, pair.manager.pull_cache, pair.key(row), held, **kwargs)
    pair.their_memory_is_released()


def test_keys_of_no_cache(pair: Pair) -> None:
    held = pair.manager.allocate_cache(desc(2, 2, 8))
    text, key = "must have a req_id or a prefix_id", CacheKey(PEER, 2**64 - 1)
    refused(INVALID, text, pair.manager.pull_cache, key, held)
    text, key = "no cache has the key ['id', 9, 0]", CacheKeyByIdAndIndex(PEER, 9)
    refused(LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, text, pair.manager.pull_cache, key, held)


@pytest.mark.parametrize(
    ("text", "own", "src", "dst"),
    [
        ("dst_blocks: block 8 out of range [0, 8), the blocks of dst_cache", (2, 8, 8), [0], [8]),
        ("dst_blocks: block -1 out of range", (2, 8, 8), [0], [-1]),
        ("dst_blocks: block 1 would be written twice", (2, 8, 8), [0, 1], [1, 1]),
        ("src_blocks: block 4 out of range [0, 4), the blocks of the cache to read", (2, 8, 8), [4], [0]),
        ("the same block size, got 32 bytes to read and 64 to write", (2, 8, 16), [0], [0]),
    ],
)
def test_refused_blocks(pair: Pair, text: str, own: tuple[int, ...], src: list[int], dst: list[int]) -> None:
    pair.theirs("allocate_blocks_cache(desc(2, 4, 8), BlocksCacheKey(1))")
    held = pair.manager.allocate_blocks_cache(desc(*own))
    ours(held)
    with nothing_written(held.tensors[0]):
        refused(INVALID, text, pair.manager.pull_blocks, BlocksCacheKey(PEER), held, src, dst)


def test_refused_lengths(pair: Pair) -> None:
    """As many blocks to write as to read, also where one list is empty."""
    pair.theirs("allocate_blocks_cache(desc(2, 4, 8))")
    held = pair.manager.allocate_blocks_cache(desc(2, 8, 8))
    key = pair.key()
    with nothing_written(held.tensors[0]):
        for call, src, dst in (("pull", [0], []), ("pull", [0], [0, 1]), ("push", [], [0]), ("push", [0, 1], [0])):
            text = f"{call}_blocks: src_blocks and dst_blocks must have the same length, got {len(src)} and {len(dst)}"
            refused(INVALID, text, getattr(pair.manager, f"{call}_blocks"), key, held, src, dst)


def test_wrong_types(pair: Pair) -> None:
    held, blocks = pair.manager.allocate_cache(desc(1, 1, 8)), pair.manager.allocate_blocks_cache(desc(1, 1, 8))
    key, manager = CacheKeyByIdAndIndex(PEER, 1), pair.manager
    pull, blocks_key = manager.pull_cache, BlocksCacheKey(1)
    for text, call, *args in (
        ("cache_key must be CacheKey or CacheKeyByIdAndIndex, got BlocksCacheKey", pull, blocks_key, held),
        ("cache must be Cache, got NoneType", pull, key, None),
        ("batch_index must be int, got str: '0'", pull, key, held, "0"),
        ("src_blocks must be list or tuple, got dict", manager.pull_blocks, key, blocks, {}),
        ("a block of dst_blocks must be int, got bool: True", manager.pull_blocks, key, blocks, [0], [True]),
        ("dst_cache_key must be CacheKeyByIdAndIndex, got CacheKey", manager.push_cache, CacheKey(1, 1), held),
        ("src_layer_range must be range, got list", manager.push_cache, key, held, 0, [0]),
    ):
        with pytest.raises(TypeError) as refusal:
            call(*args)
        assert str(refusal.value) == f"{call.__name__}: {text}"
    with pytest.raises(TypeError, match="unexpected keyword argument 'layers'"):
        pull(key, held, layers=1)
    for call, given, wanted in ((pull, blocks, "contiguous"), (manager.pull_blocks, held, "blocks")):
        refused(INVALID, f"must be a {wanted}", call, key, given)


def test_a_destination_that_requires_grad(pair: Pair) -> None:
    pair.theirs("allocate_cache(desc(1, 1, 8))")
    held = pair.manager.allocate_cache(desc(1, 1, 8))
    held.tensors[0].requires_grad_()
    refused(INVALID, "requires grad", pair.manager.pull_cache, pair.key(), held)
    with torch.no_grad():
        pair.manager.pull_cache(pair.key(), held)


def test_without_a_link_or_a_cache(pair: Pair) -> None:
    held, pull = pair.manager.allocate_cache(desc(1, 1, 8)), pair.manager.pull_cache
    away, key = CacheKeyByIdAndIndex(77, 1), CacheKeyByIdAndIndex(PEER, 1)
    refused(LLMStatusCode.LLM_NOT_YET_LINK, "no link to cluster 77", pull, away, held)
    pair.manager.deallocate_cache(held)
    text = f"cache: cache {held.cache_id} was deallocated or unregistered"
    refused(LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, text, pull, key, held)
    pair.datadist.finalize()
    refused(LLMStatusCode.LLM_ENGINE_FINALIZED, "finalized", pull, key, held)
