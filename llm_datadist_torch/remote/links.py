# SPDX-License-Identifier: Apache-2.0
"""The links of a process: makes them, answers those who call, ends them.

Note [Crossing calls]: two processes that listen may call each other at the same time. Then the call of the lower cluster id makes
the link, and the other call waits for it. So a process refuses the call of a cluster with a higher id while it calls that cluster
itself. And it does not call a cluster while a call of that cluster is half done.

Note [Who is first]: the process that calls uses the link once it has been welcomed, and says so. The process that listens uses the
link from then on, and the call returns when it has. So neither uses a link that the other one does not have.
"""

import os
import time
from collections.abc import Callable, Sequence

from ..datadist.log import logger
from ..datadist.registry import CacheRegistry
from ..datadist.status import LLMException, LLMStatusCode, llm_error
from .connection import Connection
from .granted_leases import GrantedLeases
from .io_thread import LONGEST_WAIT_MS, IoThread, Steps
from .link import Link, LinkState
from .link_calls import unlink
from .listener import Address
from .local_caches import LocalCaches
from .messages import PROTOCOL, Done, Failed, Hello, Message, Ready, Welcome
from .nixl import engine_of_process
from .sockets import Sockets
from .staging import Staging

_GREETING_SECONDS = 10.0
_SHORT_SECONDS = 5e-3


