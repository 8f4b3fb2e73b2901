# SPDX-License-Identifier: Apache-2.0
"""The caches of a CacheManager, by id and by key. Every method is thread-safe.

The lock is reentrant, because Python may run a destructor or a signal handler, which calls the manager too, in the thread
that holds it.
"""

import itertools
import math
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ._fork import renew_lock_in_children
from .cache import Cache, CacheDesc, Placement
from .cache_keys import BlocksCacheKey, CacheKey
from .status import LLMStatusCode, llm_error, param_invalid


@dataclass
class _Entry:
    cache: Cache
    tensors: list[Tensor]  # keeps the memory for the keys when the cache itself has ended
    keys: set[Hashable]
    accounted_bytes: int  # what counts towards the limit: 0 for registered memory, which belongs to the user
    ended: bool = False


class CacheTable:
    """Caches by id and by key, and the bytes they use. A cache stays until it has ended and has no keys left.

    Args:
        limits: The bytes that all allocated caches of a placement may use together, and the name of the limit in
            messages. A placement that is not in it has no limit.
    """

    def __init__(self, limits: Mapping[Placement, tuple[int, str]]) -> None:
        self._lock = threading.RLock()
        renew_lock_in_children(self)
        self._limits = limits
        self._used = dict.fromkeys(Placement, 0)
        self._entries: dict[int, _Entry] = {}
        self._cache_of: dict[Hashable, int] = {}
        self._ids = itertools.count(1)
        self._closed = False

    def allocate(
        self, cache_desc: CacheDesc, keys: Sequence[CacheKey | BlocksCacheKey], make: Callable[[], Cache]
    ) -> Cache:
        """Makes a cache within the limit of its placement, and adds it.

        Args:
            cache_desc: The description of the cache.
            keys: Its keys.
            make: Allocates the cache. Runs without the lock: it may take long, and may run destructors that wait for
                other threads.

        Raises:
            LLMException: LLM_OUT_OF_MEMORY beyond the limit, what ``make`` raises, and as for ``register``.
        """
        wanted, placement = cache_desc.num_tensors * cache_desc.size, cache_desc.placement
        with self._lock:
            used = self._used[placement]
            limit, name = self._limits.get(placement, (math.inf, ""))
            if used + wanted > limit:
                raise llm_error(
                    LLMStatusCode.LLM_OUT_OF_MEMORY,
                    f"{wanted} bytes for a cache are more than {name} ({limit}) leaves: {used} are in use",
                )
            self._checked(keys)
            self._used[placement] += wanted
        try:
            cache = make()
            with self._lock:
                return self._add(cache, self._checked(keys), wanted)
        except BaseException:
            with self._lock:
                self._used[placement] -= wanted
            raise

    def register(self, cache: Cache, keys: Sequence[CacheKey | BlocksCacheKey]) -> Cache:
        """Adds a cache over memory that belongs to the user.

        Raises:
            LLMException: LLM_PARAM_INVALID for a key that is taken; LLM_ENGINE_FINALIZED after ``close``.
        """
        with self._lock:
            return self._add(cache, self._checked(keys), 0)

    def find(self, cache_id: int) -> Cache | None:
        """The cache with this id, unless it has ended."""
        with self._lock:
            entry = self._entries.get(cache_id)
            return None if entry is None or entry.ended else entry.cache

    def end(self, cache_id: int) -> None:
        """Ends a cache: copies refuse it from now on. Its memory stays until its last key is removed.

        The key of a blocks cache is removed too. Does nothing if there is no cache with this id, or it has ended.
        """
        with self._lock:
            entry = self._entries.get(cache_id)
            if entry is None or entry.ended:
                return
            entry.ended = True
            entry.cache._release()
            if entry.cache.is_blocks_cache:
                self._remove_keys(entry, entry.keys)
            self._drop_if_unused(entry)

    def end_allocated(self, cache: Cache) -> None:
        """Ends a cache if it was allocated here. Does nothing for a registered cache or one of another manager."""
        with self._lock:
            entry = self._entries.get(cache.cache_id)
            if entry is not None and entry.cache is cache and entry.accounted_bytes > 0:  # 0: registered
                self.end(cache.cache_id)

    def remove_key(self, key: CacheKey | BlocksCacheKey) -> None:
        """Removes a key, and with the last key of an ended cache its memory. Does nothing if no cache has the key."""
        with self._lock:
            entry = self._entries.get(self._cache_of.get(key.identity, 0))  # 0 is never an id
            if entry is not None:
                self._remove_keys(entry, {key.identity})
                self._drop_if_unused(entry)

    def close(self) -> None:
        """Ends every cache, with or without keys. No more can be added."""
        with self._lock:
            self._closed = True
            ended, self._entries, self._cache_of = self._entries, {}, {}
            for entry in ended.values():
                entry.cache._release()

    def _checked(self, keys: Sequence[CacheKey | BlocksCacheKey]) -> set[Hashable]:
        if self._closed:
            raise llm_error(LLMStatusCode.LLM_ENGINE_FINALIZED, "the manager is finalized")
        identities: set[Hashable] = set()
        for key in keys:
            if key.identity in self._cache_of or key.identity in identities:
                raise param_invalid(f"the key {key} is one of a cache already")
            if key.identity is not None:
                identities.add(key.identity)
        return identities

    def _add(self, cache: Cache, identities: set[Hashable], accounted_bytes: int) -> Cache:
        cache.cache_id = next(self._ids)
        self._entries[cache.cache_id] = _Entry(cache, cache.tensors, identities, accounted_bytes)
        self._cache_of.update(dict.fromkeys(identities, cache.cache_id))
        return cache

    def _remove_keys(self, entry: _Entry, identities: set[Hashable]) -> None:
        for identity in identities:
            self._cache_of.pop(identity, None)
        entry.keys = entry.keys - identities

    def _drop_if_unused(self, entry: _Entry) -> None:
        if entry.ended and not entry.keys and self._entries.pop(entry.cache.cache_id, None) is not None:
            self._used[entry.cache.cache_desc.placement] -= entry.accounted_bytes
