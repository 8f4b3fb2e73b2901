# SPDX-License-Identifier: Apache-2.0
"""What a CacheManager knows of its caches. Every method may be called from any thread.

Also from a destructor or a signal handler, which Python runs between any two steps of the thread that holds the lock.
So the lock is reentrant, and no step takes for granted that what the one before it saw is still there.
"""

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ._fork import renew_lock_in_children
from .cache import Cache, CacheDesc, Placement
from .cache_keys import BlocksCacheKey, CacheKey
from .status import LLMException, LLMParamInvalid, LLMStatusCode


@dataclass
class _Entry:
    cache: Cache
    tensors: list[Tensor]  # kept for the keys when the cache itself has been given up
    keys: set[Hashable]
    registered: bool
    given_up: bool = False

    @property
    def charged(self) -> int:
        """The bytes that count towards the limit: registered memory is not the manager's."""
        desc = self.cache.cache_desc
        return 0 if self.registered else desc.num_tensors * desc.size


class CacheTable:
    """Caches by number and by key, and the bytes they take. A cache lives until it is given up and has no key left.

    Args:
        limits: The bytes that all allocated caches of a placement may take together. No limit where there is none.
    """

    def __init__(self, limits: Mapping[Placement, int]) -> None:
        self._lock = threading.RLock()
        renew_lock_in_children(self)
        self._limits = limits
        self._used = dict.fromkeys(Placement, 0)
        self._entries: dict[int, _Entry] = {}
        self._cache_of: dict[Hashable, int] = {}
        self._last_id = 0
        self._closed = False

    def allocate(
        self, cache_desc: CacheDesc, keys: Sequence[CacheKey | BlocksCacheKey], make: Callable[[], Cache]
    ) -> Cache:
        """Makes a cache within the limit of its placement, and adds it.

        Raises:
            LLMException: LLM_OUT_OF_MEMORY beyond the limit, what ``make`` raises, and as for ``register``.
        """
        wanted, placement = cache_desc.num_tensors * cache_desc.size, cache_desc.placement
        with self._lock:
            used, limit = self._used[placement], self._limits.get(placement)
            if limit is not None and used + wanted > limit:
                raise LLMException(
                    f"{wanted} bytes for a cache are more than memory_size ({limit}) leaves: {used} are in use",
                    LLMStatusCode.LLM_OUT_OF_MEMORY,
                )
            self._checked(keys)
            self._used[placement] += wanted
        # The lock is free meanwhile: an allocation may take long, and may run destructors that wait for other threads.
        try:
            cache = make()
            with self._lock:
                return self._add(cache, self._checked(keys), registered=False)
        except BaseException:
            with self._lock:
                self._used[placement] -= wanted
            raise

    def register(self, cache: Cache, keys: Sequence[CacheKey | BlocksCacheKey]) -> Cache:
        """Adds a cache over memory that is not the manager's.

        Raises:
            LLMException: LLM_PARAM_INVALID for a key that is taken; LLM_ENGINE_FINALIZED after ``close``.
        """
        with self._lock:
            return self._add(cache, self._checked(keys), registered=True)

    def find(self, cache_id: int) -> Cache | None:
        """The cache of a number, if it has not been given up."""
        with self._lock:
            entry = self._entries.get(cache_id)
            return None if entry is None or entry.given_up else entry.cache

    def give_up(self, cache_id: int, *, registered: bool) -> None:
        """Ends a cache for its user. Its memory stays as long as it has keys, which those of a blocks cache end too.

        Does nothing if there is none of that number, or it has been given up already.

        Args:
            cache_id: The number of the cache.
            registered: Whether it has to be a registered one, or an allocated one.

        Raises:
            LLMException: LLM_PARAM_INVALID if it is one of the other kind.
        """
        with self._lock:
            entry = self._entries.get(cache_id)
            if entry is None or entry.given_up:
                return
            if registered and not entry.registered:
                raise LLMParamInvalid(f"cache_id ({cache_id}) is an allocated cache, not a registered one")
            if entry.registered and not registered:
                raise LLMParamInvalid(f"cache {cache_id} is registered, not allocated: use unregister_cache")
            entry.given_up = True
            entry.cache.tensors = []
            if entry.cache.is_blocks_cache:
                self._remove_keys(entry, entry.keys)
            self._drop_if_unused(entry)

    def remove_key(self, key: CacheKey | BlocksCacheKey) -> None:
        """Does nothing if no cache has the key."""
        with self._lock:
            entry = self._entries.get(self._cache_of.get(key.identity, 0))  # 0 is the number of no cache
            if entry is not None:
                self._remove_keys(entry, {key.identity})
                self._drop_if_unused(entry)

    def close(self) -> None:
        """Ends every cache, whatever its keys, and takes no more."""
        with self._lock:
            self._closed = True
            ended, self._entries, self._cache_of = self._entries, {}, {}
            for entry in ended.values():
                entry.cache.tensors = []

    def _checked(self, keys: Sequence[CacheKey | BlocksCacheKey]) -> set[Hashable]:
        if self._closed:
            raise LLMException("the manager is finalized", LLMStatusCode.LLM_ENGINE_FINALIZED)
        identities: set[Hashable] = set()
        for key in keys:
            if key.identity in self._cache_of or key.identity in identities:
                raise LLMParamInvalid(f"the key {key} is one of a cache already")
            if key.identity is not None:
                identities.add(key.identity)
        return identities

    def _add(self, cache: Cache, identities: set[Hashable], *, registered: bool) -> Cache:
        self._last_id += 1
        cache.cache_id = self._last_id
        self._entries[cache.cache_id] = _Entry(cache, cache.tensors, identities, registered)
        self._cache_of.update(dict.fromkeys(identities, cache.cache_id))
        return cache

    def _remove_keys(self, entry: _Entry, identities: set[Hashable]) -> None:
        for identity in identities:
            self._cache_of.pop(identity, None)
        entry.keys = entry.keys - identities

    def _drop_if_unused(self, entry: _Entry) -> None:
        charged = entry.charged
        if entry.given_up and not entry.keys and self._entries.pop(entry.cache.cache_id, None) is not None:
            self._used[entry.cache.cache_desc.placement] -= charged
