# SPDX-License-Identifier: Apache-2.0
"""The caches of a CacheManager, by id and by key."""

import contextlib
import itertools
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from .cache import Cache
from .cache_desc import CacheDesc, Placement
from .cache_keys import BlocksCacheKey, CacheKey
from .fork import ForkSafeLock
from .status import LLMStatusCode, llm_error, param_invalid

Keys = Sequence[CacheKey | BlocksCacheKey]


class NewCache(NamedTuple):
    """A cache to be added to a registry.

    Attributes:
        allocated: Whether its memory counts towards the limit. Registered memory belongs to the user.
        remote_accessible: Whether peers may use it.
    """

    cache: Cache
    keys: Keys
    allocated: bool
    remote_accessible: bool


@dataclass
class _Entry:
    cache: Cache
    tensors: list[Tensor]  # keep the memory for keys and references when the cache has ended
    keys: dict[Hashable, int]  # the row that each key names
    accounted_bytes: int  # count towards the limit; 0 for registered memory, which belongs to the user
    remote_accessible: bool
    ended: bool = False
    references: int = 0
    pulled: dict[Hashable, set[int]] = field(default_factory=dict)  # by key, the tensors that peers have read


@dataclass(frozen=True)
class CacheReference:
    """A cache that a peer reads or writes. Its memory stays until ``CacheRegistry.release``.

    Attributes:
        cache: The cache, which may have ended.
        row: The row that was asked for.
        key: The key that is removed when all tensors of the row have been pulled, or None.
    """

    cache: Cache
    tensors: list[Tensor]
    row: int
    key: Hashable


