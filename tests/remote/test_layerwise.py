# SPDX-License-Identifier: Apache-2.0
"""transfer_cache_async: layer by layer to addresses and keys of other processes. On the CPU and the NPU."""

import threading

import pytest
import torch
from remote_utils import PEER, Pair, desc, ours
from utils import refused, to_host

from llm_datadist_torch import (
    BlocksCacheKey,
    CacheTask,
    LayerSynchronizer,
    LLMException,
    LLMStatusCode,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

pytestmark = pytest.mark.usefixtures("device")
SUCCESS = LLMStatusCode.LLM_SUCCESS


class Ready(LayerSynchronizer):
    """Each layer is ready, once the test has let it be."""

    def __init__(self, failing: int = -1, let: int = 100) -> None:
        self.layers: list[int] = []
        self.failing, self.let = failing, threading.Semaphore(let)

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        self.let.acquire()
        self.layers.append(layer_index)
        return layer_index != self.failing


def check(pair: Pair, task: CacheTask, expected: torch.Tensor, configs: int = 1) -> None:
    assert task.synchronize(20_000) is SUCCESS
    assert task.get_results(20_000) == [SUCCESS] * configs
    pair.expect_theirs(expected)


class TestByAddress:
    def test_rows(self, pair: Pair) -> None:
        own = pair.manager.allocate_cache(desc(6, 2, 40))
        expected, sent = pair.theirs("allocate_cache(desc(6, 3, 40))"), ours(own)
        row = [address + 40 * 4 for address in pair.peer.get("held.tensor_addrs")]
        configs = [TransferConfig(PEER, row[:4], range(0, 2), 1), TransferConfig(PEER, row[4:], range(2, 3))]
        expected[:4, 1], expected[4:, 1] = sent[:4, 1], sent[4:, 0]
        ready = Ready()
        check(pair, pair.manager.transfer_cache_async(own, ready, configs), expected, 2)
        assert ready.layers == [0, 1, 2]

    def test_blocks(self, pair: Pair) -> None:
        own = pair.manager.allocate_blocks_cache(desc(4, 8, 40))
        expected = pair.theirs("allocate_blocks_cache(desc(4, 8, 40))")
        expected[:, [7, 3]] = ours(own)[:, [0, 1]]
        config = TransferConfig(PEER, pair.peer.get("held.tensor_addrs"))
        check(pair, pair.manager.transfer_cache_async(own, Ready(), [config], [0, 1], [7, 3]), expected)

    def test_a_row_into_blocks(self, pair: Pair) -> None:
        own = pair.manager.allocate_cache(desc(4, 2, 40))
        expected, sent = pair.theirs("allocate_blocks_cache(desc(4, 8, 16))"), ours(own)
        for number, block in enumerate((6, 0, 5)):
            part = sent[:, 1, number * 16 : number * 16 + 16]
            expected[:, block, : part.shape[1]] = part
        config = TransferConfig(PEER, pair.peer.get("held.tensor_addrs"), src_batch_index=1)
        check(pair, pair.manager.transfer_cache_async(own, Ready(), [config], None, [6, 0, 5], 64), expected)

    def test_memory_of_no_cache(self, pair: Pair) -> None:
        own = pair.manager.allocate_cache(desc(2, 1, 40))
        expected = pair.theirs("allocate_cache(desc(2, 1, 40))")
        first, second = pair.peer.get("held.tensor_addrs")
        for wrong in ([first, 4096], [first, second + 4]):
            task = pair.manager.transfer_cache_async(own, Ready(), [TransferConfig(PEER, wrong)])
            assert task.synchronize() is LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
        pair.expect_theirs(expected)


class TestByKey:
    def test_row(self, pair: Pair) -> None:
        own = pair.manager.allocate_cache(desc(4, 2, 40))
        expected = pair.theirs("allocate_cache(desc(6, 3, 40))")
        expected[2:6, 2] = ours(own)[:, 1]
        config = TransferWithCacheKeyConfig(pair.key(2), range(0, 2), range(1, 3), 1)
        check(pair, pair.manager.transfer_cache_async(own, Ready(), (config,)), expected)

    @pytest.mark.parametrize("blocks", [True, False])
    def test_blocks(self, pair: Pair, blocks: bool) -> None:
        """Blocks to blocks, or a row that fills two blocks."""
        allocate = pair.manager.allocate_blocks_cache if blocks else pair.manager.allocate_cache
        own = allocate(desc(4, 8, 40) if blocks else desc(4, 1, 80))
        expected, sent = pair.theirs("allocate_blocks_cache(desc(4, 8, 40), BlocksCacheKey(1))"), ours(own)
        expected[:, [7, 3]] = sent[:, [0, 1]] if blocks else sent.view(4, 2, 40)
        config = TransferWithCacheKeyConfig(BlocksCacheKey(PEER), range(0, 2), range(0, 2))
        src_blocks = [0, 1] if blocks else None
        check(pair, pair.manager.transfer_cache_async(own, Ready(), [config], src_blocks, [7, 3]), expected)


def test_each_layer_waits_for_its_turn(pair: Pair) -> None:
    own = pair.manager.allocate_cache(desc(4, 1, 40))
    expected, ready = pair.theirs("allocate_cache(desc(4, 1, 40))"), Ready(let=1)
    expected[:2] = ours(own)[:2]
    task = pair.manager.transfer_cache_async(own, ready, [TransferConfig(PEER, pair.peer.get("held.tensor_addrs"))])
    assert task.synchronize(300) is LLMStatusCode.LLM_TIMEOUT
    pair.expect_theirs(expected)
    ready.let.release()
    check(pair, task, to_host(own.tensors[0]))


@pytest.mark.parametrize("failing", [0, 1])
def test_a_layer_that_is_not_computed(pair: Pair, failing: int) -> None:
    own = pair.manager.allocate_cache(desc(4, 1, 40))
    pair.theirs("allocate_cache(desc(4, 1, 40))")
    config = TransferConfig(PEER, pair.peer.get("held.tensor_addrs"))
    task = pair.manager.transfer_cache_async(own, Ready(failing), [config])
    failed = LLMStatusCode.LLM_FAILED
    assert (task.get_results(), task.synchronize()) == ([failed], failed)


def test_refused(pair: Pair) -> None:
    own, odd = pair.manager.allocate_cache(desc(4, 1, 40)), pair.manager.allocate_cache(desc(3, 1, 40))
    blocks = pair.manager.allocate_blocks_cache(desc(4, 2, 40))
    transfer, invalid = pair.manager.transfer_cache_async, LLMStatusCode.LLM_PARAM_INVALID
    for code, text, *args in (
        (invalid, "transfer_configs must hold at least one", own, Ready(), []),
        (invalid, "dst_addrs must hold 4 addresses", own, Ready(), [TransferConfig(PEER, [1])]),
        (invalid, "out of range [0, 2)", own, Ready(), [TransferConfig(PEER, [1, 2], range(2, 3))]),
        (invalid, "even num_tensors", odd, Ready(), [TransferConfig(PEER, [1, 2])]),
        (invalid, "src_block_indices must be given", own, Ready(), [TransferConfig(PEER, [1, 2])], [0]),
        (invalid, "as many dst_block_indices, got 2 and 1", blocks, Ready(), [TransferConfig(PEER, [1])], [0, 1], [0]),
        (LLMStatusCode.LLM_NOT_YET_LINK, "no link", own, Ready(), [TransferConfig(77, [1, 2, 3, 4])]),
    ):
        refused(code, text, transfer, *args)
    with pytest.raises(TypeError, match="layer_synchronizer must be LayerSynchronizer"):
        transfer(own, None, [TransferConfig(PEER, [1, 2])])
    wrong_configs = (((PEER, None), TypeError), ((PEER, [-1]), ValueError), ((PEER, [1], range(0, 4, 2)), LLMException))
    for wrong, error in wrong_configs:
        with pytest.raises(error):
            TransferConfig(*wrong)
    with pytest.raises(LLMException, match="must be 0 with a BlocksCacheKey"):
        TransferWithCacheKeyConfig(BlocksCacheKey(1), range(1), range(1), 1)
