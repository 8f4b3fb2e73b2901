# SPDX-License-Identifier: Apache-2.0
"""CacheManager.copy_cache: bytes, timeouts, failures. For refused calls see test_arguments.py and test_refusals.py."""

import pytest
import torch
from torch import Tensor
from utils import assert_same_bytes, check_batch, filled

from llm_datadist_torch import Cache, CacheManager, LLMConfig, LLMException, LLMStatusCode, ops


def check(manager: CacheManager, dst: Tensor, src: Tensor, *numbers: int) -> None:
    copy = lambda: manager.copy_cache(*map(Cache.from_tensors, (dst, src)), *numbers, req_id=2**64 - 1)  # noqa: E731
    check_batch([dst], [src], [numbers], call=copy)


def test_a_stack_and_a_list_with_a_dimension_before_the_batch() -> None:
    """Keys and values in one tensor: [2, blocks, ...] for each layer."""
    stack, layers = filled(3, 2, 4, 8), [filled(2, 4, 8, seed=seed) for seed in range(1, 4)]
    expected = torch.stack(layers)
    expected[:, :, 3] = stack[:, :, 1]
    CacheManager().copy_cache(Cache.from_tensors(layers, batch_dim=1), Cache.from_tensors(stack, batch_dim=2), 3, 1)
    assert_same_bytes(torch.stack(layers), expected)


class TestTimeout:
    def test_timeout_and_the_next_call(self) -> None:
        # To write half a gigabyte of new pages takes much longer than the timeout of one millisecond. One byte above a
        # power of two: the last piece is too small for another look at the clock.
        big = [Cache.from_tensors(torch.empty(1, 2**29 + 1, dtype=torch.uint8)) for _ in range(2)]
        manager = CacheManager(LLMConfig(sync_kv_timeout=1))
        with pytest.raises(LLMException) as late:
            manager.copy_cache(*big, req_id=7)
        assert late.value.status_code is LLMStatusCode.LLM_TIMEOUT
        assert not isinstance(late.value, ValueError)
        text = "not done after sync_kv_timeout, 1 ms; what the destination range holds is undefined (req_id 7)"
        assert text in str(late.value)
        check(manager, filled(4, 8), filled(4, 8, seed=1), 1, 2, 0, -1)

    @pytest.mark.parametrize("onto_itself", [False, True])
    def test_timeout_in_many_ranges(self, onto_itself: bool) -> None:
        """Each range alone takes less than the timeout: a row, or a row moved by 64 bytes."""
        size = 2**22
        whole = [torch.empty(64, 2, size + 64, dtype=torch.uint8) for _ in range(1 if onto_itself else 2)]
        dst, src = (Cache.from_tensors(t, batch_dim=1) for t in (whole[0][:, :, :size], whole[-1][:, :, 64:]))
        with pytest.raises(LLMException, match="not done after sync_kv_timeout, 1 ms"):
            CacheManager(LLMConfig(sync_kv_timeout=1)).copy_cache(dst, src)

    def test_timeout_of_a_batch(self) -> None:
        held = Cache.from_tensors(torch.empty(2, 2**28, dtype=torch.uint8), is_blocks_cache=True)
        with pytest.raises(LLMException, match="not done after sync_kv_timeout, 1 ms"):
            CacheManager(LLMConfig(sync_kv_timeout=1)).copy_blocks(held, {0: [1]})

    def test_large_copy_without_timeout(self) -> None:
        dst, src = (filled(2, 40_000_003, dtype=torch.uint8, seed=seed) for seed in (0, 1))
        check(CacheManager(LLMConfig(sync_kv_timeout="60000")), dst, src, 1, 0, 1, -1)

    @pytest.mark.parametrize(("config", "timeout"), [(None, 1000), (LLMConfig(), 1000), (LLMConfig("25"), 25)])
    def test_timeout_of_the_config_is_used(
        self, config: LLMConfig, timeout: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = []
        monkeypatch.setattr(ops, "copy_cache_blocking", lambda *args, **kwargs: given.append(kwargs["timeout_ms"]) or 1)
        held = Cache.from_tensors(filled(4, 8))
        CacheManager(config).copy_cache(held, held, 1)
        assert timeout // 2 < given[0] <= timeout  # the wait for the copy before counts

    def test_config_of_another_type(self) -> None:
        with pytest.raises(TypeError, match="config must be LLMConfig, got dict"):
            CacheManager({})


@pytest.mark.parametrize("error", [RuntimeError("aclrtMemcpyAsync failed"), MemoryError("std::bad_alloc")])
def test_device_or_host_failure(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> bool:
        raise error

    monkeypatch.setattr(ops, "copy_cache_blocking", fail)
    held = Cache.from_tensors(filled(4, 8))
    with pytest.raises(LLMException, match=f"copy_cache: {error}") as failure:
        CacheManager().copy_cache(held, held, 1)
    assert failure.value.status_code is LLMStatusCode.LLM_FAILED
    assert failure.value.__cause__ is error
