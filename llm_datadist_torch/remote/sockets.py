# SPDX-License-Identifier: Apache-2.0
"""Control connections over ZeroMQ: a ROUTER for each address where the process listens, a DEALER for each call.

Note [Lost peers]: a connection ends when the kernel says so: the process of the peer has ended, or its machine has not answered
for some 25 seconds. ZeroMQ's heartbeats would also end the connection to a process that is stopped (SIGSTOP), which may go on
and write to the memory that it has leased.
"""

import contextlib
import functools
import os
import socket
from collections.abc import Callable, Sequence

import zmq
from zmq.utils.monitor import recv_monitor_message

from ..datadist.status import LLMStatusCode, llm_error
from .connection import Connection, dispatch, has_input
from .io_thread import IoThread, Steps
from .listener import ENDED, Address, Events, Listener
from .secret import Authenticator, secure

_MAX_BYTES = 64 << 20  # of a message: some megabytes for the longest lists of blocks
_HANDSHAKE_MS = 5_000
_NEVER_MS = 1_000_000_000  # not -1, with which libzmq sometimes never closes a socket whose connection is refused
_KEEPALIVE = {zmq.TCP_KEEPALIVE: 1, zmq.TCP_KEEPALIVE_IDLE: 10, zmq.TCP_KEEPALIVE_INTVL: 5, zmq.TCP_KEEPALIVE_CNT: 3}
_MAX_UNACKNOWLEDGED_MS = 25_000
_FAILED = ENDED | zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_AUTH


class Sockets:
    """All sockets of a process.

    Args:
        thread: The I/O thread.
        accepted: Called with each new connection to an address where the process listens, before its first message.
    """

    def __init__(self, thread: IoThread, accepted: Callable[[Connection], None]) -> None:
        self._thread, self._accepted = thread, accepted
        self._context = zmq.Context()
        self._context.setsockopt(zmq.MAX_SOCKETS, 65_000)
        self._authenticator = Authenticator(self._context)
        thread.call(lambda: thread.add_reader(self._authenticator.socket, self._authenticator.answer))
        self._listeners: dict[Address, Listener] = {}
        self._monitored: dict[zmq.Socket[bytes], zmq.Socket[bytes]] = {}

    def listen(self, addresses: Sequence[Address]) -> None:
        """Listens at these addresses, and no longer at others. For one thread at a time. Waits for what ends.

        Raises:
            LLMException: LLM_FAILED if an address cannot be used; nothing has changed then.
        """
        made: dict[Address, Listener] = {}
        try:
            for address in addresses:
                if address not in self._listeners and address not in made:
                    made[address] = Listener(self._socket(zmq.ROUTER, listens=True), address, self._accepted)
        except zmq.ZMQError as error:
            for listener in made.values():
                listener.socket.close(linger=0)
            text = f"cannot listen at {address[0]}:{address[1]}: {error}"
            raise llm_error(LLMStatusCode.LLM_FAILED, text) from error
        ended = [self._listeners.pop(address) for address in list(self._listeners) if address not in addresses]
        self._listeners |= made
        _ports.difference_update(listener.address[1] for listener in ended)
        _ports.update(port for _, port in addresses)
        for listener in made.values():
            self._thread.call(functools.partial(self._adopt, listener))
        for retiring in [self._thread.start(self._retire(listener)) for listener in ended]:
            retiring.wait()

    def connect(self, address: Address) -> Connection:
        """Connects to a listener. For the I/O thread. ``lost`` is called if there is none, or it is not a peer."""
        dealer = self._socket(zmq.DEALER, listens=False)

        def read() -> None:
            while not dealer.closed and has_input(dealer):
                dispatch(connection, dealer.recv_multipart(zmq.NOBLOCK))

        def read_events() -> None:
            if any(event & _FAILED for event, _ in events()):
                read()  # what came before the end
                close()
                connection.lost()

        def close() -> None:
            if not dealer.closed:
                _called.remove(address)
                self._close(dealer)

        connection = Connection(lambda data: dealer.send(data, zmq.NOBLOCK), close)
        events = self._monitor(dealer, read_events)
        self._thread.add_reader(dealer, read)
        _called.append(address)
        dealer.connect(f"tcp://{address[0]}:{address[1]}")
        return connection

    def close(self) -> None:
        """Closes all sockets. For the I/O thread, or after its end."""
        for listener in self._listeners.values():
            _ports.discard(listener.address[1])
            self._close(listener.socket)
        self._listeners.clear()
        for monitored in list(self._monitored):
            self._close(monitored)
        self._thread.remove_reader(self._authenticator.socket)
        self._context.destroy(linger=0)

    def _socket(self, kind: int, *, listens: bool) -> "zmq.Socket[bytes]":
        made: zmq.Socket[bytes] = self._context.socket(kind)
        # No LINGER: with one, libzmq may wait for ever for a connection that has just failed. ``Link`` waits for the peer.
        options = {
            **_KEEPALIVE,
            zmq.TCP_MAXRT: _MAX_UNACKNOWLEDGED_MS,
            zmq.RECONNECT_IVL: _NEVER_MS,
            zmq.HANDSHAKE_IVL: _HANDSHAKE_MS,
            zmq.MAXMSGSIZE: _MAX_BYTES,
            zmq.SNDHWM: 0,
            zmq.RCVHWM: 64,
        }
        for option, value in options.items():
            made.setsockopt(option, value)
        if listens:
            made.setsockopt(zmq.ROUTER_MANDATORY, 1)
        secure(made, listens=listens)
        return made

    def _monitor(self, monitored: "zmq.Socket[bytes]", read: Callable[[], None]) -> Events:
        """Calls a function when events of a socket can be read. Returns what reads them: each event and its value."""
        monitor = monitored.get_monitor_socket()
        self._monitored[monitored] = monitor
        self._thread.add_reader(monitor, read)

        def events() -> list[tuple[int, int]]:
            happened = []
            while not monitor.closed and has_input(monitor):
                message = recv_monitor_message(monitor, zmq.NOBLOCK)
                happened.append((int(message["event"]), int(message["value"])))
            return happened

        return events

    def _close(self, ended: "zmq.Socket[bytes]") -> None:
        monitor = self._monitored.pop(ended, None)
        if monitor is not None:
            self._thread.remove_reader(monitor)
            ended.disable_monitor()
            monitor.close(linger=0)
        self._thread.remove_reader(ended)
        ended.close(linger=0)

    def _adopt(self, listener: Listener) -> None:
        listener.open(self._monitor(listener.socket, listener.read))
        self._thread.add_reader(listener.socket, listener.read)

    def _retire(self, listener: Listener) -> Steps[None]:
        self._close(listener.socket)
        listener.lose_all()
        yield from ()


def _close_in_child() -> None:
    """Closes what a forked child has inherited: it would keep ports taken, and connections open after the parent's end."""
    for descriptor in [int(name) for name in os.listdir("/proc/self/fd")] if _ports or _called else []:
        with contextlib.suppress(OSError):
            duplicate = socket.socket(fileno=os.dup(descriptor))
            mine = duplicate.family == socket.AF_INET and (
                duplicate.getsockname()[1] in _ports or duplicate.getpeername() in _called
            )
            duplicate.close()
            if mine:
                os.close(descriptor)


_ports: set[int] = set()
_called: list[Address] = []
os.register_at_fork(after_in_child=_close_in_child)
