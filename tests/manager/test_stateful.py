# SPDX-License-Identifier: Apache-2.0
"""Random sequences of calls of CacheManager, compared with a model of its caches and their contents."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from torch import Tensor
from utils import filled, reference_batch, reference_copy, to_host

from llm_datadist_torch import (
    Cache,
    CacheDesc,
    CacheKey,
    CacheManager,
    DataType,
    LLMConfig,
    LLMException,
    LLMStatusCode,
    Placement,
)

TENSORS, ROW = 2, 8
LIMIT = 6 * TENSORS * 4 * ROW  # six caches of four rows
SIDES = st.sampled_from([Placement.HOST, Placement.DEVICE])
ROWS = st.integers(0, 4)  # 4 is one too many for some caches
KEYS = st.integers(0, 3)
INVALID, GONE = LLMStatusCode.LLM_PARAM_INVALID, LLMStatusCode.LLM_KV_CACHE_NOT_EXIST


@dataclass
class Known:
    """A cache in the model."""

    placement: Placement
    blocks: bool
    registered: bool
    contents: list[Tensor]
    keys: set[int] = field(default_factory=set)
    ended: bool = False
    memory: weakref.ref | None = None

    @property
    def rows(self) -> int:
        return self.contents[0].shape[1]

    @property
    def charged(self) -> int:
        alive = not self.ended or self.keys
        return sum(t.nbytes for t in self.contents) if alive and not self.registered else 0


class Managers(RuleBasedStateMachine):
    caches = Bundle("caches")

    @initialize()
    def start(self) -> None:
        pools = {"mem_pool_cfg": f'{{"memory_size": {LIMIT}}}', "host_mem_pool_cfg": f'{{"memory_size": {LIMIT}}}'}
        self.manager = CacheManager(LLMConfig(sync_kv_timeout=60_000, **pools))
        self.known: dict[int, Known] = {}
        self.last_id = 0

    def expect(self, code: LLMStatusCode | None, call: object, *args: object) -> object:
        """Makes a call that must succeed, or must be refused with this code."""
        if code is None:
            return call(*args)
        with pytest.raises(LLMException) as refusal:
            call(*args)
        assert refusal.value.status_code is code, refusal.value
        return None

    def used(self, placement: Placement) -> int:
        return sum(known.charged for known in self.known.values() if known.placement is placement)

    def added(self, held: Cache, keys: set[int], *, registered: bool) -> object:
        self.last_id += 1
        assert held.cache_id == self.last_id
        for seed, tensor in enumerate(held.tensors):
            tensor.copy_(filled(*tensor.shape, dtype=torch.uint8, seed=seed + held.cache_id))
        contents = [torch.stack([to_host(tensor) for tensor in held.unstacked])]
        placement = held.cache_desc.placement
        known = Known(placement, held.is_blocks_cache, registered, contents, set(keys))
        known.memory = weakref.ref(held.tensors[0])
        self.known[held.cache_id] = known
        return held

    @rule(target=caches, placement=SIDES, rows=st.integers(1, 6), keys=st.lists(KEYS, max_size=3), blocks=st.booleans())
    def allocate(self, placement: Placement, rows: int, keys: list[int], blocks: bool) -> object:
        desc = CacheDesc(TENSORS, (rows, ROW), DataType.DT_UINT8, placement)
        keys = [] if blocks else keys
        taken = {key for known in self.known.values() for key in known.keys}
        code = None
        if self.used(placement) + TENSORS * rows * ROW > LIMIT:
            code = LLMStatusCode.LLM_OUT_OF_MEMORY
        if len(keys) > rows or (code is None and (taken & set(keys) or len(set(keys)) < len(keys))):
            code = INVALID
        if blocks:
            held = self.expect(code, self.manager.allocate_blocks_cache, desc)
        else:
            held = self.expect(code, self.manager.allocate_cache, desc, [CacheKey(0, key) for key in keys])
        return multiple() if held is None else self.added(held, set(keys), registered=False)

    @rule(target=caches, placement=SIDES, rows=st.integers(1, 6), blocks=st.booleans(), by_address=st.booleans())
    def register(self, placement: Placement, rows: int, blocks: bool, by_address: bool) -> object:
        desc = CacheDesc(TENSORS, (rows, ROW), DataType.DT_UINT8, placement)
        device = "npu" if placement is Placement.DEVICE and hasattr(torch, "npu") else "cpu"
        owned = [torch.empty(rows, ROW, dtype=torch.uint8, device=device) for _ in range(TENSORS)]
        call = self.manager.register_blocks_cache if blocks else self.manager.register_cache
        held = call(desc, [tensor.data_ptr() for tensor in owned] if by_address else owned)
        held.owners = owned  # the caller keeps registered memory alive
        return self.added(held, set(), registered=True)

    @rule(held=caches)
    def deallocate(self, held: Cache) -> None:
        known = self.known[held.cache_id]
        end = self.manager.deallocate_blocks_cache if known.blocks else self.manager.deallocate_cache
        end(held)
        known.ended = known.ended or not known.registered
        self.expect(
            INVALID, self.manager.deallocate_cache if known.blocks else self.manager.deallocate_blocks_cache, held
        )

    @rule(held=caches)
    def unregister(self, held: Cache) -> None:
        self.manager.unregister_cache(held.cache_id)
        self.known[held.cache_id].ended = True

    @rule(key=KEYS)
    def remove_key(self, key: int) -> None:
        self.manager.remove_cache_key(CacheKey(1, key))
        for known in self.known.values():
            known.keys.discard(key)

    @rule(held=consumes(caches))
    def forget(self, held: Cache) -> None:
        """The user drops the cache without ending it. The manager keeps it."""

    @rule(dst=caches, src=caches, to=ROWS, of=ROWS, offset=st.integers(0, ROW), size=st.integers(-1, ROW))
    def copy(self, dst: Cache, src: Cache, to: int, of: int, offset: int, size: int) -> None:
        into, out_of = self.known[dst.cache_id], self.known[src.cache_id]
        end = ROW if size == -1 else offset + size
        code = None
        if not (to < into.rows and of < out_of.rows and size != 0 and offset < ROW and end <= ROW):
            code = INVALID
        if into.ended or out_of.ended:
            code = GONE
        if into.blocks or out_of.blocks:
            code = INVALID
        self.expect(code, self.manager.copy_cache, dst, src, to, of, offset, size)
        if code is None:
            into.contents = reference_copy(into.contents, out_of.contents, to, of, offset, size, batch_dim=1)

    def batch(self, call: object, dst: Cache, src: Cache, pairs: list[tuple[int, int]], argument: dict) -> None:
        """Checks a call that copies whole blocks, given as (dst, src) pairs."""
        into, out_of = self.known[dst.cache_id], self.known[src.cache_id]
        pairs = list(dict.fromkeys(pairs))  # the same copy twice is one
        targets = [to for to, _ in pairs]
        good = all(to < into.rows and of < out_of.rows for to, of in pairs) and len(set(targets)) == len(targets)
        code = None if good else INVALID
        if into.ended or out_of.ended:
            code = GONE
        if not (into.blocks and out_of.blocks):
            code = INVALID
        self.expect(code, call, *((dst,) if call == self.manager.copy_blocks else (src, dst)), argument)
        if code is None:
            rows = [(to, of, 0, -1) for to, of in pairs]
            into.contents = reference_batch(into.contents, out_of.contents, rows, batch_dim=1)

    @rule(held=caches, blocks=st.dictionaries(ROWS, st.lists(ROWS, max_size=2), max_size=4))
    def copy_blocks(self, held: Cache, blocks: dict[int, list[int]]) -> None:
        pairs = [(to, of) for of, targets in blocks.items() for to in targets]
        self.batch(self.manager.copy_blocks, held, held, pairs, blocks)

    @rule(src=caches, dst=caches, blocks=st.dictionaries(ROWS, ROWS, max_size=4))
    def swap_blocks(self, src: Cache, dst: Cache, blocks: dict[int, int]) -> None:
        self.batch(self.manager.swap_blocks, dst, src, [(to, of) for of, to in blocks.items()], blocks)

    @invariant()
    def manager_matches_the_model(self) -> None:
        for cache_id, known in self.known.items():
            held = self.manager._registry.find(cache_id)
            assert (held is None) == known.ended
            if held is not None:
                assert torch.equal(torch.stack([to_host(t) for t in held.unstacked]), known.contents[0])
            elif not known.keys and not known.registered:
                if known.memory() is not None:
                    gc.collect()  # the traceback of a refused call may still reference it
                assert known.memory() is None, "unreachable memory is still allocated"


Managers.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestManager = Managers.TestCase