class CacheRegistry:
    """Caches by id and by key, and the bytes they use. Every method is thread-safe.

    A cache stays until it has ended and has no keys and no references left.

    Note [Interrupts]: a signal handler may raise in any of these methods, for example KeyboardInterrupt. CPython runs handlers
    when a call returns or begins and when a loop repeats, so not between two assignments. A change is therefore either
    made by statements without a call, or can be completed by calling the method again. So the callback of
    ``call_on_release`` may be called more than once for a cache.

    Args:
        limits: The bytes that all allocated caches of a placement may use together, and the name of the limit in
            messages. A placement that is not in it has no limit.
    """

    def __init__(self, limits: Mapping[Placement, tuple[int, str]]) -> None:
        self._lock = ForkSafeLock()
        self._limits = limits
        self._entries: dict[int, _Entry] = {}
        self._cache_of: dict[Hashable, int] = {}
        self._ids = itertools.count(1)
        self._closed = False
        self._on_release: Callable[[Cache], None] = lambda cache: None

    def call_on_release(self, callback: Callable[[Cache], None]) -> None:
        """Calls a function with each cache whose memory the registry releases from now on."""
        self._on_release = callback

    def check(self, cache_desc: CacheDesc, keys: Keys, *, allocated: bool) -> dict[Hashable, int]:
        """Checks whether a cache can be added.

        Returns:
            The row of each key.

        Raises:
            LLMException: LLM_OUT_OF_MEMORY for an allocated cache beyond the limit of its placement, LLM_PARAM_INVALID for a
                key that is taken, LLM_ENGINE_FINALIZED after ``close``.
        """
        with self._lock.current:
            if allocated and cache_desc.placement in self._limits:
                self._check_limit(cache_desc)
            if self._closed:
                raise llm_error(LLMStatusCode.LLM_ENGINE_FINALIZED, "the manager is finalized")
            rows: dict[Hashable, int] = {}
            for row, key in enumerate(keys):
                if key.identity in self._cache_of or key.identity in rows:
                    raise param_invalid(f"the key {key} is taken, by another cache or another row of this one")
                if key.identity is not None:
                    rows[key.identity] = row
            return rows

    def add(self, new: NewCache) -> None:
        """Adds a cache, and gives it its id. Raises the errors of ``check``."""
        desc = new.cache.cache_desc
        with self._lock.current:
            rows = self.check(desc, new.keys, allocated=new.allocated)
            accounted_bytes = desc.num_tensors * desc.size if new.allocated else 0
            entry = _Entry(new.cache, new.cache.tensors, rows, accounted_bytes, new.remote_accessible)
            cache_id = next(self._ids)
            cache_of = dict.fromkeys(rows, cache_id)
            new.cache.cache_id = cache_id  # no call from here on: Note [Interrupts]
            self._entries[cache_id] = entry
            self._cache_of |= cache_of

    def discard(self, cache: Cache) -> None:
        """Ends a cache with all its keys, because its caller does not get it. Does nothing for one that is not here."""
        with self._lock.current:
            entry = self._entries.get(cache.cache_id)
            if entry is not None and entry.cache is cache:
                self._remove_keys(entry, list(entry.keys))
                self.end(cache.cache_id)

    def find(self, cache_id: int) -> Cache | None:
        """The cache with this id, unless it has ended."""
        with self._lock.current:
            entry = self._entries.get(cache_id)
            return None if entry is None or entry.ended else entry.cache

    def end(self, cache_id: int) -> None:
        """Ends a cache: copies refuse it from now on. The memory of an allocated one stays until its last key is removed.

        The keys of registered memory, which the user may free now, are removed, and so is the key of a blocks cache. Does
        nothing if there is no cache with this id, or it has ended.
        """
        with self._lock.current:
            entry = self._entries.get(cache_id)
            if entry is None:
                return
            entry.ended = True
            entry.cache.release()
            if entry.cache.is_blocks_cache or entry.accounted_bytes == 0:  # 0: registered
                self._remove_keys(entry, list(entry.keys))
            self._drop_if_unused(entry)

    def end_allocated(self, cache: Cache) -> None:
        """Ends a cache if it was allocated here. Does nothing for a registered cache or one of another manager."""
        with self._lock.current:
            entry = self._entries.get(cache.cache_id)
            if entry is not None and entry.cache is cache and entry.accounted_bytes > 0:  # 0: registered
                self.end(cache.cache_id)

    def remove_key(self, key: CacheKey | BlocksCacheKey) -> None:
        """Removes a key, and with the last key of an ended cache its memory. Does nothing if no cache has the key."""
        with self._lock.current:
            entry = self._entries.get(self._cache_of.get(key.identity, 0))  # 0 is never an id
            if entry is not None:
                self._remove_keys(entry, [key.identity])
                self._drop_if_unused(entry)

    def acquire(self, key: Sequence[str | int]) -> CacheReference:
        """Finds the cache of a key, and keeps its memory until ``release``.

        Args:
            key: The identity of a key; or "id", the id of a cache, and a row.

        Raises:
            LLMException: LLM_KV_CACHE_NOT_EXIST for no such cache, LLM_PARAM_INVALID for one that other processes may
                not access.
        """
        kind, *numbers = key
        with self._lock.current:
            by_id = kind == "id"
            cache_id = int(numbers[0]) if by_id else self._cache_of.get(tuple(key), 0)  # 0 is never an id
            entry = self._entries.get(cache_id)
            if entry is None or (by_id and entry.ended):
                raise llm_error(LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, f"no cache has the key {list(key)}")
            if not entry.remote_accessible:
                raise param_invalid(
                    f"cache {cache_id} was registered with remote_accessible=False, the default in host memory"
                )
            row = int(numbers[1]) if by_id else entry.keys[tuple(key)]
            entry.references += 1
            # As in LLM-DataDist, a pull removes the key of a request, but not of a prefix, of blocks or of registered memory.
            allocated = entry.accounted_bytes > 0
            named = [name for name, of in entry.keys.items() if of == row and allocated and _is_of_request(name)]
            return CacheReference(entry.cache, entry.tensors, row, named[0] if named else None)

    def acquire_memory(self, address: int, size: int) -> CacheReference:
        """Finds the cache that contains a range of memory. The row is 0, and no key is removed.

        Raises:
            LLMException: LLM_KV_CACHE_NOT_EXIST if no cache that other processes may access has all of it.
        """
        with self._lock.current:
            for entry in self._entries.values():
                if entry.ended or not entry.remote_accessible:
                    continue
                for tensor in entry.tensors:
                    if tensor.data_ptr() <= address and address + size <= tensor.data_ptr() + tensor.nbytes:
                        entry.references += 1
                        return CacheReference(entry.cache, entry.tensors, 0, None)
        raise llm_error(LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, f"no cache has {size} bytes at address {address}")

    def release(self, reference: CacheReference, pulled: Collection[int] | None) -> None:
        """Ends a reference. The last one releases the memory of an ended cache that has no keys left.

        Args:
            pulled: The indices of the tensors whose row was read, or None if the key has to stay. The key is removed when
                all tensors have been read.
        """
        with self._lock.current:
            entry = self._entries.get(reference.cache.cache_id)
            if entry is None:  # the registry has been closed
                return
            entry.references -= 1
            if pulled is not None and reference.key in entry.keys:
                done = entry.pulled.setdefault(reference.key, set())
                done.update(pulled)
                if len(done) >= entry.cache.num_tensors:
                    self._remove_keys(entry, [reference.key])
            self._drop_if_unused(entry)

    def close(self) -> None:
        """Ends every cache, with or without keys. No more can be added."""
        with self._lock.current:
            self._closed = True
            for entry in list(self._entries.values()):
                entry.ended = True
                entry.cache.release()
                self._on_release(entry.cache)
            self._entries, self._cache_of = {}, {}

    def _check_limit(self, cache_desc: CacheDesc) -> None:
        placement, wanted = cache_desc.placement, cache_desc.num_tensors * cache_desc.size
        # Added up anew, because a number that is kept beside the caches can differ from them after an interrupt.
        entries = [entry for entry in list(self._entries.values()) if entry.cache.cache_desc.placement is placement]
        used = sum(entry.accounted_bytes for entry in entries)
        limit, name = self._limits[placement]
        if used + wanted > limit:
            raise llm_error(
                LLMStatusCode.LLM_OUT_OF_MEMORY,
                f"{wanted} bytes for a cache are more than {name} ({limit}) leaves: {used} are in use",
            )

    def _remove_keys(self, entry: _Entry, identities: Sequence[Hashable]) -> None:
        for identity in identities:
            entry.pulled.pop(identity, None)
            with contextlib.suppress(KeyError):  # a destructor or a signal handler has removed it
                del entry.keys[identity], self._cache_of[identity]  # without a call in between: Note [Interrupts]

    def _drop_if_unused(self, entry: _Entry) -> None:
        if entry.ended and not entry.keys and entry.references == 0:
            self._on_release(entry.cache)
            self._entries.pop(entry.cache.cache_id, None)


def _is_of_request(identity: Hashable) -> bool:
    return isinstance(identity, tuple) and identity[0] == "request"
