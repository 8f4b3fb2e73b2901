# SPDX-License-Identifier: Apache-2.0
"""One address where this process listens, and the connections to it."""

import contextlib
import errno
import ipaddress
import logging
import os
import socket
import time
from collections.abc import Callable

import zmq

from ..datadist.log import warn_once
from .connection import Connection, dispatch, has_input
from .secret import SECRET

Address = tuple[str, int]
Events = Callable[[], list[tuple[int, int]]]
"""Reads the events of a socket that have happened since the last call: each event, and its value."""

ENDED = zmq.Event.DISCONNECTED | zmq.Event.CLOSED

_MAX_STRANGERS = 128
_MAX_BATCH = 1000
_REBIND_SECONDS = 0.5

logger = logging.getLogger(__name__)


class Listener:
    """A ROUTER, bound to one address. Knows its connections by descriptor and by ZeroMQ's routing id."""

    def __init__(self, router: "zmq.Socket[bytes]", address: Address, accepted: Callable[[Connection], None]) -> None:
        self.socket, self.address = router, address
        self._accepted = accepted
        self._connections: dict[int, Connection | None] = {}  # None before the first message
        self._routes: dict[bytes, Connection] = {}
        self._events: Events = lambda: []
        router.get_monitor_socket()  # before a process can connect: an event that nobody waits for is lost
        _bind(router, address)
        if not ipaddress.ip_address(address[0]).is_loopback and not os.environ.get(SECRET):
            warn_once(f"{address[0]}:{address[1]} is open to every process that reaches it: set {SECRET}")

    def open(self, events: Events) -> None:
        """Begins to read. For the I/O thread, as all that follow."""
        self._events = events

    def read(self) -> None:
        """Reads messages and events. What belongs to a message has happened before it, so the events are read last."""
        messages: list[tuple[bytes, int, list[bytes]]] = []
        while len(messages) < _MAX_BATCH and has_input(self.socket):
            route, *frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            descriptor = int(frames[0].get(zmq.SRCFD)) if frames else -1
            messages.append((route.bytes, descriptor, [frame.bytes for frame in frames]))
        for event, descriptor in self._events():
            if event & zmq.Event.ACCEPTED:
                self._connections[descriptor] = None
            elif event & ENDED:
                connection = self._connections.pop(descriptor, None)
                if connection is not None:
                    for name, _, parts in messages:
                        if self._routes.get(name) is connection:
                            dispatch(connection, parts)
                    messages = [message for message in messages if self._routes.get(message[0]) is not connection]
                    self._lose(connection)
        for name, descriptor, parts in messages:
            connection = self._routes.get(name) or self._accept(name, descriptor)
            if connection is not None:
                dispatch(connection, parts)
        self._limit()

    def lose_all(self) -> None:
        """Ends all connections, because the socket is closed."""
        for connection in list(self._routes.values()):
            self._lose(connection)

    def _accept(self, route: bytes, descriptor: int) -> Connection | None:
        if descriptor not in self._connections:
            return None  # it has ended
        before = self._connections[descriptor]
        if before is not None:
            self._lose(before)
        connection = Connection(lambda data: self.socket.send_multipart([route, data], zmq.NOBLOCK), lambda: None)
        self._connections[descriptor] = self._routes[route] = connection
        self._accepted(connection)
        return connection

    def _lose(self, connection: Connection) -> None:
        self._routes = {route: other for route, other in self._routes.items() if other is not connection}
        connection.lost()

    def _limit(self) -> None:
        """Ends the oldest connections that have not said who they are, if there are too many."""
        strangers = [
            descriptor
            for descriptor, connection in self._connections.items()
            if not connection or connection.is_stranger
        ]
        for descriptor in strangers[:-_MAX_STRANGERS]:
            if _shut_down(descriptor, self.address[1]):
                logger.warning("%s:%d: ended a connection: too many do not say who they are", *self.address)
            del self._connections[descriptor]  # also one whose end ZeroMQ has not reported


def _bind(router: "zmq.Socket[bytes]", address: Address) -> None:
    """Binds a socket. Tries again for a moment: libzmq closes a listener of this process in a thread of its own."""
    deadline = time.monotonic() + _REBIND_SECONDS
    while True:
        try:
            router.bind(f"tcp://{address[0]}:{address[1]}")
            return
        except zmq.ZMQError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
        time.sleep(1e-3)


def _shut_down(descriptor: int, port: int) -> bool:
    """Ends a connection to a local port, which ZeroMQ closes then. Returns False if the descriptor is another one by now."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as duplicate:
        if duplicate.family == socket.AF_INET and duplicate.getsockname()[1] == port:
            duplicate.shutdown(socket.SHUT_RDWR)
            return True
    return False
