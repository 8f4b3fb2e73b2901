# SPDX-License-Identifier: Apache-2.0
"""Control connections between processes: framed JSON messages, authenticated, each with a deadline.

The standard library's multiprocessing.connection does the framing and the authentication. NIXL's own listener is not used:
it listens on every interface and admits everybody.
"""

import contextlib
import json
import os
import socket
import struct
import time
import weakref
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

SECRET = "LLM_DATADIST_SECRET"
"""The environment variable with the secret that all processes share."""

_MAX_BYTES = 1 << 26  # of a message: some megabytes for the longest lists of blocks
_channels: "weakref.WeakSet[Channel]" = weakref.WeakSet()


class Closed(Exception):
    """The other end has closed the connection, or does not speak this protocol."""


class Channel:
    """One control connection. Not thread-safe.

    Args:
        sock: A connected socket. The channel owns it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # A peer whose machine is gone answers nothing: lost after 10 + 3 * 5 seconds.
        for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        self._connection = Connection(os.dup(sock.fileno()))
        _channels.add(self)

    def authenticate(self, deadline: float, *, listener: bool) -> None:
        """Proves to each end that the other one has the secret.

        Raises:
            Closed: The other end is no peer, or has another secret.
            TimeoutError: No answer.
        """
        secret = os.environ.get(SECRET, "").encode()
        steps = (deliver_challenge, answer_challenge) if listener else (answer_challenge, deliver_challenge)
        try:
            for step in steps:
                self._set_timeout(socket.SO_RCVTIMEO, deadline)
                step(self._connection, secret)
        except BlockingIOError as error:
            raise TimeoutError from error
        except (AuthenticationError, AssertionError, EOFError, OSError, ValueError) as error:
            raise Closed(f"not a peer, or one with another {SECRET}: {error}") from error

    def send(self, message: dict[str, Any], deadline: float) -> None:
        """Sends a message.

        Raises:
            Closed: The connection is closed.
            TimeoutError: The other end does not read.
        """
        self._set_timeout(socket.SO_SNDTIMEO, deadline)
        try:
            self._connection.send_bytes(json.dumps(message).encode())
        except BlockingIOError as error:
            raise TimeoutError from error
        except OSError as error:
            raise Closed(str(error)) from error

    def receive(self, deadline: float | None) -> dict[str, Any]:
        """The next message.

        Raises:
            Closed: The connection is closed, or what arrived is not a message.
            TimeoutError: No message.
        """
        self._set_timeout(socket.SO_RCVTIMEO, deadline)
        try:
            message = json.loads(self._connection.recv_bytes(_MAX_BYTES))
        except BlockingIOError as error:
            raise TimeoutError from error
        except (EOFError, OSError, ValueError, RecursionError) as error:
            raise Closed(str(error) or "the connection was closed") from error
        if not isinstance(message, dict):
            raise Closed("not a message")
        return message

    def waits(self, seconds: float) -> bool:
        """Whether a message, or the end of the connection, arrives within that time."""
        return self._connection.poll(seconds)

    def ended(self) -> bool:
        """Whether the other end has closed the connection, and nothing is left to be read."""
        try:
            return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Closes the connection, which also ends a ``receive`` of another thread."""
        with contextlib.suppress(OSError):  # the other end was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def close_descriptors(self) -> None:
        """Closes the connection in this process only: the process that this one was forked from keeps it."""
        self._socket.close()
        self._connection.close()

    def _set_timeout(self, option: int, deadline: float | None) -> None:
        """Lets reads or writes of the connection fail with BlockingIOError after the deadline; None: never."""
        left = 0.0 if deadline is None else max(deadline - time.monotonic(), 1e-3)
        value = struct.pack("@ll", int(left), int(left % 1 * 1e6))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, option, value)
        except OSError as error:
            raise Closed("the connection was closed") from error


def connect(address: tuple[str, int], deadline: float) -> Channel:
    """Connects to a listener and authenticates.

    Raises:
        Closed: There is no listener, or it is not a peer.
        TimeoutError: No answer.
    """
    try:
        connected = socket.create_connection(address, timeout=max(deadline - time.monotonic(), 1e-3))
        connected.settimeout(None)
        channel = Channel(connected)
    except TimeoutError:
        raise
    except OSError as error:
        raise Closed(f"{address[0]}:{address[1]}: {error}") from error
    try:
        channel.authenticate(deadline, listener=False)
    except BaseException:
        channel.close()
        raise
    return channel


def _close_in_child() -> None:
    # If a child kept the connections of its parent open, the peers would not see the end of the parent.
    for channel in _channels:
        channel.close_descriptors()


os.register_at_fork(after_in_child=_close_in_child)
