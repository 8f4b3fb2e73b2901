# SPDX-License-Identifier: Apache-2.0
"""One link: a control connection for requests to a peer, and one for requests of the peer."""

import base64
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..datadist.fork import ForkSafeLock
from ..datadist.log import logger
from ..datadist.status import LLMException, LLMStatusCode, llm_error
from .exports import Exports
from .layout import Layout
from .nixl import Addresses, Engine, Request
from .peer_cache import PeerCache
from .protocol import Channel, Closed
from .staging import Staging

_PROGRESS_SECONDS = 1e-4
_ABANDONED_POLL_SECONDS = 1e-2
_GRACE_SECONDS = 1.0


class Link:
    """A link to a peer. Its calls run one after the other; a call waits for the others until its deadline.

    Args:
        cluster_id: The cluster of the peer.
        agent: The peer's name in the engine.
        client: The connection for requests to the peer.
        server: The connection for requests of the peer.
        engine: The engine.
        exports: Answers the requests of the peer.
        dropped: Called once when the link ends, for whatever reason.

    Attributes:
        lost: Whether the link has ended.
    """

    def __init__(
        self,
        cluster_id: int,
        agent: str,
        client: Channel,
        server: Channel,
        engine: Engine,
        exports: Exports,
        dropped: Callable[["Link"], None],
    ) -> None:
        self.cluster_id = cluster_id
        self._agent, self._client, self._server = agent, client, server
        self._engine, self._exports, self._dropped = engine, exports, dropped
        self._lock = ForkSafeLock()
        self._dropping = threading.Lock()
        self.lost = False
        self._abandoned: list[tuple[Request, Any]] = []
        self._in_use = self._unlinking = False
        self._pending_replies = 0
        self._staging: Staging | None = None
        self._last_layout: tuple[int, Layout] | None = None  # of the cache with this id
        self._thread = threading.Thread(target=self._serve, name=f"llm_datadist link {cluster_id}", daemon=True)

    def start(self) -> None:
        """Starts the thread that answers the peer."""
        self._thread.start()

    @contextlib.contextmanager
    def use(self, deadline: float) -> Iterator[None]:
        """Holds the link for one call.

        Raises:
            LLMException: LLM_TIMEOUT while another call holds it; LLM_LINK_BUSY in a signal handler or destructor that
                interrupts the call that holds it; LLM_NOT_YET_LINK if the link has ended meanwhile.
        """
        lock = self._lock.current
        if not lock.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise llm_error(LLMStatusCode.LLM_TIMEOUT, f"another call is using the link to cluster {self.cluster_id}")
        if self._in_use or self.lost:
            busy = self._in_use
            lock.release()
            if busy:
                raise llm_error(LLMStatusCode.LLM_LINK_BUSY, "it interrupts a call on the same link")
            raise not_linked(self.cluster_id)
        self._in_use = True
        try:
            yield
        finally:
            self._in_use = False
            lock.release()
            if self.lost:
                self._close_client()

    def unlink(self, timeout_ms: int, deadline: float) -> None:
        """Asks the peer to end the link. Raises the errors of ``use`` and ``call``, and LLM_LINK_BUSY if the peer uses it."""
        with self.use(deadline):
            self._unlinking = True
            try:
                self.call({"do": "unlink", "timeout": timeout_ms}, deadline + 1)
            finally:
                self._unlinking = False

    @contextlib.contextmanager
    def acquire(self, key: Sequence[Any], deadline: float, *, write: bool) -> Iterator[PeerCache]:
        """A cache of the peer, which keeps its memory until the end of the block. ``use`` must be held.

        Raises:
            LLMException: The error that the peer replies with, and the errors of ``call``.
        """
        known = self._last_layout[0] if self._last_layout else 0  # 0 is never the id of a cache
        reply = self.call({"do": "acquire", "key": key, "write": write, "known": known}, deadline)
        if "layout" in reply:
            self._last_layout = reply["cache"], Layout.from_message(reply["layout"])
        assert self._last_layout is not None
        for metadata in reply["metadata"]:
            self._engine.add_peer(base64.b64decode(metadata))
        cache = PeerCache(reply["export"], reply["row"], self._last_layout[1], reply.get("slots", ()))
        try:
            yield cache
        finally:
            while self._pending_replies and not self.lost:  # an error came before all replies
                with contextlib.suppress(LLMException):
                    self.receive(deadline + _GRACE_SECONDS)
            if not self.lost:
                message = {"do": "release", "export": cache.export, "pulled": cache.tensors_pulled}
                with self._drop_on_error(deadline, "takes no message"):
                    self._client.send(message, deadline)

    def call(self, message: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Sends a request and waits for the reply. ``use`` must be held.

        Raises:
            LLMException: The error that the peer replies with; LLM_TIMEOUT without a reply, and LLM_LINK_FAILED if the
                connection ends. The link has ended then.
        """
        self.send(message, deadline)
        return self.receive(deadline)

    def send(self, message: dict[str, Any], deadline: float) -> None:
        """Sends a request. Raises the errors of ``call``."""
        with self._drop_on_error(deadline, "takes no request"):
            self._client.send(message, deadline)
            self._pending_replies += 1

    def receive(self, deadline: float) -> dict[str, Any]:
        """Waits for the reply to the oldest request without one. Raises the errors of ``call``."""
        with self._drop_on_error(deadline, "does not answer"):
            reply = self._client.receive(deadline)
            self._pending_replies -= 1
        if "error" in reply:
            name, text = reply["error"]
            raise llm_error(LLMStatusCode[name], f"cluster {self.cluster_id}: {text}")
        return reply

    def start_request(self, operation: str, local: Addresses, remote: Addresses) -> Request:
        """Starts to read or write. ``use`` must be held. Raises LLM_LINK_FAILED if the peer is gone."""
        try:
            return self._engine.start(operation, self._agent, local, remote)
        except Exception as error:  # NIXL's errors have no base of their own
            self.drop()
            raise llm_error(LLMStatusCode.LLM_LINK_FAILED, f"the link to cluster {self.cluster_id}: {error}") from error

    def staging(self) -> Staging:
        """The buffer for caches of a device of this process. ``use`` must be held."""
        if self._staging is None:
            self._staging = Staging(self._engine)
        return self._staging

    def abandon(self, request: Request, owner: Any) -> None:
        """Ends the link while a request is in flight.

        The owner of the local memory lives until the request has ended, and the peer keeps its memory until then.
        """
        self._abandoned.append((request, owner))
        self.drop()

    @property
    def busy(self) -> bool:
        """Whether a call holds the link, or a request is in flight after its end."""
        return bool(self._abandoned) or self._in_use

    def drop(self) -> None:
        """Ends the link. The connections close when no request is in flight. See Note [Exports]."""
        with self._dropping:
            if self.lost:
                return
            self.lost = True
        self._dropped(self)
        if not self._in_use:
            self._close_client()
        if self._exports.stop():
            self._server.close()

    def ended(self) -> bool:
        """Whether the link has ended, or the peer has closed it and the thread that answers has not noticed it yet."""
        return self.lost or self._server.ended()

    def wait_for_exports(self, deadline: float) -> None:
        """Waits until the peer has released all caches of this process."""
        self._thread.join(max(deadline - time.monotonic(), 0))

    @contextlib.contextmanager
    def _drop_on_error(self, deadline: float, what: str) -> Iterator[None]:
        try:
            yield
        except Closed as error:
            self.drop()
            raise llm_error(
                LLMStatusCode.LLM_LINK_FAILED, f"the link to cluster {self.cluster_id} was lost: {error}"
            ) from error
        except TimeoutError as error:
            self.drop()
            raise llm_error(
                LLMStatusCode.LLM_TIMEOUT,
                f"cluster {self.cluster_id} {what}; the link to it has ended, and has to be made again",
            ) from error
        except BaseException:  # Ctrl-C in the middle of a message, or between a request and its reply
            self.drop()
            raise

    def _close_client(self) -> None:
        """Closes the connection for requests to the peer, when no request is in flight."""
        if self._abandoned:
            threading.Thread(target=self._drain, name="llm_datadist abandoned request", daemon=True).start()
            return
        self._engine.remove_peer(self._agent)
        if self._staging is not None:
            self._staging.close()
            self._staging = None
        self._client.close()

    def _drain(self) -> None:
        while not all(_has_ended(request) for request, _ in self._abandoned):
            time.sleep(_ABANDONED_POLL_SECONDS)
        for request, _ in self._abandoned:
            with contextlib.suppress(Exception):  # of a failed request
                request.release()
        self._abandoned.clear()
        self._close_client()

    def _serve(self) -> None:
        """Answers the peer until its connection ends. Makes progress while the peer uses a cache: Note [Progress]."""
        try:
            while True:
                while self._exports.active and not self._server.waits(_PROGRESS_SECONDS):
                    self._engine.progress()
                message = self._server.receive(None)
                if message.get("do") == "unlink":
                    if self._answer_unlink(message):
                        return
                    continue
                reply = self._exports.answer(message)
                if reply is not None:
                    self._server.send(reply, time.monotonic() + 60)
        except (Closed, TimeoutError) as error:
            logger.debug("link to cluster %d: %s", self.cluster_id, error)
        finally:
            self._exports.end()
            self._server.close()
            self.drop()

    def _answer_unlink(self, message: dict[str, Any]) -> bool:
        """Ends the link for the peer, unless a call of this process uses it that does not end the link too."""
        deadline = time.monotonic() + message["timeout"] / 1000
        if not self._unlinking and not self._is_free(deadline):
            error = [LLMStatusCode.LLM_LINK_BUSY.name, f"a call uses the link until after {message['timeout']} ms"]
            self._server.send({"error": error}, deadline + 1)
            return False
        self.drop()
        with contextlib.suppress(Closed, TimeoutError):
            self._server.send({}, deadline + 1)
        return True

    def _is_free(self, deadline: float) -> bool:
        """Whether no call holds the link, at the latest at the deadline."""
        try:
            with self.use(deadline):
                return True
        except LLMException as error:
            return error.status_code is not LLMStatusCode.LLM_TIMEOUT


def _has_ended(request: Request) -> bool:
    try:
        return request.done()
    except Exception:  # it failed: the peer is gone, and nothing more is written
        return True


def not_linked(cluster_id: int) -> LLMException:
    """The error of a call that needs a link."""
    return llm_error(LLMStatusCode.LLM_NOT_YET_LINK, f"there is no link to cluster {cluster_id}; call link_clusters")
