# SPDX-License-Identifier: Apache-2.0
"""Pull and push between two processes: the bytes, and what names them. On the CPU and the NPU."""

import threading

import pytest
import torch
from numpy import s_
from remote_utils import PEER, Pair, code_of, desc, expect, ours, wait_until
from utils import assert_same_bytes, filled, refused, to_host

from llm_datadist_torch import BlocksCacheKey, Cache, CacheKey, LLMStatusCode

pytestmark = pytest.mark.usefixtures("device")
GONE = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST


# The shapes of both caches, the row to read, the arguments of pull_cache, what is written and what is read.
PULLS = {
    "rows": ((4, 2, 3, 5), (4, 3, 3, 5), 1, {"batch_index": 2}, s_[:, 2], s_[:, 1]),
    "large rows": ((4, 2, 1 << 18), (4, 3, 1 << 18), 1, {"batch_index": 2}, s_[:, 2], s_[:, 1]),
    # More than one request to the engine, more than one piece of a staging buffer, rows that fit neither.
    "many megabytes": ((3, 1, 27 << 18, 1), (3, 1, 27 << 18, 1), 0, {}, s_[:], s_[:]),
    "a part of a row": ((4, 2, 24), (4, 3, 30), 1, {"batch_index": 1, "size": 20}, s_[:, 1, :5], s_[:, 1, :5]),
    **{
        f"layers of {n}": (
            *((8, 2, 24), (6, 2, 24), 1),
            {"src_layer_range": range(2, 4), "dst_layer_range": range(1, 3), "tensor_num_per_layer": n},
            *(s_[n : 3 * n, 0], s_[2 * n : 4 * n, 1]),
        )
        for n in (1, 2)
    },
}


class TestPullCache:
    @pytest.mark.parametrize("name", PULLS)
    def test_bytes(self, pair: Pair, name: str) -> None:
        shape, own, row, kwargs, written, read = PULLS[name]
        sent = pair.theirs(f"allocate_cache(desc{shape})")
        held = pair.manager.allocate_cache(desc(*own))
        expected = ours(held)
        expected[written] = sent[read]
        pair.manager.pull_cache(pair.key(row), held, **kwargs)
        expect(held, expected)

    def test_list_of_tensors_into_a_view_with_gaps(self, pair: Pair, device: str) -> None:
        pair.peer.do(f"tensors = cache(3, 2, 24, device={device!r}, seed=5)")
        pair.peer.do("held = manager.register_cache(desc(3, 2, 24), tensors)")
        whole = [filled(4, 40, seed=i, device=device) for i in range(3)]
        held = Cache.from_tensors([tensor[:, 8:32] for tensor in whole])
        expected = [to_host(tensor) for tensor in whole]
        for tensor, row in zip(expected, pair.peer.get("[to_host(t)[1] for t in tensors]"), strict=True):
            tensor[3, 8:32] = row
        versions = [tensor._version for tensor in whole]
        pair.manager.pull_cache(pair.key(1), held, 3)
        assert_same_bytes(whole, expected)
        assert all(tensor._version > version for tensor, version in zip(whole, versions, strict=True))

    def test_batch_in_a_later_dimension(self, pair: Pair) -> None:
        """Each index before the batch is a tensor by itself; size is of each."""
        sent = pair.theirs("allocate_cache(desc(2, 3, 2, 6, batch_dim_index=1))")
        held = pair.manager.allocate_cache(desc(2, 3, 4, 6, batch_dim_index=1))
        expected = ours(held)
        expected[:, :, 3, :4] = sent[:, :, 1, :4]
        pair.manager.pull_cache(pair.key(1), held, 3, 16)
        expect(held, expected)

    def test_what_the_stream_still_computes_is_sent(self, pair: Pair) -> None:
        pair.theirs("allocate_cache(desc(4, 2, 1 << 16))")
        pair.peer.do("for _ in range(50): held.tensors[0].fill_(0)\nheld.tensors[0].fill_(3)")
        held = pair.manager.allocate_cache(desc(4, 1, 1 << 16))
        pair.manager.pull_cache(pair.key(), held)
        assert bool((to_host(held.tensors[0]) == 3).all())


