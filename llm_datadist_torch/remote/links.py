# SPDX-License-Identifier: Apache-2.0
"""The links of a process: makes them, answers those who call, ends them.

Note [Crossing calls]: two processes that listen may call each other at the same time. Then the call of the lower cluster id
makes the link, and the other call waits for it. So a process refuses the call of a cluster with a higher id while it calls
that cluster itself. And it does not call a cluster while a call of that cluster is half done.
"""

import base64
import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from ..datadist.fork import ForkSafeLock
from ..datadist.log import logger
from ..datadist.registry import CacheRegistry
from ..datadist.status import LLMException, LLMStatusCode, llm_error
from .exports import Exports
from .link import Link, not_linked
from .listener import Listener
from .local_caches import LocalCaches
from .nixl import Engine
from .protocol import Channel, Closed, connect

_PROTOCOL = 2  # to be raised with every change of a message, or of the size of a staging slot
_GREETING_SECONDS = 10.0
_CROSSING_POLL_SECONDS = 5e-3


class Links:
    """The links of one process. Thread-safe.

    Args:
        cluster_id: The cluster of this process.
        registry: Its caches.

    Raises:
        LLMException: LLM_FEATURE_NOT_ENABLED without NIXL.
    """

    def __init__(self, cluster_id: int, registry: CacheRegistry) -> None:
        self._cluster_id, self._registry = cluster_id, registry
        self._engine = Engine(cluster_id)
        self.caches = LocalCaches(self._engine)
        registry.call_on_release(self.caches.deregister)
        self._lock = ForkSafeLock()
        self._links: dict[int, Link] = {}
        self._ended: dict[int, list[Link]] = {}  # those with a request in flight, and the last one
        self._half: dict[str, tuple[int, bytes, Channel]] = {}  # by token, those that wait for their second connection
        self._calling: set[int] = set()  # the clusters that a call of ``link`` connects to
        self.listener = Listener(self._greet)

    def find(self, cluster_id: int) -> Link:
        """The link to a cluster.

        Raises:
            LLMException: LLM_NOT_YET_LINK if there is none.
        """
        link = self._links.get(cluster_id)
        if link is None:
            raise not_linked(cluster_id)
        return link

    def has(self, cluster_id: int) -> bool:
        """Whether there is a link to a cluster."""
        link = self._links.get(cluster_id)
        return link is not None and not link.ended()

    @property
    def any(self) -> bool:
        """Whether there is a link."""
        return bool(self._links)

    def link(self, cluster_id: int, addresses: Sequence[tuple[str, int]], deadline: float) -> LLMStatusCode:
        """Links to a listener. Logs why it cannot.

        Args:
            cluster_id: The cluster that should be there.
            addresses: Where it listens; the first that answers counts.
            deadline: When to give up.
        """
        while True:
            if self._linked(cluster_id):
                return LLMStatusCode.LLM_ALREADY_LINK
            if any(link.busy for link in list(self._ended.get(cluster_id, ()))):
                logger.error("link_clusters: a transfer of the last link to cluster %d is still in flight", cluster_id)
                return LLMStatusCode.LLM_LINK_BUSY
            if self._claim(cluster_id):
                try:
                    status = self._call(cluster_id, addresses, deadline)
                finally:
                    self._calling.remove(cluster_id)
                if status is not LLMStatusCode.LLM_LINK_BUSY:
                    return status
            if time.monotonic() > deadline:
                logger.error("link_clusters: another link to cluster %d is being made", cluster_id)
                return LLMStatusCode.LLM_LINK_BUSY
            time.sleep(_CROSSING_POLL_SECONDS)

    def unlink(self, cluster_id: int, timeout_ms: int, *, force: bool) -> LLMStatusCode:
        """Ends a link on both sides; with ``force`` on this side, without asking the peer."""
        link = self._links.get(cluster_id)
        if link is None:
            known = force or cluster_id in self._ended
            return LLMStatusCode.LLM_SUCCESS if known else LLMStatusCode.LLM_NOT_YET_LINK
        if not force:
            deadline = time.monotonic() + timeout_ms / 1000
            try:
                link.unlink(timeout_ms, deadline)
            except LLMException as error:
                if link.lost and error.status_code is LLMStatusCode.LLM_LINK_FAILED:
                    return LLMStatusCode.LLM_SUCCESS  # the peer is gone, and with it the link
                busy = error.status_code is LLMStatusCode.LLM_LINK_BUSY or not link.lost
                logger.error("unlink_clusters: %s", error)
                return LLMStatusCode.LLM_LINK_BUSY if busy else LLMStatusCode.LLM_NOTIFY_PROMPT_UNLINK_FAILED
        link.drop()
        return LLMStatusCode.LLM_SUCCESS

    def close(self, deadline: float) -> None:
        """Ends all links. Waits until the peers have released all caches of this process, at most until the deadline."""
        self.listener.close()
        links = list(self._links.values())
        for link in links:
            link.drop()
        for link in links:
            link.wait_for_exports(deadline)

    def _linked(self, cluster_id: int) -> bool:
        link = self._links.get(cluster_id)
        if link is not None and link.ended():
            link.drop()
        return self.has(cluster_id)

    def _claim(self, cluster_id: int) -> bool:
        """Whether this thread may call a cluster: no link to it exists or is being made. See Note [Crossing calls]."""
        with self._lock.current:
            called = any(half == cluster_id and not channel.ended() for half, _, channel in self._half.values())
            free = not called and cluster_id not in self._calling and cluster_id not in self._links
            if free:
                self._calling.add(cluster_id)
            return free

    def _call(self, cluster_id: int, addresses: Sequence[tuple[str, int]], deadline: float) -> LLMStatusCode:
        """Tries the addresses. Returns LLM_LINK_BUSY, and logs nothing, if the cluster is calling this one."""
        status = LLMStatusCode.LLM_LINK_FAILED
        for address in addresses:
            try:
                self._connect(cluster_id, address, deadline)
                return LLMStatusCode.LLM_SUCCESS
            except TimeoutError:
                status, reason = LLMStatusCode.LLM_TIMEOUT, "no answer in time"
            except Closed as error:
                status, reason = LLMStatusCode.LLM_LINK_FAILED, str(error)
            except LLMException as error:
                status, reason = error.status_code, str(error)
                if status is LLMStatusCode.LLM_LINK_BUSY:
                    return status
            logger.error("link_clusters: no link to cluster %d at %s:%d: %s", cluster_id, *address, reason)
        return status

    def _greeting(self) -> dict[str, Any]:
        metadata = base64.b64encode(self._engine.metadata).decode()
        return {"protocol": _PROTOCOL, "cluster": self._cluster_id, "metadata": metadata}

    def _connect(self, cluster_id: int, address: tuple[str, int], deadline: float) -> None:
        with contextlib.ExitStack() as stack:
            try:
                client = stack.enter_context(contextlib.closing(connect(address, deadline)))
                client.send(self._greeting(), deadline)
                reply = client.receive(deadline)
                if "error" in reply:
                    name, text = reply["error"]
                    raise llm_error(LLMStatusCode[name], f"cluster {cluster_id}: {text}")
                if reply["cluster"] != cluster_id:
                    raise Closed(f"it is cluster {reply['cluster']}")
                server = stack.enter_context(contextlib.closing(connect(address, deadline)))
                server.send({"token": reply["token"]}, deadline)
                agent = self._engine.add_peer(base64.b64decode(reply["metadata"]))
                link = self._make(cluster_id, agent, client, server)
                server.receive(deadline)
            except (KeyError, TypeError, ValueError) as error:
                raise Closed(f"not a peer of this version: {error!r}") from error
            stack.pop_all()
        self._add(link)

    def _greet(self, connected: socket.socket) -> None:
        """Answers a new connection, which may come from any program."""
        deadline = time.monotonic() + _GREETING_SECONDS
        channel = Channel(connected)
        try:
            channel.authenticate(deadline, listener=True)
            message = channel.receive(deadline)
            if "token" in message:
                return self._second_half(message["token"], channel, deadline)
            self._first_half(message, channel, deadline)
        except (Closed, TimeoutError, KeyError, TypeError, ValueError) as error:
            logger.warning("refused a connection to the listener: %s", str(error) or "it said nothing")
            channel.close()

    def _first_half(self, message: dict[str, Any], channel: Channel, deadline: float) -> None:
        cluster_id, metadata, token = message["cluster"], base64.b64decode(message["metadata"]), secrets.token_hex()
        if message["protocol"] != _PROTOCOL:
            return self._refuse(channel, LLMStatusCode.LLM_LINK_FAILED, "another version of the package", deadline)
        self._linked(cluster_id)  # drops one that has ended
        with self._lock.current:  # both are read under it: a call that ends adds its link before it leaves ``_calling``
            linked = cluster_id in self._links
            crossing = cluster_id in self._calling and self._cluster_id < cluster_id
            if not linked and not crossing:
                self._half[token] = cluster_id, metadata, channel
        if linked:
            text = f"it has a link to cluster {cluster_id}"
            return self._refuse(channel, LLMStatusCode.LLM_ALREADY_LINK, text, deadline)
        if crossing:
            return self._refuse(channel, LLMStatusCode.LLM_LINK_BUSY, "it is calling this cluster", deadline)
        channel.send({**self._greeting(), "token": token}, deadline)
        forget = threading.Timer(_GREETING_SECONDS, self._forget_half, (token,))
        forget.daemon = True
        forget.start()
        return None

    def _second_half(self, token: str, channel: Channel, deadline: float) -> None:
        try:
            cluster_id, metadata, server = self._half[token]
            agent = self._engine.add_peer(metadata)
            with self._lock.current:
                if cluster_id in self._links:
                    raise Closed(f"there is a link to cluster {cluster_id} by now")
                del self._half[token]
                self._add(self._make(cluster_id, agent, channel, server))
        except BaseException:
            self._forget_half(token)
            raise
        channel.send({}, deadline)

    def _forget_half(self, token: str) -> None:
        half = self._half.pop(token, None)
        if half is not None:
            half[2].close()

    def _refuse(self, channel: Channel, code: LLMStatusCode, text: str, deadline: float) -> None:
        channel.send({"error": [code.name, text]}, deadline)
        channel.close()

    def _make(self, cluster_id: int, agent: str, client: Channel, server: Channel) -> Link:
        exports = Exports(self._registry, self.caches, self._engine)
        return Link(cluster_id, agent, client, server, self._engine, exports, self._dropped)

    def _add(self, link: Link) -> None:
        with self._lock.current:
            self._links[link.cluster_id] = link
        link.start()
        logger.info("linked to cluster %d", link.cluster_id)

    def _dropped(self, link: Link) -> None:
        with self._lock.current:
            if self._links.get(link.cluster_id) is link:
                del self._links[link.cluster_id]
            ended = self._ended.setdefault(link.cluster_id, [])
            ended[:] = [other for other in ended if other.busy] + [link]
        logger.info("the link to cluster %d has ended", link.cluster_id)
