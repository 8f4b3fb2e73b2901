# SPDX-License-Identifier: Apache-2.0
"""One link: a control connection for what this process asks of a peer, and one for what the peer asks."""

import base64
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..datadist.fork import renew_lock_in_children
from ..datadist.log import logger
from ..datadist.status import LLMException, LLMStatusCode, llm_error
from .exports import Lender
from .layout import Layout
from .nixl import Addresses, Engine, Transfer
from .peer_cache import Borrowed
from .protocol import Channel, Closed
from .staging import Staging

_LEND_POLL_SECONDS = 1e-4
_PARK_POLL_SECONDS = 1e-2
_GRACE_SECONDS = 1.0


class Link:
    """A link to a peer. Its calls run one after the other; a call waits for the others until its deadline.

    Args:
        cluster_id: The cluster of the peer.
        agent: The peer's name in the engine.
        asks: The connection for requests to the peer.
        answers: The connection for requests of the peer.
        engine: The engine.
        lender: Answers the requests.
        dropped: Called once when the link ends, for whatever reason.
    """

    def __init__(
        self,
        cluster_id: int,
        agent: str,
        asks: Channel,
        answers: Channel,
        engine: Engine,
        lender: Lender,
        dropped: Callable[["Link"], None],
    ) -> None:
        self.cluster_id = cluster_id
        self.agent, self._asks, self._answers = agent, asks, answers
        self._engine, self._lender, self._dropped = engine, lender, dropped
        self._lock = threading.RLock()
        self._dropping = threading.Lock()
        renew_lock_in_children(self)
        self.lost = False
        self._parked: list[tuple[Transfer, Any]] = []
        self._in_use = self._unlinking = False
        self._unanswered = 0
        self._staging: Staging | None = None
        self._known: tuple[int, Layout] | None = None
        self._server = threading.Thread(target=self._serve, name=f"llm_datadist link {cluster_id}", daemon=True)

    def start(self) -> None:
        """Starts to answer the peer."""
        self._server.start()

    @contextlib.contextmanager
    def use(self, deadline: float) -> Iterator[None]:
        """Holds the link for one call.

        Raises:
            LLMException: LLM_TIMEOUT while another call holds it, LLM_LINK_BUSY if that is interrupted by this one (a signal
                handler, a destructor), LLM_NOT_YET_LINK if the link has ended meanwhile.
        """
        if not self._lock.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise llm_error(LLMStatusCode.LLM_TIMEOUT, f"another call is using the link to cluster {self.cluster_id}")
        if self._in_use or self.lost:
            busy = self._in_use
            self._lock.release()
            if busy:
                raise llm_error(LLMStatusCode.LLM_LINK_BUSY, "it interrupts a call on the same link")
            raise not_linked(self.cluster_id)
        self._in_use = True
        try:
            yield
        finally:
            self._in_use = False
            self._lock.release()
            if self.lost:
                self._release()

    def unlink(self, timeout_ms: int, deadline: float) -> None:
        """Asks the peer to end the link. Raises the errors of ``use`` and ``ask``, and LLM_LINK_BUSY if the peer uses it."""
        with self.use(deadline):
            self._unlinking = True
            try:
                self.ask({"do": "unlink", "timeout": timeout_ms}, deadline + 1)
            finally:
                self._unlinking = False

    @contextlib.contextmanager
    def borrow(self, key: Sequence[Any], deadline: float, *, write: bool) -> Iterator[Borrowed]:
        """Borrows a cache of the peer for the time of the block. ``use`` must be held.

        Raises:
            LLMException: What the peer refuses it with, and the errors of ``ask``.
        """
        known = self._known[0] if self._known else 0  # 0 is never an id
        reply = self.ask({"do": "borrow", "key": key, "write": write, "known": known}, deadline)
        if "layout" in reply:
            self._known = reply["cache"], Layout.from_message(reply["layout"])
        assert self._known is not None
        for metadata in reply["metadata"]:
            self._engine.add_peer(base64.b64decode(metadata))
        borrowed = Borrowed(reply["loan"], reply["row"], self._known[1], reply.get("slots", ()))
        try:
            yield borrowed
        finally:
            while self._unanswered and not self.lost:  # after an error in between
                with contextlib.suppress(LLMException):
                    self.reply(deadline + _GRACE_SECONDS)
            if not self.lost:
                pulled = borrowed.tensors_pulled
                with self._ends_the_link(deadline, "takes nothing back"):
                    self._asks.send({"do": "give back", "loan": borrowed.number, "pulled": pulled}, deadline)

    def ask(self, message: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Sends a request and waits for the reply. ``use`` must be held.

        Raises:
            LLMException: The error that the peer replies with; LLM_TIMEOUT without a reply, and LLM_LINK_FAILED if the
                connection ends. The link has ended then.
        """
        self.tell(message, deadline)
        return self.reply(deadline)

    def tell(self, message: dict[str, Any], deadline: float) -> None:
        """Sends a request. Raises the errors of ``ask``."""
        with self._ends_the_link(deadline, "takes no request"):
            self._asks.send(message, deadline)
            self._unanswered += 1

    def reply(self, deadline: float) -> dict[str, Any]:
        """The reply to the oldest request without one. Raises the errors of ``ask``."""
        with self._ends_the_link(deadline, "does not answer"):
            reply = self._asks.receive(deadline)
            self._unanswered -= 1
        if "error" in reply:
            name, text = reply["error"]
            raise llm_error(LLMStatusCode[name], f"cluster {self.cluster_id}: {text}")
        return reply

    def post(self, operation: str, local: Addresses, remote: Addresses) -> Transfer:
        """Starts to read or write. ``use`` must be held. Raises LLM_LINK_FAILED if the peer is gone."""
        try:
            return self._engine.start(operation, self.agent, local, remote)
        except Exception as error:  # NIXL's errors have no base of their own
            self.drop()
            raise llm_error(LLMStatusCode.LLM_LINK_FAILED, f"the link to cluster {self.cluster_id}: {error}") from error

    def staging(self) -> Staging:
        """The buffer for caches of a device of this process. ``use`` must be held."""
        if self._staging is None:
            self._staging = Staging(self._engine)
        return self._staging

    def park(self, transfer: Transfer, keep: Any) -> None:
        """Ends the link with a transfer in flight. Its memory, and that of the peer, stays until the transfer has ended."""
        self._parked.append((transfer, keep))
        self.drop()

    @property
    def busy(self) -> bool:
        """Whether something is still in flight, though the link has ended."""
        return bool(self._parked) or self._in_use

    def drop(self) -> None:
        """Ends the link. What is in flight ends first; the peer keeps what it lends until then. See Note [Loans]."""
        with self._dropping:
            if self.lost:
                return
            self.lost = True
        self._dropped(self)
        if not self._in_use:
            self._release()
        if self._lender.stop():
            self._answers.close()

    def ended(self) -> bool:
        """Whether the peer has closed the connection. Notices it before the thread that answers does."""
        return self.lost or self._answers.ended()

    def wait_until_given_back(self, deadline: float) -> None:
        """Waits until the peer has given back all that it borrowed."""
        self._server.join(max(deadline - time.monotonic(), 0))

    @contextlib.contextmanager
    def _ends_the_link(self, deadline: float, what: str) -> Iterator[None]:
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

    def _release(self) -> None:
        """Closes the connection that borrows, when nothing is in flight."""
        if self._parked:
            threading.Thread(target=self._drain, name="llm_datadist parked transfer", daemon=True).start()
            return
        self._engine.remove_peer(self.agent)
        if self._staging is not None:
            self._staging.close()
            self._staging = None
        self._asks.close()

    def _drain(self) -> None:
        while not all(_over(transfer) for transfer, _ in self._parked):
            time.sleep(_PARK_POLL_SECONDS)
        for transfer, _ in self._parked:
            with contextlib.suppress(Exception):  # of a failed transfer
                transfer.release()
        self._parked.clear()
        self._release()

    def _serve(self) -> None:
        """Answers the peer until its connection ends. Makes progress while the peer has loans: Note [Progress]."""
        try:
            while True:
                while self._lender.active and not self._answers.waits(_LEND_POLL_SECONDS):
                    self._engine.progress()
                message = self._answers.receive(None)
                if message.get("do") == "unlink":
                    if self._unlinked(message):
                        return
                    continue
                reply = self._lender.answer(message)
                if reply is not None:
                    self._answers.send(reply, time.monotonic() + 60)
        except (Closed, TimeoutError) as error:
            logger.debug("link to cluster %d: %s", self.cluster_id, error)
        finally:
            self._lender.end()
            self._answers.close()
            self.drop()

    def _unlinked(self, message: dict[str, Any]) -> bool:
        """Ends the link for the peer, unless a call of this process uses it, other than one that ends it too."""
        deadline = time.monotonic() + message["timeout"] / 1000
        if not self._unlinking and not self._free(deadline):
            error = [LLMStatusCode.LLM_LINK_BUSY.name, f"a call uses the link until after {message['timeout']} ms"]
            self._answers.send({"error": error}, deadline + 1)
            return False
        self.drop()
        with contextlib.suppress(Closed, TimeoutError):
            self._answers.send({}, deadline + 1)
        return True

    def _free(self, deadline: float) -> bool:
        """Whether no call holds the link, or ends before the deadline."""
        try:
            with self.use(deadline):
                return True
        except LLMException as error:
            return error.status_code is not LLMStatusCode.LLM_TIMEOUT


def _over(transfer: Transfer) -> bool:
    try:
        return transfer.done()
    except Exception:  # it failed: the peer is gone, and nothing more is written
        return True


def not_linked(cluster_id: int) -> LLMException:
    """The error of a call that needs a link."""
    return llm_error(LLMStatusCode.LLM_NOT_YET_LINK, f"there is no link to cluster {cluster_id}; call link_clusters")
