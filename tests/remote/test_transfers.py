# SPDX-License-Identifier: Apache-2.0
"""Pull and push between two processes: the bytes, and what names them. On the CPU and the NPU."""

import threading

import pytest
import torch
from remote_utils import PEER, Pair, desc, wait_until
from transfer_utils import expect, ours, theirs
from utils import as_bytes, filled, refused, to_host

from llm_datadist_torch import (
    BlocksCacheKey,
    Cache,
    CacheKey,
    CacheKeyByIdAndIndex,
    LLMException,
    LLMStatusCode,
)


class TestPullCache:
    @pytest.mark.parametrize("row_shape", [(24,), (3, 5), (1 << 18,)])
    def test_by_request(self, pair: Pair, row_shape: tuple[int, ...]) -> None:
        _, sent = theirs(pair, f"allocate_cache(desc(4, 2, *{row_shape}), [CacheKey(1, 7), CacheKey(1, 8)])")
        held = pair.manager.allocate_cache(desc(4, 3, *row_shape))
        expected = ours(held)
        expected[:, 2] = sent[:, 1]
        pair.manager.pull_cache(CacheKey(PEER, 8), held, 2)
        expect(held, expected)

    def test_of_many_megabytes(self, pair: Pair) -> None:
        """More than one request to the engine, more than one piece of a staging buffer, rows that fit neither."""
        _, sent = theirs(pair, "allocate_cache(desc(3, 1, 27 << 18, 1), [CacheKey(1, 7)])")
        held = pair.manager.allocate_cache(desc(3, 1, 27 << 18, 1))
        ours(held)
        pair.manager.pull_cache(CacheKey(PEER, 7), held)
        expect(held, sent)

    def test_part_of_a_row(self, pair: Pair) -> None:
        number, sent = theirs(pair, "allocate_cache(desc(4, 2, 24))")
        held = pair.manager.allocate_cache(desc(4, 3, 30))
        expected = ours(held)
        expected[:, 1, :5] = sent[:, 1, :5]
        pair.manager.pull_cache(CacheKeyByIdAndIndex(PEER, number, 1), held, 1, 20)
        expect(held, expected)

    @pytest.mark.parametrize("per_layer", [1, 2])
    def test_layers(self, pair: Pair, per_layer: int) -> None:
        number, sent = theirs(pair, "allocate_cache(desc(8, 2, 24))")
        held = pair.manager.allocate_cache(desc(6, 2, 24))
        expected = ours(held)
        expected[per_layer : 3 * per_layer, 0] = sent[2 * per_layer : 4 * per_layer, 1]
        pair.manager.pull_cache(
            CacheKeyByIdAndIndex(PEER, number, 1),
            held,
            src_layer_range=range(2, 4),
            dst_layer_range=range(1, 3),
            tensor_num_per_layer=per_layer,
        )
        expect(held, expected)

    def test_list_of_tensors_into_a_view_with_gaps(self, pair: Pair, device: str) -> None:
        pair.peer.do(
            f"tensors = cache(3, 2, 24, device={device!r}, seed=5)\nheld = manager.register_cache(desc(3, 2, 24), tensors)"
        )
        sent = pair.peer.get("[to_host(t) for t in tensors]")
        whole = [filled(4, 40, seed=i, device=device) for i in range(3)]
        held = Cache.from_tensors([tensor[:, 8:32] for tensor in whole])
        expected = [to_host(tensor) for tensor in whole]
        for tensor, row in zip(expected, sent, strict=True):
            tensor[3, 8:32] = row[1]
        versions = [tensor._version for tensor in whole]
        pair.manager.pull_cache(CacheKeyByIdAndIndex(PEER, pair.peer.get("held.cache_id"), 1), held, 3)
        assert all(map(torch.equal, map(as_bytes, whole), map(as_bytes, expected)))
        assert all(tensor._version > version for tensor, version in zip(whole, versions, strict=True))

    def test_batch_in_a_later_dimension(self, pair: Pair) -> None:
        """Each index before the batch is a tensor by itself; size is of each."""
        number, sent = theirs(pair, "allocate_cache(desc(2, 3, 2, 6, batch_dim_index=1))")
        held = pair.manager.allocate_cache(desc(2, 3, 4, 6, batch_dim_index=1))
        expected = ours(held)
        expected[:, :, 3, :4] = sent[:, :, 1, :4]
        pair.manager.pull_cache(CacheKeyByIdAndIndex(PEER, number, 1), held, 3, 16)
        expect(held, expected)

    def test_what_the_stream_still_computes_is_sent(self, pair: Pair) -> None:
        number, _ = theirs(pair, "allocate_cache(desc(4, 2, 1 << 16))")
        pair.peer.do("for _ in range(50): held.tensors[0].fill_(0)\nheld.tensors[0].fill_(3)")
        held = pair.manager.allocate_cache(desc(4, 1, 1 << 16))
        pair.manager.pull_cache(CacheKeyByIdAndIndex(PEER, number), held)
        assert bool((to_host(held.tensors[0]) == 3).all())