class TestKeys:
    def test_a_pull_removes_the_key_of_a_request(self, pair: Pair) -> None:
        """And with it the memory of a deallocated cache, which lived for the key."""
        sent = pair.theirs("allocate_cache(desc(2, 2, 8), [CacheKey(1, 7), CacheKey(1, 8)])")
        pair.peer.do("alive = weakref.ref(held.tensors[0])\nmanager.deallocate_cache(held)")
        held = pair.manager.allocate_cache(desc(2, 1, 8))
        for request in (8, 7):
            assert pair.peer.get("alive() is not None")
            pair.manager.pull_cache(CacheKey(PEER, request), held)
            expect(held, sent[:, request - 7 : request - 6])
            key = CacheKey(PEER, request)
            wait_until(lambda key=key: code_of(pair.manager.pull_cache, key, held) is GONE, "the key is there")
            text = f"pull_cache: cluster 1: no cache has the key ['request', {request}, 0]"
            refused(GONE, text, pair.manager.pull_cache, key, held)
        wait_until(lambda: pair.peer.get("alive() is None"), "the memory is still there")

    def test_layer_by_layer(self, pair: Pair) -> None:
        """The key goes with the last layer."""
        pair.theirs("allocate_cache(desc(4, 1, 8), [CacheKey(1, 7)])")
        held = pair.manager.allocate_cache(desc(4, 1, 8))
        for layer in (0, 0, 1):
            layers = {"src_layer_range": range(layer, layer + 1), "dst_layer_range": range(1, 2)}
            pair.manager.pull_cache(CacheKey(PEER, 7), held, **layers)
        layers["src_layer_range"] = range(0, 1)
        wait_until(
            lambda: code_of(pair.manager.pull_cache, CacheKey(PEER, 7), held, **layers) is GONE, "the key is there"
        )

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
        pair.theirs(make)
        held = pair.manager.allocate_cache(desc(2, 1, 8))
        for _ in range(3):
            pair.manager.pull_cache(key, held)

    def test_a_refused_pull_keeps_the_key(self, pair: Pair) -> None:
        pair.theirs("allocate_cache(desc(2, 1, 8), [CacheKey(1, 7)])")
        wrong, held = (pair.manager.allocate_cache(desc(count, 1, 8)) for count in (3, 2))
        assert code_of(pair.manager.pull_cache, CacheKey(PEER, 7), wrong) is LLMStatusCode.LLM_PARAM_INVALID
        pair.manager.pull_cache(CacheKey(PEER, 7), held)

    def test_host_memory_is_not_accessible_by_default(self, pair: Pair) -> None:
        make = "register_cache(CacheDesc(1, (1, 8), DataType.DT_FLOAT, Placement.HOST), [torch.ones(1, 8)]"
        held = pair.manager.allocate_cache(desc(1, 1, 8))
        pair.theirs(f"{make})")
        text = "cluster 1: cache 1 was registered with remote_accessible=False, the default in host memory"
        refused(LLMStatusCode.LLM_PARAM_INVALID, text, pair.manager.pull_cache, pair.key(), held)
        sent = pair.theirs(f"{make}, remote_accessible=True)")
        pair.manager.pull_cache(pair.key(), held)
        assert torch.equal(to_host(held.tensors[0])[0], sent)


class TestBlocks:
    @pytest.mark.parametrize(("elements", "count"), [(16, 1), (16, 17), (3 << 19, 2)])
    def test_pull(self, pair: Pair, elements: int, count: int) -> None:
        blocks = 32 if elements == 16 else 4
        sent = pair.theirs(f"allocate_blocks_cache(desc(2, {blocks}, {elements}), BlocksCacheKey(1))")
        held = pair.manager.allocate_blocks_cache(desc(2, 2 * blocks, elements))
        expected = ours(held)
        src = torch.randperm(blocks, generator=torch.Generator().manual_seed(count))[:count].tolist()
        dst = torch.randperm(2 * blocks, generator=torch.Generator().manual_seed(count))[:count].tolist()
        expected[:, dst] = sent[:, src]
        pair.manager.pull_blocks(BlocksCacheKey(PEER), held, src, dst)
        expect(held, expected)

    @pytest.mark.parametrize("blocks", [[4, 1], [6, 0, 3]])
    def test_pull_a_row_into_blocks(self, pair: Pair, blocks: list[int]) -> None:
        """A row of 40 elements fills two blocks of 16, and half of a third."""
        sent = pair.theirs("allocate_cache(desc(4, 2, 40), [CacheKey(1, 6), CacheKey(1, 7)])")
        held = pair.manager.allocate_blocks_cache(desc(4, 8, 16))
        expected = ours(held)
        for number, block in enumerate(blocks):
            part = sent[:, 1, number * 16 : number * 16 + 16]
            expected[:, block, : part.shape[1]] = part
        pair.manager.pull_blocks(CacheKey(PEER, 7), held, dst_blocks=blocks)
        expect(held, expected)
        pull = (pair.manager.pull_blocks, CacheKey(PEER, 7), held)
        wait_until(lambda: code_of(*pull, dst_blocks=blocks) is GONE, "the key is there")

    def test_push(self, pair: Pair) -> None:
        expected = pair.theirs("allocate_blocks_cache(desc(4, 32, 16), BlocksCacheKey(1))")
        held = pair.manager.allocate_blocks_cache(desc(4, 8, 16))
        sent = ours(held)
        expected[2:, [31, 4]] = sent[2:, [0, 7]]
        layers = range(1, 2)
        pair.manager.push_blocks(BlocksCacheKey(PEER), held, [0, 7], [31, 4], layers, layers)
        pair.expect_theirs(expected)


@pytest.mark.parametrize(("elements", "nbytes"), [(24, -1), (24, 16), (5 << 18, -1)])
def test_push_cache(pair: Pair, elements: int, nbytes: int) -> None:
    expected = pair.theirs(f"allocate_cache(desc(4, 3, {elements}))")
    held = pair.manager.allocate_cache(desc(4, 2, elements))
    count = elements if nbytes == -1 else nbytes // 4
    expected[:, 2, :count] = ours(held)[:, 1, :count]
    pair.manager.push_cache(pair.key(2), held, 1, size=nbytes)
    pair.expect_theirs(expected)


def test_both_ways_and_from_many_threads(pair: Pair) -> None:
    """The process that listens pulls over the same link, at the same time."""
    sent, key = pair.theirs("allocate_cache(desc(4, 8, 512))"), pair.key
    held = [pair.manager.allocate_cache(desc(4, 8, 512)) for _ in range(4)]
    source, keys = ours(held[0]), [key(row) for row in range(8)]
    pull = f"manager.pull_cache(CacheKeyByIdAndIndex(2, {held[0].cache_id}, row), own, row)"
    running = pair.peer.start(f"own = manager.allocate_cache(desc(4, 8, 512))\nfor row in [*range(8)] * 5: {pull}")

    def pull_all(into: Cache) -> None:
        for row in range(8):
            pair.manager.pull_cache(keys[row], into, row)

    threads = [threading.Thread(target=pull_all, args=(into,)) for into in held[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    running()
    for into in held[1:]:
        expect(into, sent)
    pair.peer.do("held = own")
    pair.expect_theirs(source)
