# SPDX-License-Identifier: Apache-2.0
"""Pulls and pushes that are refused, with nothing written. On the CPU and the NPU."""

import pytest
import torch
from remote_utils import PEER, Pair, desc, wait_until
from transfer_utils import ours, theirs
from utils import nothing_written, refused

from llm_datadist_torch import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex, LLMStatusCode


@pytest.mark.parametrize(
    ("text", "make", "own", "call", "kwargs"),
    [
        ("no cache has the key ['id', 9, 0]", "allocate_cache(desc(2, 2, 8))", (2, 2, 8), ("id", 9), {}),
        ("the batch index of cache_key (2) out of range [0, 2)", "allocate_cache(desc(2, 2, 8))", (2, 2, 8), ("id", 1, 2), {}),
        ("batch_index (2) out of range [0, 2), the batch of cache", "allocate_cache(desc(2, 2, 8))", (2, 2, 8), ("id", 1), {"batch_index": 2}),
        ("size (36) must be -1 or in [1, 32]", "allocate_cache(desc(2, 2, 16))", (2, 2, 8), ("id", 1), {"size": 36}),
        ("size (0) must be -1 or in [1, 32]", "allocate_cache(desc(2, 2, 16))", (2, 2, 8), ("id", 1), {"size": 0}),
        ("size (64) must be -1 or in [1, 32], the bytes of a row of the cache of cache_key", "allocate_cache(desc(2, 2, 8))", (2, 2, 16), ("id", 1), {}),
        ("both caches must have the same num_tensors, got 2 to write and 3 to read", "allocate_cache(desc(3, 2, 8))", (2, 2, 8), ("id", 1), {}),
        ("both caches must have the same element type, got float32 and int32", "allocate_cache(desc(2, 2, 8, data_type=DataType.DT_INT32))", (2, 2, 8), ("id", 1), {}),
        ("the cache of cache_key must be a contiguous cache, got a blocks cache", "allocate_blocks_cache(desc(2, 2, 8))", (2, 2, 8), ("id", 1), {}),
        ("src_layer_range (range(0, 2)) out of range [0, 1), the layers of the cache", "allocate_cache(desc(2, 2, 8))", (2, 2, 8), ("id", 1), {"src_layer_range": range(2)}),
        ("tensor_num_per_layer (3) must divide num_tensors, 2", "allocate_cache(desc(2, 2, 8))", (2, 2, 8), ("id", 1), {"src_layer_range": range(1), "tensor_num_per_layer": 3}),
        ("number of tensors in the layers, got 4 to write and 2 to read", "allocate_cache(desc(4, 2, 8))", (4, 2, 8), ("id", 1), {"src_layer_range": range(1)}),
        ("must have the step 1", "allocate_cache(desc(4, 2, 8))", (4, 2, 8), ("id", 1), {"src_layer_range": range(0, 4, 2)}),
        ("must have either", "", (4, 2, 8), None, {}),
    ],
)  # fmt: skip
def test_refused_pulls(
    pair: Pair, text: str, make: str, own: tuple[int, ...], call: tuple | None, kwargs: dict
) -> None:
    held = pair.manager.allocate_cache(desc(*own))
    ours(held)
    key = CacheKey(PEER, 2**64 - 1)
    if call is None:
        text = "must have a req_id or a prefix_id"
    else:
        theirs(pair, make)
        key = CacheKeyByIdAndIndex(PEER, *call[1:])
    code = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST if text.startswith("no cache") else LLMStatusCode.LLM_PARAM_INVALID
    with nothing_written(held.tensors[0]):
        refused(code, text, pair.manager.pull_cache, key, held, **kwargs)
    uses = "sum(entry.references for entry in manager._registry._entries.values())"
    wait_until(lambda: pair.peer.get(uses) == 0, "the peer still keeps the cache for it")


@pytest.mark.parametrize(
    ("text", "own", "src", "dst"),
    [
        ("dst_blocks: block 8 out of range [0, 8), the blocks of dst_cache", (2, 8, 8), [0], [8]),
        ("dst_blocks: block -1 out of range", (2, 8, 8), [0], [-1]),
        ("dst_blocks: block 1 would be written twice", (2, 8, 8), [0, 1], [1, 1]),
        ("src_blocks: block 4 out of range [0, 4), the blocks of the cache to read", (2, 8, 8), [4], [0]),
        ("src_blocks and dst_blocks must have the same length, got 1 and 2", (2, 8, 8), [0], [0, 1]),
        ("the same block size, got 32 bytes to read and 64 to write", (2, 8, 16), [0], [0]),
    ],
)
def test_refused_blocks(pair: Pair, text: str, own: tuple[int, ...], src: list[int], dst: list[int]) -> None:
    theirs(pair, "allocate_blocks_cache(desc(2, 4, 8), BlocksCacheKey(1))")
    held = pair.manager.allocate_blocks_cache(desc(*own))
    ours(held)
    with nothing_written(held.tensors[0]):
        refused(LLMStatusCode.LLM_PARAM_INVALID, text, pair.manager.pull_blocks, BlocksCacheKey(PEER), held, src, dst)


