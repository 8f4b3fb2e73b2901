# SPDX-License-Identifier: Apache-2.0
"""The leases that this process holds of one peer, and its requests to the engine: the other end of Note [Leases]."""

from collections.abc import Callable
from dataclasses import dataclass

from .layout import Layout, layout_from_message
from .messages import Acquire, Granted, IdKey, Key
from .nixl import Addresses, Engine, Request
from .staging import Staging

_KNOWN_LAYOUTS = 64
_KNOWN_REGISTRATIONS = 4096


@dataclass(frozen=True)
class Lease:
    """A lease of a cache of a peer, whose memory stays until the lease is released.

    Attributes:
        number: The number of the lease.
        row: The row that the key names.
        layout: Where the cache is.
        memory: The registration of each tensor, or one for all.
        slots: The addresses of the peer's staging slots, if the engine does not reach the cache itself.
    """

    number: int
    row: int
    layout: Layout
    memory: list[int]
    slots: list[int]


@dataclass(frozen=True)
class _Flight:
    request: Request
    lease: int
    owner: object  # of the local memory


class HeldLeases:
    """The leases that this process holds over one link. For the I/O thread.

    Args:
        metadata: How to reach the agent of the peer.
        release: Tells the peer that a lease has ended, with the tensors whose row has been read.

    Raises:
        ValueError: The agent cannot be reached.
    """

    def __init__(self, engine: Engine, metadata: bytes, release: Callable[[int, list[int] | None], None]) -> None:
        self._engine, self._metadata, self._send_release = engine, metadata, release
        self._agent = engine.add_peer(metadata)
        self._in_flight: list[_Flight] = []
        self._released: dict[int, list[int] | None] = {}  # to tell the peer when the last request in flight has ended
        self._layouts: dict[int, Layout] = {}
        self._registrations = 0
        self._staging: Staging | None = None

    def __bool__(self) -> bool:
        """Whether a request is in flight."""
        return bool(self._in_flight)

    def request(self, number: int, key: Key, *, write: bool) -> Acquire:
        """The request for a cache."""
        known = key.cache if isinstance(key, IdKey) and key.cache in self._layouts else 0
        return Acquire(number, key, write, known, self._forget_registrations())

    def learn(self, reply: Granted) -> None:
        """Notes what a reply says about the peer, also one to a call that has given up: the peer says it once.

        Raises:
            ValueError, OverflowError: The reply is not of a cache.
        """
        if reply.layout is not None:
            while len(self._layouts) >= _KNOWN_LAYOUTS:
                del self._layouts[next(iter(self._layouts))]
            self._layouts[reply.cache] = layout_from_message(reply.layout)
        for metadata in reply.registrations:
            self._engine.add_memory(metadata)
        self._registrations += len(reply.registrations)

    def received(self, reply: Granted) -> Lease:
        """The cache.

        Raises:
            ValueError: The reply is not of a cache.
        """
        layout = self._layouts.get(reply.cache)
        if layout is None or len(reply.memory) not in (1, layout.num_tensors):
            raise ValueError("the reply is not of a cache")
        return Lease(reply.number, reply.row, layout, reply.memory, reply.slots)

    def release(self, lease: int, pulled: list[int] | None) -> None:
        """Releases a lease, also after the end of the link: at once, or when no request for it is in flight."""
        if self.uses(lease):
            self._released[lease] = pulled
        else:
            self._send_release(lease, pulled)

    def start(self, operation: str, local: Addresses, remote: Addresses, lease: int, owner: object) -> Request:
        """Starts to read or write. Raises the errors of NIXL."""
        request = self._engine.start(operation, self._agent, local, remote)
        self._in_flight.append(_Flight(request, lease, owner))
        return request

    def check_in_flight(self) -> None:
        """Frees what belongs to requests that have ended."""
        ended = [flight for flight in self._in_flight if flight.request.has_ended()]
        self._in_flight = [flight for flight in self._in_flight if flight not in ended]
        for lease in {flight.lease for flight in ended}:
            if lease in self._released and not self.uses(lease):
                self._send_release(lease, self._released.pop(lease))

    def staging(self, make: Callable[[], Staging]) -> Staging:
        """The buffer for caches of a device of this process."""
        if self._staging is None:
            self._staging = make()
        return self._staging

    def close(self, *, ended: bool) -> None:
        """Leaves the peer. ``ended``: whether its process has ended."""
        self._staging = None
        self._engine.leave_peer(self._agent, ended=ended)

    def keep_for_ever(self) -> None:
        """Keeps the owners of memory that is still read or written, because this process does not look any more."""
        self._engine.keep_for_ever(self._in_flight)

    def uses(self, lease: int) -> bool:
        """Whether a request for a lease is in flight."""
        return any(flight.lease == lease for flight in self._in_flight)

    def _forget_registrations(self) -> bool:
        """Once in thousands of registrations, forgets them all: NIXL cannot forget a single one."""
        if self._registrations <= _KNOWN_REGISTRATIONS or self._in_flight or not self._engine.has_one_user(self._agent):
            return False
        self._engine.forget_peer(self._agent)
        self._engine.add_memory(self._metadata)
        self._registrations = 0
        return True
