# SPDX-License-Identifier: Apache-2.0
"""CacheManager: caches registered over tensors or addresses that the caller owns."""

import gc
import weakref
from typing import Any

import pytest
import torch
from manager_utils import desc
from utils import assert_same_bytes, cache, check_batch, refused, to_host

from llm_datadist_torch import BlocksCacheKey, Cache, CacheKey, CacheManager, LLMException, LLMStatusCode


class TestRegister:
    def test_addresses_are_wrapped_without_a_copy(self, device: str) -> None:
        owners = cache(2, 4, 8, device=device)
        manager = CacheManager()
        held = manager.register_cache(desc(device), [t.data_ptr() for t in owners])
        assert held.tensor_addrs == [t.data_ptr() for t in owners]
        assert_same_bytes(held.tensors, owners)
        source = Cache.from_tensors(cache(2, 4, 8, device=device, seed=9))
        copy = lambda: manager.copy_cache(held, source, 3, 1, 4, 8)  # noqa: E731
        check_batch(owners, source.tensors, [(3, 1, 4, 8)], call=copy)

    def test_tensors_are_kept_alive(self, device: str) -> None:
        owners = cache(2, 4, 8, device=device)
        alive, expected = weakref.ref(owners[0]), [to_host(t) for t in owners]
        manager = CacheManager()
        held = manager.register_blocks_cache(desc(device), owners, BlocksCacheKey(0))
        del owners
        gc.collect()
        assert_same_bytes(held.tensors, expected)
        assert held.is_blocks_cache
        manager.unregister_cache(held.cache_id)
        gc.collect()
        assert alive() is None

    def test_unregistering(self) -> None:
        manager = CacheManager()
        held = manager.register_cache(desc(), cache(2, 4, 8))
        manager.unregister_cache(held.cache_id)
        manager.unregister_cache(held.cache_id)
        manager.unregister_cache(-1)
        keyed = manager.allocate_cache(desc(), [CacheKey(0, 1)])
        manager.deallocate_cache(keyed)
        manager.unregister_cache(keyed.cache_id)  # already ended; only its key keeps the memory
        text = "copy_cache: dst: cache 1 was deallocated or unregistered (req_id 3)"
        refused(LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, text, manager.copy_cache, held, held, 0, 1, req_id=3)

    @pytest.mark.parametrize(
        ("addrs", "error", "text"),
        [
            ([8], LLMException, "register_cache: addrs must hold 2 addresses (num_tensors), got 1"),
            ([8, 0], LLMException, "register_cache: addrs[1] (0) must not be 0"),
            ([8, 2**64 - 8], LLMException, "runs past the last address"),
            ([8, 2**64], ValueError, "register_cache: addrs[1] (18446744073709551616) out of range"),
            ([8, True], TypeError, "register_cache: addrs[1] must be int, got bool"),
            ([8, torch.zeros(4, 8)], TypeError, "register_cache: addrs[1] must be int, got Tensor"),
            ([torch.zeros(4, 8), torch.zeros(4, 9)], LLMException, "addrs[1] must be a tensor of ((4, 8), "),
            ([torch.zeros(4, 8), torch.zeros(4, 8).half()], LLMException, "addrs[1] must be a tensor of ((4, 8), "),
            ("8,", TypeError, "register_cache: addrs[0] must be int, got str"),
            (8, TypeError, "register_cache: addrs must be Sequence, got int: 8"),
        ],
    )
    def test_refused_addresses(self, addrs: Any, error: type, text: str) -> None:
        manager = CacheManager()
        with pytest.raises(error) as refusal:
            manager.register_cache(desc(), addrs)
        assert text in str(refusal.value)
        assert manager.allocate_cache(desc()).cache_id == 1

    def test_remote_access(self) -> None:
        manager = CacheManager()
        manager.register_cache(desc(), cache(2, 4, 8), (), False)
        manager.register_cache(desc(), cache(2, 4, 8), (), True)
        with pytest.raises(TypeError, match="remote_accessible must be bool"):
            manager.register_cache(desc(), cache(2, 4, 8), (), 1)