def test_refused_lengths(pair: Pair) -> None:
    """Any key: as many blocks to write as to read, also where one list is empty."""
    number, _ = theirs(pair, "allocate_blocks_cache(desc(2, 4, 8))")
    held = pair.manager.allocate_blocks_cache(desc(2, 8, 8))
    ours(held)
    key = CacheKeyByIdAndIndex(PEER, number)
    with nothing_written(held.tensors[0]):
        for call, src, dst in (("pull", [0], []), ("pull", [0], [0, 1]), ("push", [], [0]), ("push", [0, 1], [0])):
            arguments = (key, held, src, dst)
            text = f"{call}_blocks: src_blocks and dst_blocks must have the same length, got {len(src)} and {len(dst)}"
            refused(LLMStatusCode.LLM_PARAM_INVALID, text, getattr(pair.manager, f"{call}_blocks"), *arguments)


def test_wrong_types(pair: Pair) -> None:
    held, blocks = pair.manager.allocate_cache(desc(1, 1, 8)), pair.manager.allocate_blocks_cache(desc(1, 1, 8))
    key, manager = CacheKeyByIdAndIndex(PEER, 1), pair.manager
    for text, call, *args in (
        ("cache_key must be CacheKey or CacheKeyByIdAndIndex, got BlocksCacheKey", manager.pull_cache, BlocksCacheKey(1), held),
        ("cache must be Cache, got NoneType", manager.pull_cache, key, None),
        ("batch_index must be int, got str: '0'", manager.pull_cache, key, held, "0"),
        ("src_blocks must be list or tuple, got dict", manager.pull_blocks, key, blocks, {}),
        ("a block of dst_blocks must be int, got bool: True", manager.pull_blocks, key, blocks, [0], [True]),
        ("dst_cache_key must be CacheKeyByIdAndIndex, got CacheKey", manager.push_cache, CacheKey(1, 1), held),
        ("src_layer_range must be range, got list", manager.push_cache, key, held, 0, [0]),
    ):  # fmt: skip
        with pytest.raises(TypeError) as refusal:
            call(*args)
        assert str(refusal.value) == f"{call.__name__}: {text}"
    with pytest.raises(TypeError, match="unexpected keyword argument 'layers'"):
        manager.pull_cache(key, held, layers=1)
    for call, given, wanted in ((manager.pull_cache, blocks, "contiguous"), (manager.pull_blocks, held, "blocks")):
        refused(LLMStatusCode.LLM_PARAM_INVALID, f"must be a {wanted}", call, key, given)


def test_a_destination_that_requires_grad(pair: Pair) -> None:
    number, _ = theirs(pair, "allocate_cache(desc(1, 1, 8))")
    held = pair.manager.allocate_cache(desc(1, 1, 8))
    held.tensors[0].requires_grad_()
    key = CacheKeyByIdAndIndex(PEER, number)
    refused(LLMStatusCode.LLM_PARAM_INVALID, "requires grad", pair.manager.pull_cache, key, held)
    with torch.no_grad():
        pair.manager.pull_cache(key, held)


def test_without_a_link(pair: Pair) -> None:
    held = pair.manager.allocate_cache(desc(1, 1, 8))
    refused(
        LLMStatusCode.LLM_NOT_YET_LINK,
        "no link to cluster 77",
        pair.manager.pull_cache,
        CacheKeyByIdAndIndex(77, 1),
        held,
    )
    pair.manager.deallocate_cache(held)
    text = f"cache: cache {held.cache_id} was deallocated or unregistered"
    refused(LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, text, pair.manager.pull_cache, CacheKeyByIdAndIndex(PEER, 1), held)
    pair.datadist.finalize()
    refused(
        LLMStatusCode.LLM_ENGINE_FINALIZED, "finalized", pair.manager.pull_cache, CacheKeyByIdAndIndex(PEER, 1), held
    )
