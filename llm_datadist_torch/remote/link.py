# SPDX-License-Identifier: Apache-2.0
"""One link: requests of this process to a peer, and requests of the peer. docs/remote.md draws its states."""

import itertools
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import TypeVar

from ..datadist.log import logger
from ..datadist.status import LLMException, LLMStatusCode, llm_error, message_of
from . import messages
from .connection import Connection
from .granted_leases import GrantedLeases
from .held_leases import HeldLeases
from .io_thread import IoThread, Steps
from .nixl import Engine

R = TypeVar("R", messages.Welcome, messages.Done, messages.Granted)

_DRAIN_SECONDS = 0.2
_PARTING_SECONDS = 0.2


class LinkState(Enum):
    """The life of a link."""

    GREETING = auto()
    OPEN = auto()
    ENDED = auto()  # neither side asks for anything more; what is in flight or leased is waited for
    CLOSED = auto()


class Link:
    """A link to a peer. For the I/O thread.

    Args:
        leases: What the peer holds of this process.
        opened: Called when the peer is ready, or None if this process has called it.
        ended: Called once when the link ends, for whatever reason.
        closed: Called once when nothing is in flight or leased any more.
        group: The name of the communicator that the link belongs to, or "".

    Attributes:
        cluster_id: The cluster of the peer, or -1 before it is known.
        state: Where it is in its life.
        transfers: How many calls of this process use the link.
        unlinking: Whether this process waits for the end of the link.
        staging_in_use: Whether a call uses the staging buffer of this process.
    """

    def __init__(
        self,
        connection: Connection,
        engine: Engine,
        leases: GrantedLeases,
        thread: IoThread,
        opened: Callable[["Link"], None] | None,
        ended: Callable[["Link"], None],
        closed: Callable[["Link"], None],
        group: str,
    ) -> None:
        self.cluster_id, self.group = -1, group
        self.state = LinkState.GREETING
        self.transfers = 0
        self.unlinking = self.staging_in_use = False
        self._connection, self._engine, self._granted, self._thread = connection, engine, leases, thread
        self._opened, self._ended, self._closed = opened, ended, closed
        self._numbers = itertools.count(1)
        self._replies: dict[int, messages.Reply | None] = {}  # None until it has come
        self._held: HeldLeases | None = None  # None until the peer is known
        self._lost = self._said_bye = self._parted = False
        connection.received, connection.refused, connection.lost = self._receive, self.drop, self._lose

    def greet(self, cluster_id: int, agent_metadata: bytes) -> None:
        """The peer has said who it is.

        Raises:
            ValueError: Its NIXL agent cannot be reached.
        """
        self._held = HeldLeases(self._engine, agent_metadata, self._send_release)
        self.cluster_id = cluster_id
        self._connection.is_stranger = False

    @property
    def has_ended(self) -> bool:
        """Whether the link has ended."""
        return self.state in (LinkState.ENDED, LinkState.CLOSED)

    @property
    def is_active(self) -> bool:
        """Whether the engine has to make progress: a request is in flight, or the peer holds a lease."""
        return bool(self._held or self._granted)

    @property
    def is_in_flight(self) -> bool:
        """Whether a request of this process is in flight."""
        return bool(self._held)

    @property
    def held_leases(self) -> HeldLeases:
        """The leases that this process holds.

        Raises:
            LLMException: LLM_LINK_FAILED after the end of the link.
        """
        if self.has_ended or self._held is None:
            raise self.failure()
        return self._held

    def uses(self, lease: int) -> bool:
        """Whether a request for a lease is in flight."""
        return self._held is not None and self._held.uses(lease)

    def has_reply(self, number: int) -> bool:
        """Whether the reply to a request has come."""
        return self._replies.get(number) is not None

    def next_number(self) -> int:
        """The number of the next request."""
        return next(self._numbers)

    def send(self, request: messages.Request) -> None:
        """Sends a request, whose reply ``reply`` waits for."""
        self._replies[request.number] = None
        self._connection.send(request)

    def send_plan(self, plan: messages.Plan) -> None:
        """Sends what has no reply."""
        self._connection.send(plan)

    def reply(self, number: int, kind: type[R], deadline: float) -> Steps[R]:
        """Waits for the reply to a request.

        Raises:
            LLMException: The error that the peer replies with; LLM_TIMEOUT without a reply, and LLM_LINK_FAILED if the link
                ends. The link has ended then.
        """
        try:
            yield (lambda: self._replies[number] is not None or self.has_ended), deadline
        finally:  # a reply that comes later is dropped
            reply = self._replies.pop(number)
        if isinstance(reply, kind):
            return reply
        if isinstance(reply, messages.Failed):
            raise llm_error(_code(reply.code), f"{self}: {reply.text}")
        if reply is not None:
            self.drop()
            raise llm_error(
                LLMStatusCode.LLM_LINK_FAILED,
                f"{self} answered with a message that was not asked for: the link has ended",
            )
        if self.has_ended:
            raise self.failure()
        self.drop()
        text = f"{self} does not answer; the link to it has ended, and has to be made again"
        raise llm_error(LLMStatusCode.LLM_TIMEOUT, text)

    def check_in_flight(self) -> None:
        """Notes which requests have ended, for the end of the link."""
        if self._held is not None:
            self._held.check_in_flight()
            self._close_if_unused()

    def keep_for_ever(self) -> None:
        """Keeps what is in flight until the process ends."""
        if self._held is not None:
            self._held.keep_for_ever()

    def drop(self) -> None:
        """Ends the link at once. The connection closes when no request is in flight and nothing is leased: Note [Leases]."""
        if not self.has_ended:
            greeted = self.state is LinkState.OPEN
            self.state = LinkState.ENDED
            self._connection.send(messages.Bye())
            self._ended(self)
            self._thread.start(self._part(greeted))

    def _part(self, greeted: bool) -> Steps[None]:
        """Closes the connection when the peer has read the ``Bye``, and answered it."""
        if greeted:
            yield (lambda: self._said_bye or self._lost), time.monotonic() + _PARTING_SECONDS
        self._parted = True
        self._close_if_unused()

    def failure(self) -> LLMException:
        """The error of a call whose link has ended."""
        return llm_error(LLMStatusCode.LLM_LINK_FAILED, f"the link to {self} was lost")

    def timeout(self) -> LLMException:
        """The error of a transfer that takes too long."""
        return llm_error(
            LLMStatusCode.LLM_TIMEOUT,
            f"not done after sync_kv_timeout; the link to {self} has ended, and has to be made again",
        )

    def __str__(self) -> str:
        return f"cluster {self.cluster_id}" if self.cluster_id >= 0 else "the other process"

    def _receive(self, message: messages.Message) -> None:
        try:
            self._handle(message)
        except LLMException as error:
            assert isinstance(message, messages.Acquire)
            self._fail(message, error.status_code, message_of(error))
        except (ValueError, OverflowError) as error:
            logger.warning("%s breaks the protocol: %s", self, error)
            self.drop()

    def _handle(self, message: messages.Message) -> None:
        if isinstance(message, messages.Reply):
            if isinstance(message, messages.Granted) and self.state is LinkState.OPEN:
                self.held_leases.learn(message)
            if message.number in self._replies:  # and not of a call that has given up
                self._replies[message.number] = message
        elif isinstance(message, messages.Release):
            self._granted.release(message.lease, message.pulled)
            self._close_if_unused()
        elif isinstance(message, messages.Bye):
            self._said_bye = True
            self.drop()
        elif self.has_ended:
            if not isinstance(message, messages.Plan):
                self._fail(message, LLMStatusCode.LLM_NOT_YET_LINK, "it has unlinked")
        elif isinstance(message, messages.Ready) and self._opened is not None and self.state is LinkState.GREETING:
            self.state = LinkState.OPEN
            self._opened(self)
            self._connection.send(messages.Done(message.number))
        elif self.state is not LinkState.OPEN:
            raise ValueError(f"{type(message).__name__} before the link is open")
        elif isinstance(message, messages.Acquire):
            self._connection.send(self._granted.grant(message))
        elif isinstance(message, messages.Plan):
            self._granted.plan(message)
        elif isinstance(message, messages.Stage):
            self._thread.start(self._stage(message))
        elif isinstance(message, messages.Unlink):
            self._thread.start(self._answer_unlink(message))
        else:
            raise ValueError(f"an unexpected {type(message).__name__}")

    def _stage(self, message: messages.Stage) -> Steps[None]:
        try:
            copied = self._granted.stage(message)
        except ValueError as error:
            logger.warning("%s breaks the protocol: %s", self, error)
            return self.drop()
        yield (lambda: copied.done), float("inf")
        try:
            copied.get()
        except LLMException as error:
            self._fail(message, error.status_code, message_of(error))
        else:
            self._connection.send(messages.Done(message.number))

    def _answer_unlink(self, message: messages.Unlink) -> Steps[None]:
        """Ends the link for the peer, unless a call of this process uses it for longer."""
        deadline = time.monotonic() + message.timeout_ms / 1000
        yield (lambda: self.has_ended or not self.transfers), deadline
        if self.transfers and not self.has_ended:
            text = f"a call uses the link until after {message.timeout_ms} ms"
            self._fail(message, LLMStatusCode.LLM_LINK_BUSY, text)
        else:
            self.drop()  # first: once the peer knows, there is no link here
            self._connection.send(messages.Done(message.number))

    def _fail(self, request: messages.Request, code: LLMStatusCode, text: str) -> None:
        self._connection.send(messages.Failed(request.number, code.name, text))

    def _send_release(self, lease: int, pulled: list[int] | None) -> None:
        # After the call has returned: to send is to wake a thread of libzmq, and can take as long as a small transfer.
        if not self._lost:
            self._thread.call(lambda: self._connection.send(messages.Release(lease, pulled)))

    def _lose(self) -> None:
        """The connection has ended, and with it the process of the peer, or its side of the link."""
        self._lost = True
        self.drop()
        self._thread.start(self._end_granted())

    def _end_granted(self) -> Steps[None]:
        if self._granted.any_written:
            # Over TCP, UCX may hold bytes of a peer that has died. Its next calls write them, so let it do that first.
            yield (lambda: False), time.monotonic() + _DRAIN_SECONDS
        self._granted.release_all()
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self.state is LinkState.ENDED and self._parted and not self.is_active:
            self.state = LinkState.CLOSED
            self._connection.close()
            if self._held is not None:
                self._held.close(ended=self._lost and not self._said_bye)
            self._closed(self)


def _code(name: str) -> LLMStatusCode:
    return LLMStatusCode.__members__.get(name, LLMStatusCode.LLM_FAILED)
