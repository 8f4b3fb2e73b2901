# SPDX-License-Identifier: Apache-2.0
"""Communicators: links by rank table. Each pair of clusters has a link, which the process of the higher rank makes.

The greeting carries the name of the communicator. It counts when the other process has called ``link`` with that name too, and
until then the caller tries again.
"""

import itertools
import time

from ..datadist.log import logger
from ..datadist.rank_table import RankTable
from ..datadist.status import LLMException, LLMStatusCode, llm_error
from ..datadist.unserved import RegisterMemStatus
from .io_thread import Steps
from .link import Link, LinkState
from .links import Links

_RETRY_SECONDS = 0.05
_MAX_GROUPS = 512


class _Group:
    """One communicator."""

    def __init__(self, name: str, table: RankTable, own_cluster: int) -> None:
        self.name, self.table = name, table
        self.missing = set(table.ranks) - {own_cluster}
        self.links: list[Link] = []
        self.status = RegisterMemStatus.PREPARING
        self.ended = False


class Groups:
    """The communicators of a process. For the I/O thread, but ``begin`` and ``status``."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._groups: dict[int, _Group] = {}
        self._ids = itertools.count(1)
        links.opened.append(self._opened)
        links.expects, links.is_usable = self._expects, self._is_usable

    def begin(self, name: str, table: RankTable, total_seconds: float, tries: int) -> int:
        """Begins to link the clusters to one another. Returns the id of the communicator.

        Raises:
            LLMException: LLM_PARAM_INVALID for too many communicators.
        """
        if len(self._groups) >= _MAX_GROUPS:
            raise llm_error(LLMStatusCode.LLM_PARAM_INVALID, f"there are {_MAX_GROUPS} communicators already")
        group, comm_id = _Group(name, table, self._links.cluster_id), next(self._ids)
        self._groups[comm_id] = group
        self._links.thread.start(self._make(group, total_seconds, tries))
        return comm_id

    def status(self, comm_id: int) -> RegisterMemStatus:
        """How far a communicator is. Raises LLM_NOT_YET_LINK for an unknown one."""
        return self._find(comm_id).status

    def end(self, comm_id: int) -> Steps[None]:
        """Ends a communicator on this side, and waits for what is in flight. Raises LLM_NOT_YET_LINK for an unknown one."""
        group = self._find(comm_id)
        del self._groups[comm_id]
        self._end(group)
        yield (lambda: not any(link.is_in_flight for link in group.links)), time.monotonic() + 1

    def _find(self, comm_id: int) -> _Group:
        group = self._groups.get(comm_id)
        if group is None:
            raise llm_error(LLMStatusCode.LLM_NOT_YET_LINK, f"there is no communicator {comm_id}; link returns its id")
        return group

    def _make(self, group: _Group, total_seconds: float, tries: int) -> Steps[None]:
        own = self._links.cluster_id
        deadline = time.monotonic() + total_seconds
        errors: list[str] = []
        for cluster_id, rank in group.table.ranks.items():
            if rank < group.table.ranks[own]:
                self._links.thread.start(self._call(group, cluster_id, deadline, total_seconds / tries, errors))
        yield (lambda: group.ended or not group.missing), deadline
        if group.ended or not group.missing:
            return
        why = f": {errors[-1]}" if errors else ": no call of it"
        logger.error(
            "link %r: no link to clusters %s after %s s%s", group.name, sorted(group.missing), total_seconds, why
        )
        group.status = RegisterMemStatus.FAILED  # after the log: who sees it finds the reason there
        self._end(group)

    def _call(
        self, group: _Group, cluster_id: int, deadline: float, try_seconds: float, errors: list[str]
    ) -> Steps[None]:
        """Calls a process until it has called ``link`` too."""
        address = group.table.addresses[cluster_id]
        while not group.ended and time.monotonic() < deadline:
            until = min(deadline, time.monotonic() + try_seconds)
            try:
                link = yield from self._links.call(cluster_id, group.name, address, until)
            except LLMException as error:
                errors.append(str(error))
                yield (lambda: group.ended), min(deadline, time.monotonic() + _RETRY_SECONDS)
            else:
                if group.ended:
                    link.drop()
                return

    def _opened(self, link: Link) -> None:
        """A link is there, whoever has made it."""
        for group in self._groups.values():
            if group.name == link.group and link.cluster_id in group.missing and not group.ended:
                group.missing.remove(link.cluster_id)
                group.links.append(link)
                if not group.missing:
                    group.status = RegisterMemStatus.OK
                return

    def _expects(self, name: str, cluster_id: int) -> bool:
        return any(
            group.name == name and cluster_id in group.missing and not group.ended for group in self._groups.values()
        )

    def _is_usable(self, link: Link) -> bool:
        """Whether all links of the communicator are there."""
        return not link.group or any(
            link in group.links and group.status is RegisterMemStatus.OK for group in self._groups.values()
        )

    def _end(self, group: _Group) -> None:
        group.ended = True
        for link in group.links:
            if link.state is not LinkState.CLOSED:
                link.drop()