class Links:
    """The links of one process. For the I/O thread, unless a method says otherwise."""

    def __init__(self, cluster_id: int, registry: CacheRegistry) -> None:
        self.cluster_id, self._registry = cluster_id, registry
        self._engine = engine_of_process(os.getpid())
        self._links: list[Link] = []  # all but those that are closed, the newest last
        self.thread = IoThread(self._progress, lambda: self.sockets.close())
        self.sockets = Sockets(self.thread, self._accept)
        self.caches = LocalCaches(self._engine, self.soon)
        registry.call_on_release(self.caches.forget)
        self._leased_since: float | None = None
        self._ever: set[int] = set()
        self._calling: set[int] = set()  # the clusters that this process calls
        self.opened: list[Callable[[Link], None]] = []
        """Called with each link that opens."""
        self.expects: Callable[[str, int], bool] = lambda group, cluster_id: False
        """Whether this process waits for a call of a cluster for a communicator."""
        self.is_usable: Callable[[Link], bool] = lambda link: True
        """Whether transfers may use an open link."""

    def soon(self, function: Callable[[], None]) -> None:
        """Runs a function in the I/O thread; at once after its end. For any thread."""
        if self.thread.runs_here:
            self.thread.call(function)
        else:
            function()

    def find(self, cluster_id: int) -> Link:
        """The newest link to a cluster. Raises LLM_NOT_YET_LINK if there is none."""
        for link in reversed(self._links):
            if link.cluster_id == cluster_id and link.state is LinkState.OPEN and self.is_usable(link):
                return link
        raise llm_error(LLMStatusCode.LLM_NOT_YET_LINK, f"there is no link to cluster {cluster_id}; call link_clusters")

    def has(self, cluster_id: int) -> bool:
        """Whether there is a link to a cluster. For any thread."""
        try:
            return bool(self.find(cluster_id))
        except LLMException:
            return False

    @property
    def any(self) -> bool:
        """Whether there is a link. For any thread."""
        return any(link.state is LinkState.OPEN for link in self._links)

    def link(
        self, wanted: int | None, addresses: Sequence[Address], timeout: float, tries: int, total: float
    ) -> Steps[tuple[LLMStatusCode, int | None]]:
        """Links to a process that listens. Logs why it cannot.

        Args:
            wanted: The cluster that should be there, or None for any.
            addresses: Where it listens; the first that answers counts.
            timeout: Seconds for each try.
            tries: How often to try.
            total: Seconds for all tries; 0 means the timeout for each.

        Returns:
            The outcome, and the cluster that is there.
        """
        begin, error = time.monotonic(), None
        for number in range(tries):
            deadline = time.monotonic() + timeout
            deadline = min(deadline, begin + total) if total else deadline
            try:
                link = yield from self._try(wanted, addresses, deadline)
                return LLMStatusCode.LLM_SUCCESS, link.cluster_id
            except LLMException as failure:
                error = failure
            passing = error.status_code in (LLMStatusCode.LLM_LINK_FAILED, LLMStatusCode.LLM_TIMEOUT)
            if not passing or number + 1 == tries or (total and time.monotonic() >= begin + total):
                break
            # Spread the tries over the time that there is.
            yield (lambda: False), begin + (number + 1) * (total or timeout) / tries
        assert error is not None
        if error.status_code is not LLMStatusCode.LLM_ALREADY_LINK:
            logger.error(
                "link_clusters: no link to %s: %s", "a cluster" if wanted is None else f"cluster {wanted}", error
            )
        return error.status_code, wanted

    def unlink(self, cluster_id: int, timeout_ms: int, *, force: bool) -> Steps[LLMStatusCode]:
        """Ends a link on both sides; with ``force`` on this side, without asking the peer."""
        try:
            link = self.find(cluster_id)
        except LLMException as error:
            return LLMStatusCode.LLM_SUCCESS if force or cluster_id in self._ever else error.status_code
        if not force:
            return (yield from unlink(link, timeout_ms))
        link.drop()
        return LLMStatusCode.LLM_SUCCESS

    def call(self, wanted: int | None, group: str, address: Address, deadline: float) -> Steps[Link]:
        """Calls a process. Raises LLM_LINK_FAILED, LLM_TIMEOUT, or the error that it replies with."""
        link = self._make(self.sockets.connect(address), None, group)
        try:
            link.send(Hello(0, PROTOCOL, self.cluster_id, wanted, group, self._engine.metadata))
            welcome = yield from link.reply(0, Welcome, deadline)
            if wanted not in (None, welcome.cluster):
                raise llm_error(
                    LLMStatusCode.LLM_LINK_FAILED, f"the process at that address is cluster {welcome.cluster}"
                )
            if wanted is None and not group and self._linked(welcome.cluster):
                raise llm_error(LLMStatusCode.LLM_ALREADY_LINK, f"there is a link to cluster {welcome.cluster}")
            try:
                link.greet(welcome.cluster, welcome.agent)
            except ValueError as error:
                raise llm_error(LLMStatusCode.LLM_LINK_FAILED, str(error)) from error
            link.state = LinkState.OPEN
            self._add(link)
            number = link.next_number()
            link.send(Ready(number))
            yield from link.reply(number, Done, deadline)
            if link.has_ended:
                raise link.failure()
        except BaseException:
            link.drop()
            raise
        return link

    def close(self, deadline: float) -> None:
        """Ends all links. Waits until nothing is in flight or leased, at most until the deadline. For any thread."""
        self._registry.call_on_release(lambda cache: None)
        closing = self.thread.start(self._close(deadline))
        if not self.thread.is_current:
            closing.wait()
        self.thread.stop()

    def _close(self, deadline: float) -> Steps[None]:
        for link in list(self._links):
            link.drop()
        yield (lambda: not self._links), deadline
        for link in self._links:
            link.keep_for_ever()

    def make_staging(self) -> Staging:
        """A staging buffer."""
        return Staging(self._engine, self.soon)

    def _progress(self) -> int:
        """Lets the engine make progress. Returns the milliseconds until it has to be called again: see ``IoThread``."""
        active = [link for link in self._links if link.is_active]
        for link in active:
            link.check_in_flight()
        if not active:
            self._leased_since = None
            return LONGEST_WAIT_MS
        self._engine.progress()
        now = time.monotonic()
        self._leased_since = self._leased_since or now
        # The peer of a short transfer gives the cache back before it needs this process.
        return 1 if now < self._leased_since + _SHORT_SECONDS and not any(link.is_in_flight for link in active) else 0

    def _linked(self, cluster_id: int, *states: LinkState) -> bool:
        """Whether there is a link to a cluster in one of the states, but for those of communicators."""
        links = (link for link in self._links if link.cluster_id == cluster_id and not link.group)
        return any(link.state in (states or (LinkState.GREETING, LinkState.OPEN)) for link in links)

    def _try(self, wanted: int | None, addresses: Sequence[Address], deadline: float) -> Steps[Link]:
        """Tries the addresses, when no other call between the two processes is on its way."""
        if wanted is None:
            return (yield from self._call_any(wanted, addresses, deadline))
        while True:
            if any(link.cluster_id == wanted and link.has_ended and link.is_in_flight for link in self._links):
                text = f"a transfer of the last link to cluster {wanted} is still in flight"
                raise llm_error(LLMStatusCode.LLM_LINK_BUSY, text)
            if self._linked(wanted, LinkState.OPEN):
                raise llm_error(LLMStatusCode.LLM_ALREADY_LINK, f"there is a link to cluster {wanted}")
            if wanted not in self._calling and not self._linked(wanted):
                self._calling.add(wanted)
                try:
                    return (yield from self._call_any(wanted, addresses, deadline))
                except LLMException as error:
                    if error.status_code is not LLMStatusCode.LLM_LINK_BUSY:
                        raise
                finally:
                    self._calling.remove(wanted)
            if time.monotonic() >= deadline:
                raise llm_error(LLMStatusCode.LLM_LINK_BUSY, f"another link to cluster {wanted} is being made")
            yield (lambda: wanted not in self._calling and not self._linked(wanted, LinkState.GREETING)), deadline

    def _call_any(self, wanted: int | None, addresses: Sequence[Address], deadline: float) -> Steps[Link]:
        for index, address in enumerate(addresses):
            try:
                return (yield from self.call(wanted, "", address, deadline))
            except LLMException as error:
                failed = error.status_code in (LLMStatusCode.LLM_LINK_FAILED, LLMStatusCode.LLM_TIMEOUT)
                if not failed or index + 1 == len(addresses):
                    raise
        raise AssertionError("no address")

    def _accept(self, connection: Connection) -> None:
        """A process has connected, which may be any program."""

        def receive(message: Message) -> None:
            if isinstance(message, Hello):
                self._greet(connection, message)
            else:
                logger.warning("refused a connection that does not greet")

        connection.received = receive

    def _greet(self, connection: Connection, hello: Hello) -> None:
        refusal = self._refusal(hello)
        link = self._make(connection, self._add, hello.group)
        if refusal is None:
            try:
                link.greet(hello.cluster, hello.agent)
            except ValueError as error:
                refusal = LLMStatusCode.LLM_LINK_FAILED, str(error)
        if refusal is not None:
            connection.send(Failed(hello.number, refusal[0].name, refusal[1]))
            link.drop()
            return
        connection.send(Welcome(hello.number, self.cluster_id, self._engine.metadata))
        self.thread.start(self._forget_half(link))

    def _refusal(self, hello: Hello) -> tuple[LLMStatusCode, str] | None:
        if hello.protocol != PROTOCOL:
            return LLMStatusCode.LLM_LINK_FAILED, f"another version of the package: {PROTOCOL}, not {hello.protocol}"
        if hello.wanted not in (None, self.cluster_id):
            return LLMStatusCode.LLM_LINK_FAILED, f"the process at that address is cluster {self.cluster_id}"
        if hello.cluster == self.cluster_id:
            return LLMStatusCode.LLM_LINK_FAILED, f"both are cluster {self.cluster_id}"
        if hello.group:
            if self.expects(hello.group, hello.cluster):
                return None
            return LLMStatusCode.LLM_NOT_YET_LINK, f"it has not called link for {hello.group!r} yet"
        if self._linked(hello.cluster):
            return LLMStatusCode.LLM_ALREADY_LINK, f"it has a link to cluster {hello.cluster}"
        if hello.cluster in self._calling and self.cluster_id < hello.cluster:
            return LLMStatusCode.LLM_LINK_BUSY, "it is calling this cluster"
        return None

    def _forget_half(self, link: Link) -> Steps[None]:
        yield (lambda: link.state is not LinkState.GREETING), time.monotonic() + _GREETING_SECONDS
        if link.state is LinkState.GREETING:
            link.drop()

    def _make(self, connection: Connection, opened: Callable[[Link], None] | None, group: str) -> Link:
        leases = GrantedLeases(self._registry, self.caches, self._engine, self.soon, self.thread)
        link = Link(connection, self._engine, leases, self.thread, opened, self._ended, self._links.remove, group)
        self._links.append(link)
        return link

    def _add(self, link: Link) -> None:
        self._ever.add(link.cluster_id)
        for call in self.opened:
            call(link)
        logger.info("linked to %s", link)

    def _ended(self, link: Link) -> None:
        if link.cluster_id in self._ever:
            logger.info("the link to %s has ended", link)