class TestKeys:
    def test_a_pull_removes_the_key_of_a_request(self, pair: Pair) -> None:
        """And with it the memory of a deallocated cache, which lived for the key."""
        _, sent = theirs(pair, "allocate_cache(desc(2, 2, 8), [CacheKey(1, 7), CacheKey(1, 8)])")
        pair.peer.do("manager.deallocate_cache(held)\nassert manager._registry._entries")
        held = pair.manager.allocate_cache(desc(2, 1, 8))
        for request in (8, 7):
            pair.manager.pull_cache(CacheKey(PEER, request), held)
            expect(held, sent[:, request - 7 : request - 6])
            text = f"pull_cache: cluster 1: no cache has the key ['request', {request}, 0]"
            wait_until(lambda: pair.peer.get(f"('request', {request}, 0) not in manager._registry._cache_of"), "key")  # noqa: B023
            refused(LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, text, pair.manager.pull_cache, CacheKey(PEER, request), held)
        wait_until(lambda: not pair.peer.get("len(manager._registry._entries)"), "the memory is still there")
        assert pair.peer.get("sum(manager._registry._used.values())") == 0

    def test_layer_by_layer(self, pair: Pair) -> None:
        theirs(pair, "allocate_cache(desc(4, 1, 8), [CacheKey(1, 7)])")
        held = pair.manager.allocate_cache(desc(4, 1, 8))
        for layer in (0, 0, 1):
            layers = {"src_layer_range": range(layer, layer + 1), "dst_layer_range": range(1, 2)}
            pair.manager.pull_cache(CacheKey(PEER, 7), held, **layers)
        wait_until(lambda: not pair.peer.get("manager._registry._cache_of"), "the key stays")

    @pytest.mark.parametrize(
        ("make", "key"),
        [
            ("allocate_cache(desc(2, 1, 8), [CacheKey(1, 2**64 - 1, prefix_id=3)])", CacheKey(1, 0, prefix_id=3)),
            (
                "register_cache(desc(2, 1, 8), manager.allocate_cache(desc(2, 1, 8)).unstacked, [CacheKey(1, 7)])",
                CacheKey(1, 7),
            ),
        ],
    )
    def test_keys_that_stay(self, pair: Pair, make: str, key: CacheKey) -> None:
        theirs(pair, make)
        held = pair.manager.allocate_cache(desc(2, 1, 8))
        for _ in range(3):
            pair.manager.pull_cache(key, held)

    def test_a_refused_pull_keeps_the_key(self, pair: Pair) -> None:
        theirs(pair, "allocate_cache(desc(2, 1, 8), [CacheKey(1, 7)])")
        wrong, held = (pair.manager.allocate_cache(desc(count, 1, 8)) for count in (3, 2))
        with pytest.raises(LLMException):
            pair.manager.pull_cache(CacheKey(PEER, 7), wrong)
        pair.manager.pull_cache(CacheKey(PEER, 7), held)

    def test_host_memory_is_not_accessible_by_default(self, pair: Pair) -> None:
        key = CacheKeyByIdAndIndex(PEER, 1)
        make = (
            "held = manager.register_cache(CacheDesc(1, (1, 8), DataType.DT_FLOAT, Placement.HOST), [torch.ones(1, 8)]"
        )
        held = pair.manager.allocate_cache(desc(1, 1, 8))
        pair.peer.do(f"{make})")
        text = "cluster 1: cache 1 was registered with remote_accessible=False, the default in host memory"
        refused(LLMStatusCode.LLM_PARAM_INVALID, text, pair.manager.pull_cache, key, held)
        pair.peer.do(f"{make}, remote_accessible=True)")
        pair.manager.pull_cache(CacheKeyByIdAndIndex(PEER, 2), held)
        assert bool((to_host(held.tensors[0]) == 1).all())


