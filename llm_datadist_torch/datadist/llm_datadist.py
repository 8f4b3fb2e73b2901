# SPDX-License-Identifier: Apache-2.0
"""LLMDataDist: creates the CacheManager and its links to other processes, as in LLM-DataDist."""

import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from .cache_manager import CacheManager
from .checks import INT32, UINT64, check_int, check_type
from .cluster_info import LLMClusterInfo, LLMRole, parse_listen_ip_info
from .config import LLMConfig
from .fork import ForkSafeLock
from .log import error_context, logger
from .status import LLMStatusCode, llm_error, param_invalid
from .unserved import UnservedCall

if TYPE_CHECKING:
    from ..remote.links import Links

Statuses = tuple[LLMStatusCode, list[LLMStatusCode]]


class LLMDataDist:
    """Creates the CacheManager of a process, and links it to other processes. See docs/remote.md.

    One instance per process can be initialised at a time. An instance that is dropped does not count, and its links end with
    its CacheManager.

    Args:
        role: The role of the process. Recorded: a process of any role may link, listen, pull and push.
        cluster_id: The id of the process, a uint64. Each process that others link to has its own.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: A cluster_id that does not fit a uint64.
    """

    _lock = ForkSafeLock()
    _initialised: ClassVar[weakref.WeakSet["LLMDataDist"]] = weakref.WeakSet()  # one at most

    def __init__(self, role: LLMRole, cluster_id: int) -> None:
        check_type("role", role, LLMRole)
        self.role = role
        self.cluster_id = check_int("cluster_id", cluster_id, UINT64)
        self._cache_manager: CacheManager | None = None
        self._links: Links | None = None
        self._config = LLMConfig()

    def init(self, options: dict[str, str]) -> None:
        """Creates the CacheManager, and listens if ``listen_ip_info`` is set. Does nothing if this instance is initialised.

        Args:
            options: The options, as ``LLMConfig.generate_options`` returns them.

        Raises:
            TypeError: Options that are not a dict of strings.
            LLMException: LLM_FAILED while another LLMDataDist of the process is initialised, or if it cannot listen;
                LLM_PARAM_INVALID for a value that is not allowed; LLM_FEATURE_NOT_ENABLED without NIXL if it is to listen.
        """
        with error_context("init"), LLMDataDist._lock.current:
            if self in LLMDataDist._initialised:
                return
            if LLMDataDist._initialised:
                raise llm_error(LLMStatusCode.LLM_FAILED, "another LLMDataDist is initialised; finalize it first")
            config = LLMConfig.from_options(options)
            addresses = parse_listen_ip_info(config.listen_ip_info)
            manager = CacheManager(config) if config.wants_cache_manager() else None
            links = None if manager is None or not addresses else manager.open_links(self.cluster_id)
            if links is not None:
                links.listener.listen(addresses)
            self._cache_manager, self._links, self._config = manager, links, config
            LLMDataDist._initialised.add(self)

    @property
    def cache_manager(self) -> CacheManager:
        """The CacheManager.

        Raises:
            RuntimeError: Before ``init`` or after ``finalize``.
            LLMException: LLM_PARAM_INVALID if the options did not enable it.
        """
        if self not in LLMDataDist._initialised:
            raise RuntimeError("cache_manager: this LLMDataDist is not initialised; call init first")
        if self._cache_manager is None:
            raise param_invalid(
                "cache_manager: not enabled; set LLMConfig.enable_cache_manager to True, or LLMConfig.local_comm_res to "
                'any string ("" too), before generate_options'
            )
        return self._cache_manager

    def finalize(self) -> None:
        """Ends all links, and all caches of the CacheManager after the running copy. May be called again.

        Waits for what peers read or write in caches of this process, at most ``sync_kv_timeout``.
        """
        with LLMDataDist._lock.current:
            manager, self._links = self._cache_manager, None
            LLMDataDist._initialised.discard(self)
        # Without the lock, because this waits for a copy, whose thread may run a signal handler that calls finalize too.
        if manager is not None:
            manager.finalize()

    def link_clusters(self, clusters: Sequence[LLMClusterInfo], timeout: int = 3000) -> Statuses:
        """Links to processes that listen.

        ``link_retry_count`` is how often each is tried, ``link_total_time`` the seconds for all tries, if it is not 0.

        Args:
            clusters: The processes: id and address of each.
            timeout: Milliseconds for each try of each process, an int32 greater than 0.

        Returns:
            LLM_SUCCESS or the first other code, and a list with the code of each process. The codes are LLM_SUCCESS,
            LLM_ALREADY_LINK, LLM_TIMEOUT, LLM_LINK_FAILED, and LLM_LINK_BUSY while another call links to the process or a
            transfer of the last link is in flight. The reason is logged.

        Raises:
            TypeError, ValueError: An argument of the wrong type.
            RuntimeError: Before ``init``.
            LLMException: LLM_PARAM_INVALID for a cluster without an id or an address, LLM_FEATURE_NOT_ENABLED without NIXL.
        """
        with error_context("link_clusters"):
            timeout = _check_clusters(clusters, timeout)
            for index, cluster in enumerate(clusters):
                if not cluster.remote_ip_info_list:
                    raise param_invalid(f"clusters[{index}] has no address; call append_remote_ip_info")
                if cluster.remote_cluster_id == self.cluster_id:
                    raise param_invalid(f"clusters[{index}] ({self.cluster_id}) is this process")
            manager = self.cache_manager
            with LLMDataDist._lock.current:
                if self._links is None:
                    self._links = manager.open_links(self.cluster_id)
                links = self._links
        return _statuses([self._link(links, cluster, timeout) for cluster in clusters])

    def unlink_clusters(self, clusters: Sequence[LLMClusterInfo], timeout: int = 3000, force: bool = False) -> Statuses:
        """Ends links on both sides, when the running calls of both have ended.

        Args:
            clusters: The processes. Their ids are enough.
            timeout: Milliseconds for each, an int32 greater than 0.
            force: Ends the link at once and on this side alone. The peer notices that the connection has ended.

        Returns:
            LLM_SUCCESS or the first other code, and a list with the code of each process. The codes are LLM_SUCCESS,
            LLM_NOT_YET_LINK, LLM_LINK_BUSY if a call goes on for longer than ``timeout``, and
            LLM_NOTIFY_PROMPT_UNLINK_FAILED if the peer does not answer; the link has ended on this side then.

        Raises:
            TypeError, ValueError: An argument of the wrong type.
            RuntimeError: Before ``init``.
            LLMException: LLM_PARAM_INVALID for a cluster without an id.
        """
        with error_context("unlink_clusters"):
            timeout = _check_clusters(clusters, timeout)
            check_type("force", force, bool)
            _ = self.cache_manager
            links = self._links

        def unlink(cluster: LLMClusterInfo) -> LLMStatusCode:
            if links is None:
                return LLMStatusCode.LLM_SUCCESS if force else LLMStatusCode.LLM_NOT_YET_LINK
            return links.unlink(cluster.remote_cluster_id or 0, timeout, force=force)

        return _statuses([unlink(cluster) for cluster in clusters])

    def check_link_status(self, remote_cluster_id: int) -> LLMStatusCode:
        """LLM_SUCCESS if there is a link to a cluster, LLM_NOT_YET_LINK if not.

        Args:
            remote_cluster_id: The cluster, a uint64.

        Raises:
            TypeError, ValueError: An argument of the wrong type.
            RuntimeError: Before ``init``.
        """
        with error_context("check_link_status"):
            remote_cluster_id = check_int("remote_cluster_id", remote_cluster_id, UINT64)
            _ = self.cache_manager
            linked = self._links is not None and self._links.has(remote_cluster_id)
            return LLMStatusCode.LLM_SUCCESS if linked else LLMStatusCode.LLM_NOT_YET_LINK

    def switch_role(self, role: LLMRole, switch_options: dict[str, str] | None = None) -> None:
        """Changes the role, and where this process listens.

        Args:
            role: The role to change to.
            switch_options: Options with "llm.listenIpInfo", where to listen from now on. Without it, nowhere.

        Raises:
            TypeError: An argument of the wrong type.
            RuntimeError: Before ``init``.
            LLMException: LLM_EXIST_LINK while there are links; LLM_PARAM_INVALID, LLM_FAILED and LLM_FEATURE_NOT_ENABLED as
                for ``init``.
        """
        with error_context("switch_role"), LLMDataDist._lock.current:
            check_type("role", role, LLMRole)
            config = LLMConfig.from_options({} if switch_options is None else switch_options)
            addresses = parse_listen_ip_info(config.listen_ip_info)
            manager = self.cache_manager
            if self._links is not None and self._links.any:
                raise llm_error(LLMStatusCode.LLM_EXIST_LINK, "there are links; end them with unlink_clusters")
            if self._links is None and addresses:
                self._links = manager.open_links(self.cluster_id)
            if self._links is not None:
                self._links.listener.listen(addresses)
            self.role = role
        logger.info("switch_role: %s", role.name)

    _INSTEAD = "links by rank table and HCCL, which needs LLM-DataDist's own transport: use "
    link = UnservedCall(f"{_INSTEAD}link_clusters")
    unlink = UnservedCall(f"{_INSTEAD}unlink_clusters")
    query_register_mem_status = UnservedCall(f"{_INSTEAD}link_clusters, which returns when the link can be used")

    def _link(self, links: "Links", cluster: LLMClusterInfo, timeout: int) -> LLMStatusCode:
        tries, begin, total = self._config.link_retry_count, time.monotonic(), self._config.link_total_time
        status = LLMStatusCode.LLM_LINK_FAILED
        for number in range(tries):
            deadline = time.monotonic() + timeout / 1000
            deadline = min(deadline, begin + total) if total else deadline
            status = links.link(cluster.remote_cluster_id or 0, cluster.remote_ip_info_list, deadline)
            again = status in (LLMStatusCode.LLM_LINK_FAILED, LLMStatusCode.LLM_TIMEOUT) and number + 1 < tries
            if not again or (total and time.monotonic() >= begin + total):
                break
            # Spread the tries over the time that there is.
            time.sleep(max(begin + (number + 1) * (total or timeout / 1000) / tries - time.monotonic(), 0))
        return status


def _check_clusters(clusters: Sequence[LLMClusterInfo], timeout: int) -> int:
    """Checks the arguments of link_clusters and unlink_clusters. Returns the timeout."""
    check_type("clusters", clusters, list, tuple)
    for index, cluster in enumerate(clusters):
        check_type(f"clusters[{index}]", cluster, LLMClusterInfo)
        if cluster.remote_cluster_id is None:
            raise param_invalid(f"clusters[{index}] has no remote_cluster_id")
    timeout = check_int("timeout", timeout, INT32)
    if timeout <= 0:
        raise param_invalid(f"timeout ({timeout}) must be greater than 0 (milliseconds)")
    return timeout


def _statuses(codes: list[LLMStatusCode]) -> Statuses:
    failed = (code for code in codes if code is not LLMStatusCode.LLM_SUCCESS)
    return next(failed, LLMStatusCode.LLM_SUCCESS), codes
