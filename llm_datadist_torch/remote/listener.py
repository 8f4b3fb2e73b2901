# SPDX-License-Identifier: Apache-2.0
"""The addresses at which a process listens."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence

from ..datadist.status import LLMException, LLMStatusCode, llm_error


class Listener:
    """Listens at some addresses, none at first. Not thread-safe.

    Args:
        accepted: Called with each connection, in a thread of its own.
    """

    def __init__(self, accepted: Callable[[socket.socket], None]) -> None:
        self._accepted = accepted
        self._sockets: list[socket.socket] = []

    def listen(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Listens at these addresses, and no longer at others.

        Raises:
            LLMException: LLM_FAILED if an address cannot be used.
        """
        self.close()
        try:
            for address in addresses:
                self._sockets.append(_listen(address))
        except LLMException:
            self.close()
            raise
        for listener in self._sockets:
            threading.Thread(target=self._accept, args=(listener,), name="llm_datadist listener", daemon=True).start()

    def close(self) -> None:
        """Stops listening."""
        sockets, self._sockets = self._sockets, []
        for listener in sockets:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connected, _ = listener.accept()
            except OSError:
                if listener not in self._sockets:
                    return
                time.sleep(0.1)  # the process is out of descriptors, perhaps only for a moment
                continue
            threading.Thread(
                target=self._accepted, args=(connected,), name="llm_datadist greeting", daemon=True
            ).start()


def _listen(address: tuple[str, int]) -> socket.socket:
    try:
        return socket.create_server(address, backlog=64)
    except OSError as error:
        raise llm_error(LLMStatusCode.LLM_FAILED, f"cannot listen at {address[0]}:{address[1]}: {error}") from error