class TestBlocks:
    @pytest.mark.parametrize("count", [1, 17])
    def test_pull(self, pair: Pair, count: int) -> None:
        _, sent = theirs(pair, "allocate_blocks_cache(desc(4, 32, 16), BlocksCacheKey(1))")
        held = pair.manager.allocate_blocks_cache(desc(4, 64, 16))
        expected = ours(held)
        src = torch.randperm(32, generator=torch.Generator().manual_seed(count))[:count].tolist()
        dst = torch.randperm(64, generator=torch.Generator().manual_seed(count))[:count].tolist()
        expected[:, dst] = sent[:, src]
        pair.manager.pull_blocks(BlocksCacheKey(PEER), held, src, dst)
        expect(held, expected)

    def test_pull_large_blocks(self, pair: Pair) -> None:
        _, sent = theirs(pair, "allocate_blocks_cache(desc(2, 4, 3 << 19), BlocksCacheKey(1))")
        held = pair.manager.allocate_blocks_cache(desc(2, 4, 3 << 19))
        expected = ours(held)
        expected[:, [3, 0]] = sent[:, [1, 2]]
        pair.manager.pull_blocks(BlocksCacheKey(PEER), held, [1, 2], [3, 0])
        expect(held, expected)

    @pytest.mark.parametrize("blocks", [[4, 1], [6, 0, 3]])
    def test_pull_a_row_into_blocks(self, pair: Pair, blocks: list[int]) -> None:
        """A row of 40 elements fills two blocks of 16, and half of a third."""
        _, sent = theirs(pair, "allocate_cache(desc(4, 2, 40), [CacheKey(1, 6), CacheKey(1, 7)])")
        held = pair.manager.allocate_blocks_cache(desc(4, 8, 16))
        expected = ours(held)
        for number, block in enumerate(blocks):
            part = sent[:, 1, number * 16 : number * 16 + 16]
            expected[:, block, : part.shape[1]] = part
        pair.manager.pull_blocks(CacheKey(PEER, 7), held, dst_blocks=blocks)
        expect(held, expected)
        wait_until(lambda: pair.peer.get("('request', 7, 0) not in manager._registry._cache_of"), "the key stays")

    def test_push(self, pair: Pair) -> None:
        _, before = theirs(pair, "allocate_blocks_cache(desc(4, 32, 16), BlocksCacheKey(1))")
        held = pair.manager.allocate_blocks_cache(desc(4, 8, 16))
        sent = ours(held)
        before[2:, [31, 4]] = sent[2:, [0, 7]]
        layers = range(1, 2)
        pair.manager.push_blocks(BlocksCacheKey(PEER), held, [0, 7], [31, 4], layers, layers)
        assert torch.equal(pair.peer.get("as_bytes(held.tensors[0])"), as_bytes(before))


class TestPushCache:
    @pytest.mark.parametrize("elements", [24, 5 << 18])
    def test_row(self, pair: Pair, elements: int) -> None:
        number, before = theirs(pair, f"allocate_cache(desc(4, 3, {elements}))")
        held = pair.manager.allocate_cache(desc(4, 2, elements))
        before[:, 2] = ours(held)[:, 1]
        pair.manager.push_cache(CacheKeyByIdAndIndex(PEER, number, 2), held, 1)
        assert torch.equal(pair.peer.get("as_bytes(held.tensors[0])"), as_bytes(before))

    def test_part_of_a_row(self, pair: Pair) -> None:
        number, before = theirs(pair, "allocate_cache(desc(4, 3, 24))")
        held = pair.manager.allocate_cache(desc(4, 2, 30))
        before[:, 0, :6] = ours(held)[:, 1, :6]
        pair.manager.push_cache(CacheKeyByIdAndIndex(PEER, number), held, 1, size=24)
        assert torch.equal(pair.peer.get("as_bytes(held.tensors[0])"), as_bytes(before))


def test_both_ways_and_from_many_threads(pair: Pair) -> None:
    """The process that listens pulls over the same link, at the same time."""
    number, sent = theirs(pair, "allocate_cache(desc(4, 8, 512))")
    held = [pair.manager.allocate_cache(desc(4, 8, 512)) for _ in range(4)]
    source = ours(held[0])
    pull = (
        f"for row in list(range(8)) * 5: manager.pull_cache(CacheKeyByIdAndIndex(2, {held[0].cache_id}, row), own, row)"
    )
    running = pair.peer.start(f"own = manager.allocate_cache(desc(4, 8, 512))\n{pull}")

    def pull_all(into: Cache) -> None:
        for row in range(8):
            pair.manager.pull_cache(CacheKeyByIdAndIndex(PEER, number, row), into, row)

    threads = [threading.Thread(target=pull_all, args=(into,)) for into in held[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    running()
    for into in held[1:]:
        expect(into, sent)
    assert torch.equal(pair.peer.get("as_bytes(own.tensors[0])"), as_bytes(source))
