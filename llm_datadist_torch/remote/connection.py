# SPDX-License-Identifier: Apache-2.0
"""One control connection, whichever process has made it."""

import logging
from collections.abc import Callable, Sequence

import zmq

from .messages import Message, decode, encode

logger = logging.getLogger(__name__)


class Connection:
    """A control connection. For the I/O thread.

    Attributes:
        received: Called with each message.
        refused: Called for what is not a message.
        lost: Called once when the connection ends, unless this process closes it.
        is_stranger: Whether nothing of the peer has been accepted yet.
    """

    def __init__(self, send: Callable[[bytes], object], close: Callable[[], None]) -> None:
        self._send, self._close = send, close
        self.received: Callable[[Message], None] = lambda message: None
        self.lost: Callable[[], None] = lambda: None
        self.refused: Callable[[], None] = lambda: None
        self.is_stranger = True

    def send(self, message: Message) -> None:
        """Sends a message. If the connection has ended, ``lost`` is called, or has been."""
        try:
            self._send(encode(message))
        except zmq.ZMQError as error:
            logger.debug("cannot send: %s", error)

    def close(self) -> None:
        """Closes the connection. A message that has just been sent may be lost."""
        self._close()


def dispatch(connection: Connection, frames: Sequence[bytes]) -> None:
    """Hands over what has been received."""
    try:
        if len(frames) != 1:
            raise ValueError(f"{len(frames)} frames")
        connection.received(decode(frames[0]))
    except ValueError as error:
        logger.warning("refused a message: %s", error)
        connection.refused()
    except Exception:  # which must not keep the messages of other connections from being read
        logger.exception("error in the answer to a message")
        connection.refused()


def has_input(readable: "zmq.Socket[bytes]") -> bool:
    """Whether a socket has a message."""
    return bool(int(readable.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
