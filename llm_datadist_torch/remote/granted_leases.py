# SPDX-License-Identifier: Apache-2.0
"""The leases that one peer holds: caches of this process, whose memory it reads or writes.

Note [Leases]: the memory of a cache with a lease stays, whatever happens to the cache here, until the peer releases the lease or
its process has ended. A peer releases a lease when none of its requests is in flight, also after the end of the link. So memory
that a peer still writes to never gets another owner. If a peer stops, its leases stay until it goes on or is killed.
"""

from dataclasses import dataclass

import numpy as np

from ..datadist.registry import CacheReference, CacheRegistry
from ..datadist.result import Result
from ..datadist.status import param_invalid
from .io_thread import IoThread, Steps
from .layout import Layout, Part, layout_to_message
from .local_caches import LocalCache, LocalCaches
from .messages import Acquire, AddressKey, Granted, IdKey, Key, Plan, Stage
from .nixl import Engine, Soon
from .staging import Staged, Staging


@dataclass
class _Lease:
    references: list[CacheReference]
    caches: list[LocalCache]
    write: bool
    plan: Staged | None = None
    copying: Result[None] | None = None


class GrantedLeases:
    """The leases that the peer of one link holds. For the I/O thread."""

    def __init__(
        self, registry: CacheRegistry, caches: LocalCaches, engine: Engine, soon: Soon, thread: IoThread
    ) -> None:
        self._registry, self._caches, self._engine, self._soon, self._thread = registry, caches, engine, soon, thread
        self._leases: dict[int, _Lease] = {}
        self._staging: Staging | None = None
        self._told: set[int] = set()  # the registrations that the peer knows

    def __bool__(self) -> bool:
        """Whether the peer holds a lease."""
        return bool(self._leases)

    @property
    def any_written(self) -> bool:
        """Whether the peer may write to a cache."""
        return any(lease.write for lease in self._leases.values())

    def grant(self, message: Acquire) -> Granted:
        """Grants a lease of a cache.

        Raises:
            LLMException: LLM_KV_CACHE_NOT_EXIST for no such cache, LLM_PARAM_INVALID for one that other processes may not
                access, or that cannot be transferred.
            ValueError: The lease is there already.
        """
        if message.number in self._leases:
            raise ValueError(f"lease {message.number} is there")
        references: list[CacheReference] = []
        try:
            caches, layout, cache_id, row = self._find(message.key, references)
            if message.forgotten:
                self._told.clear()
            memories = [cache.memory for cache in caches if cache.memory is not None]
            slots = []
            if not memories:
                if self._staging is None:
                    self._staging = Staging(self._engine, self._soon)
                memories, slots = [self._staging.memory], self._staging.addresses
            new = {memory.number: memory for memory in memories if memory.number not in self._told}
            reply = Granted(
                message.number,
                cache_id,
                row,
                None if message.known == cache_id != 0 else layout_to_message(layout),
                [memory.number for memory in memories],
                slots,
                [memory.metadata for memory in new.values()],
            )
        except BaseException:
            for reference in references:
                self._registry.release(reference, None)
            raise
        self._told.update(new)
        self._leases[message.number] = _Lease(references, caches, message.write)
        return reply

    def plan(self, message: Plan) -> None:
        """Notes what the ``Stage`` requests of a lease will move.

        Raises:
            ValueError: There is no such lease, or the bytes are not in its cache.
        """
        lease = self._leases.get(message.lease)
        if lease is None or self._staging is None or len(lease.caches) != 1:
            raise ValueError(f"no lease {message.lease} of a device")
        part = Part(message.planes, *(np.frombuffer(numbers, np.int64) for numbers in (message.rows, message.offsets)))
        lengths = np.frombuffer(message.lengths, np.int64)
        part.check(lease.caches[0].layout, lengths)
        lease.plan = Staged(lease.caches[0], part, lengths, to_device=lease.write)

    def stage(self, message: Stage) -> Result[None]:
        """Copies one piece between the device and the pinned buffer, in the thread for such copies.

        Raises:
            ValueError: There is no such piece.
        """
        lease = self._leases.get(message.lease)
        if lease is None or lease.plan is None or self._staging is None or message.piece >= len(lease.plan):
            raise ValueError(f"no piece {message.piece} of lease {message.lease}")
        plan, staging = lease.plan, self._staging
        timeout_ms = max(message.timeout_ms, 1)
        lease.copying = self._thread.in_worker(lambda: staging.copy(plan, message.piece, timeout_ms))
        return lease.copying

    def release(self, number: int, pulled: list[int] | None) -> None:
        """Ends a lease, if it is there: the ``Acquire`` may have been refused."""
        lease = self._leases.pop(number, None)
        if lease is not None:
            self._thread.start(self._end(lease, pulled))

    def release_all(self) -> None:
        """Ends all leases, because the process of the peer has ended."""
        for number in list(self._leases):
            self.release(number, None)
        self._staging = None

    def _end(self, lease: _Lease, pulled: list[int] | None) -> Steps[None]:
        copying = lease.copying
        if copying is not None:
            yield (lambda: copying.done), float("inf")
        for reference in lease.references:
            self._registry.release(reference, pulled)

    def _find(self, key: Key, references: list[CacheReference]) -> tuple[list[LocalCache], Layout, int, int]:
        """The cache of a key, or a range of memory in caches. Adds the references to the list."""
        if not isinstance(key, AddressKey):
            named: list[str | int] = ["id", key.cache, key.row] if isinstance(key, IdKey) else [key.kind, *key.numbers]
            references.append(self._registry.acquire(named))
            [found] = references
            local = self._caches.of(found)
            return [local], local.layout, found.cache.cache_id, found.row
        if not key.addresses or not key.row_bytes or not key.rows:
            raise param_invalid("a range of memory must not be empty")
        for address in key.addresses:
            references.append(self._registry.acquire_memory(address, key.row_bytes * key.rows))
        owners = [self._caches.of(found) for found in references]
        on_host = owners[0].layout.on_host
        if any(owner.layout.dtype != key.dtype or owner.layout.on_host != on_host for owner in owners):
            raise param_invalid(f"dst_addrs are not all of caches of {key.dtype} on one device")
        layout = Layout(
            np.array(key.addresses, np.int64),
            key.row_bytes,
            key.row_bytes,
            key.rows,
            len(key.addresses),
            key.dtype,
            is_blocks=True,
            on_host=on_host,
        )
        if on_host:
            return [LocalCache(owner.tensors, layout, owner.memory) for owner in owners], layout, 0, 0
        tensors = [tensor for owner in owners for tensor in owner.tensors]
        return [LocalCache(tensors, layout, None)], layout, 0, 0
