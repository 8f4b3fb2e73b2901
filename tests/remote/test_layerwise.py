# SPDX-License-Identifier: Apache-2.0
"""transfer_cache_async: layer by layer to addresses and keys of other processes. On the CPU and the NPU."""

import threading
from typing import Any

import pytest
import torch
from remote_utils import PEER, Pair, desc
from utils import as_bytes, filled, to_host

from llm_datadist_torch import (
    BlocksCacheKey,
    CacheKeyByIdAndIndex,
    CacheTask,
    LayerSynchronizer,
    LLMException,
    LLMStatusCode,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

SUCCESS = LLMStatusCode.LLM_SUCCESS


class Ready(LayerSynchronizer):
    """Each layer is ready, once the test has let it be."""

    def __init__(self, failing: int = -1) -> None:
        self.layers: list[int] = []
        self.failing, self.let = failing, threading.Semaphore(100)

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        self.let.acquire()
        self.layers.append(layer_index)
        return layer_index != self.failing


def make(pair: Pair, theirs: str, own: Any) -> torch.Tensor:
    """Makes a cache of the peer. Returns its contents, to be changed into what is expected."""
    pair.peer.do(f"held = manager.{theirs}\nheld.tensors[0].copy_(filled(*held.tensors[0].shape, seed=5))")
    own.tensors[0].copy_(filled(*own.tensors[0].shape, seed=9))
    return pair.peer.get("to_host(held.tensors[0])")


def check(pair: Pair, task: CacheTask, expected: torch.Tensor, configs: int = 1) -> None:
    assert task.synchronize(20_000) is SUCCESS
    assert task.get_results(20_000) == [SUCCESS] * configs
    assert torch.equal(pair.peer.get("as_bytes(held.tensors[0])"), as_bytes(expected))


class TestByAddress:
    def test_rows(self, pair: Pair) -> None:
        own = pair.manager.allocate_cache(desc(6, 2, 40))
        expected = make(pair, "allocate_cache(desc(6, 3, 40))", own)
        sent = to_host(own.tensors[0])
        row = [address + 40 * 4 for address in pair.peer.get("held.tensor_addrs")]
        configs = [TransferConfig(PEER, row[:4], range(0, 2), 1), TransferConfig(PEER, row[4:], range(2, 3))]
        expected[:4, 1], expected[4:, 1] = sent[:4, 1], sent[4:, 0]
        ready = Ready()
        check(pair, pair.manager.transfer_cache_async(own, ready, configs), expected, 2)
        assert ready.layers == [0, 1, 2]

    def test_blocks(self, pair: Pair) -> None:
        own = pair.manager.allocate_blocks_cache(desc(4, 8, 40))
        expected = make(pair, "allocate_blocks_cache(desc(4, 8, 40))", own)
        expected[:, [7, 3]] = to_host(own.tensors[0])[:, [0, 1]]
        config = TransferConfig(PEER, pair.peer.get("held.tensor_addrs"))
        check(pair, pair.manager.transfer_cache_async(own, Ready(), [config], [0, 1], [7, 3]), expected)

    def test_a_row_into_blocks(self, pair: Pair) -> None:
        own = pair.manager.allocate_cache(desc(4, 2, 40))
        expected = make(pair, "allocate_blocks_cache(desc(4, 8, 16))", own)
        sent = to_host(own.tensors[0])
        for number, block in enumerate((6, 0, 5)):
            part = sent[:, 1, number * 16 : number * 16 + 16]
            expected[:, block, : part.shape[1]] = part
        config = TransferConfig(PEER, pair.peer.get("held.tensor_addrs"), src_batch_index=1)
        task = pair.manager.transfer_cache_async(own, Ready(), [config], None, [6, 0, 5], 64)
        check(pair, task, expected)

    def test_memory_of_no_cache(self, pair: Pair) -> None:
        own = pair.manager.allocate_cache(desc(2, 1, 40))
        make(pair, "allocate_cache(desc(2, 1, 40))", own)
        first, second = pair.peer.get("held.tensor_addrs")
        for wrong in ([first, 4096], [first, second + 4]):
            task = pair.manager.transfer_cache_async(own, Ready(), [TransferConfig(PEER, wrong)])
            assert task.synchronize() is LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
        assert torch.equal(pair.peer.get("as_bytes(held.tensors[0])"), as_bytes(filled(2, 1, 40, seed=5)))


class TestByKey:
    def test_row(self, pair: Pair) -> None:
        own = pair.manager.allocate_cache(desc(4, 2, 40))
        expected = make(pair, "allocate_cache(desc(6, 3, 40))", own)
        expected[2:6, 2] = to_host(own.tensors[0])[:, 1]
        key = CacheKeyByIdAndIndex(PEER, pair.peer.get("held.cache_id"), 2)
        config = TransferWithCacheKeyConfig(key, range(0, 2), range(1, 3), 1)
        check(pair, pair.manager.transfer_cache_async(own, Ready(), (config,)), expected)

    @pytest.mark.parametrize("src_blocks", [[0, 1], None])
    def test_blocks(self, pair: Pair, src_blocks: list[int] | None) -> None:
        """Blocks to blocks, or a row that fills two blocks."""
        blocks = src_blocks is not None
        own = (
            pair.manager.allocate_blocks_cache(desc(4, 8, 40))
            if blocks
            else pair.manager.allocate_cache(desc(4, 1, 80))
        )
        expected = make(pair, "allocate_blocks_cache(desc(4, 8, 40), BlocksCacheKey(1))", own)
        sent = to_host(own.tensors[0])
        expected[:, [7, 3]] = sent[:, [0, 1]] if blocks else sent.view(4, 2, 40)
        config = TransferWithCacheKeyConfig(BlocksCacheKey(PEER), range(0, 2), range(0, 2))
        check(pair, pair.manager.transfer_cache_async(own, Ready(), [config], src_blocks, [7, 3]), expected)


def test_each_layer_waits_for_its_turn(pair: Pair) -> None:
    own = pair.manager.allocate_cache(desc(4, 1, 40))
    expected = make(pair, "allocate_cache(desc(4, 1, 40))", own)
    ready = Ready()
    ready.let = threading.Semaphore(1)
    task = pair.manager.transfer_cache_async(own, ready, [TransferConfig(PEER, pair.peer.get("held.tensor_addrs"))])
    assert task.synchronize(500) is LLMStatusCode.LLM_TIMEOUT
    expected[:2] = to_host(own.tensors[0])[:2]
    assert torch.equal(pair.peer.get("as_bytes(held.tensors[0])"), as_bytes(expected))
    ready.let.release()
    check(pair, task, to_host(own.tensors[0]))


@pytest.mark.parametrize(("failing", "results"), [(0, [LLMStatusCode.LLM_FAILED]), (1, [LLMStatusCode.LLM_FAILED])])
def test_a_layer_that_is_not_computed(pair: Pair, failing: int, results: list[LLMStatusCode]) -> None:
    own = pair.manager.allocate_cache(desc(4, 1, 40))
    make(pair, "allocate_cache(desc(4, 1, 40))", own)
    config = TransferConfig(PEER, pair.peer.get("held.tensor_addrs"))
    task = pair.manager.transfer_cache_async(own, Ready(failing), [config])
    assert (task.get_results(), task.synchronize()) == (results, results[0])


def test_refused(pair: Pair) -> None:
    own, odd = pair.manager.allocate_cache(desc(4, 1, 40)), pair.manager.allocate_cache(desc(3, 1, 40))
    transfer, invalid = pair.manager.transfer_cache_async, LLMStatusCode.LLM_PARAM_INVALID
    for code, text, *args in (
        (invalid, "transfer_configs must hold at least one", own, Ready(), []),
        (invalid, "dst_addrs must hold 4 addresses", own, Ready(), [TransferConfig(PEER, [1])]),
        (invalid, "out of range [0, 2)", own, Ready(), [TransferConfig(PEER, [1, 2], range(2, 3))]),
        (invalid, "even num_tensors", odd, Ready(), [TransferConfig(PEER, [1, 2])]),
        (invalid, "src_block_indices must be given", own, Ready(), [TransferConfig(PEER, [1, 2])], [0]),
        (LLMStatusCode.LLM_NOT_YET_LINK, "no link", own, Ready(), [TransferConfig(77, [1, 2, 3, 4])]),
    ):
        with pytest.raises(LLMException) as refusal:
            transfer(*args)
        assert refusal.value.status_code is code
        assert text in str(refusal.value)
    with pytest.raises(TypeError, match="layer_synchronizer must be LayerSynchronizer"):
        transfer(own, None, [TransferConfig(PEER, [1, 2])])
    for wrong, error in (
        ((PEER, None), TypeError),
        ((PEER, [-1]), ValueError),
        ((PEER, [1], range(0, 4, 2)), LLMException),
    ):
        with pytest.raises(error):
            TransferConfig(*wrong)
    with pytest.raises(LLMException, match="must be 0 with a BlocksCacheKey"):
        TransferWithCacheKeyConfig(BlocksCacheKey(1), range(1), range(1), 1)
