# SPDX-License-Identifier: Apache-2.0
"""Random sequences of calls of CacheManager, compared with a model of its caches and their contents."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor
from utils import filled, reference_batch, refused, to_host

from llm_datadist_torch import Cache, CacheDesc, CacheKey, CacheManager, DataType, LLMConfig, LLMStatusCode, Placement

TENSORS, ROW = 2, 8
LIMIT = 6 * TENSORS * 4 * ROW  # six caches of four rows
SIDES = st.sampled_from([Placement.HOST, Placement.DEVICE])
ROWS = st.integers(0, 4)  # 4 is one too many for some caches
KEYS = st.integers(0, 3)
INVALID, GONE = LLMStatusCode.LLM_PARAM_INVALID, LLMStatusCode.LLM_KV_CACHE_NOT_EXIST


@dataclass
class Known:
    """A cache in the model."""

    held: weakref.ref[Cache]
    memory: weakref.ref[Tensor]
    blocks: bool
    registered: bool
    contents: list[Tensor]
    placement: Placement
    keys: set[int] = field(default_factory=set)
    ended: bool = False

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

    def expect(self, code: LLMStatusCode | None, call: Callable[..., object], *args: object) -> object:
        """Makes a call that must succeed, or must be refused with this code."""
        return call(*args) if code is None else refused(code, "", call, *args)

    def added(self, held: Cache, keys: set[int], *, registered: bool) -> Cache:
        assert held.cache_id == len(self.known) + 1
        for seed, tensor in enumerate(held.tensors):
            tensor.copy_(filled(*tensor.shape, dtype=torch.uint8, seed=seed + held.cache_id))
        contents, placement = [torch.stack([to_host(t) for t in held.unstacked])], held.cache_desc.placement
        references = weakref.ref(held), weakref.ref(held.tensors[0])
        self.known[held.cache_id] = Known(*references, held.is_blocks_cache, registered, contents, placement, keys)
        return held

    @rule(target=caches, placement=SIDES, rows=st.integers(1, 6), keys=st.lists(KEYS, max_size=3), blocks=st.booleans())
    def allocate(self, placement: Placement, rows: int, keys: list[int], blocks: bool) -> object:
        desc = CacheDesc(TENSORS, (rows, ROW), DataType.DT_UINT8, placement)
        keys = [] if blocks else keys
        taken = {key for known in self.known.values() for key in known.keys}
        used = sum(known.charged for known in self.known.values() if known.placement is placement)
        code = LLMStatusCode.LLM_OUT_OF_MEMORY if used + TENSORS * rows * ROW > LIMIT else None
        if len(keys) > rows or (code is None and (taken & set(keys) or len(set(keys)) < len(keys))):
            code = INVALID
        if blocks:
            held = self.expect(code, self.manager.allocate_blocks_cache, desc)
        else:
            held = self.expect(code, self.manager.allocate_cache, desc, [CacheKey(0, key) for key in keys])
        return multiple() if held is None else self.added(held, set(keys), registered=False)

    @rule(target=caches, placement=SIDES, rows=st.integers(1, 6), blocks=st.booleans(), by_address=st.booleans())
    def register(self, placement: Placement, rows: int, blocks: bool, by_address: bool) -> Cache:
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
        right, wrong = self.manager.deallocate_cache, self.manager.deallocate_blocks_cache
        if known.blocks:
            right, wrong = wrong, right
        right(held)
        known.ended = known.ended or not known.registered
        refused(INVALID, "", wrong, held)

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

    def check(
        self, dst: Cache, src: Cache, copies: list[tuple[int, ...]], good: bool, call: Callable, *args: object
    ) -> None:
        """Checks a call that makes these copies, with good numbers or not."""
        into, out_of = self.known[dst.cache_id], self.known[src.cache_id]
        blocks = call != self.manager.copy_cache
        code = None if good else INVALID
        if into.ended or out_of.ended:
            code = GONE
        if into.blocks != blocks or out_of.blocks != blocks:
            code = INVALID
        self.expect(code, call, *args)
        if code is None:
            into.contents = reference_batch(into.contents, out_of.contents, copies, batch_dim=1)

    @rule(dst=caches, src=caches, to=ROWS, of=ROWS, offset=st.integers(0, ROW), size=st.integers(-1, ROW))
    def copy(self, dst: Cache, src: Cache, to: int, of: int, offset: int, size: int) -> None:
        end = ROW if size == -1 else offset + size
        inside = to < self.known[dst.cache_id].rows and of < self.known[src.cache_id].rows
        good = inside and size != 0 and offset < ROW and end <= ROW
        self.check(dst, src, [(to, of, offset, size)], good, self.manager.copy_cache, dst, src, to, of, offset, size)

    def check_blocks(self, dst: Cache, src: Cache, pairs: list[tuple[int, int]], call: Callable, *args: object) -> None:
        pairs = list(dict.fromkeys(pairs))  # the same copy twice is one
        good = all(to < self.known[dst.cache_id].rows and of < self.known[src.cache_id].rows for to, of in pairs)
        good = good and len({to for to, _ in pairs}) == len(pairs)
        self.check(dst, src, [(to, of, 0, -1) for to, of in pairs], good, call, *args)

    @rule(held=caches, blocks=st.dictionaries(ROWS, st.lists(ROWS, max_size=2), max_size=4))
    def copy_blocks(self, held: Cache, blocks: dict[int, list[int]]) -> None:
        pairs = [(to, of) for of, targets in blocks.items() for to in targets]
        self.check_blocks(held, held, pairs, self.manager.copy_blocks, held, blocks)

    @rule(src=caches, dst=caches, blocks=st.dictionaries(ROWS, ROWS, max_size=4))
    def swap_blocks(self, src: Cache, dst: Cache, blocks: dict[int, int]) -> None:
        pairs = [(to, of) for of, to in blocks.items()]
        self.check_blocks(dst, src, pairs, self.manager.swap_blocks, src, dst, blocks)

    @invariant()
    def manager_matches_the_model(self) -> None:
        for known in self.known.values():
            held = known.held()
            if not known.ended:
                assert torch.equal(torch.stack([to_host(t) for t in held.unstacked]), known.contents[0])
            else:
                assert held is None or not held.tensors
                if not known.keys and not known.registered:
                    if known.memory() is not None:
                        gc.collect()  # the traceback of a refused call may still reference it
                    assert known.memory() is None, "unreachable memory is still allocated"


@pytest.mark.slow
def test_random_calls(device: str) -> None:
    examples = settings().max_examples // 10
    wanted = settings(max_examples=examples, stateful_step_count=40, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Managers, settings=wanted)
