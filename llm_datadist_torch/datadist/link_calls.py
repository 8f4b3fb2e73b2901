# SPDX-License-Identifier: Apache-2.0
"""The calls on links, of LLMDataDist and of ClusterLinks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .checks import INT32, UINT64, check_int, check_type
from .cluster_info import LLMClusterInfo, parse_listen_ip_info
from .config import LLMConfig
from .log import error_context
from .rank_table import checked_rank_table
from .remote_api import Remote, TransferCounters
from .status import LLMStatusCode, llm_error, param_invalid
from .unserved import RegisterMemStatus

if TYPE_CHECKING:
    from .cache_manager import CacheManager

Statuses = tuple[LLMStatusCode, list[LLMStatusCode]]

_DEFAULT_GROUP_SECONDS = 120


class LinkCalls:
    """Links the process of a manager to other processes.

    All methods raise TypeError or ValueError for an argument of the wrong type, and RuntimeError before ``init``.
    """

    cluster_id: int
    _config: LLMConfig

    @property
    def cache_manager(self) -> "CacheManager":
        """The CacheManager."""
        raise NotImplementedError

    def link_clusters(self, clusters: Sequence[LLMClusterInfo], timeout: int = 3000) -> Statuses:
        """Links to processes that listen, to all at once.

        ``link_retry_count`` is how often each is tried, ``link_total_time`` the seconds for all tries, if it is not 0.

        Args:
            clusters: The processes: id and address of each. One without an id gets that of the process that answers.
            timeout: Milliseconds for each try of each process, an int32 greater than 0.

        Returns:
            LLM_SUCCESS or the first other code, and a list with the code of each process. The codes are LLM_SUCCESS,
            LLM_ALREADY_LINK, LLM_TIMEOUT, LLM_LINK_FAILED, and LLM_LINK_BUSY while another call links to the process or a
            transfer of the last link is in flight. The reason is logged.

        Raises:
            LLMException: LLM_PARAM_INVALID for a cluster without an address, LLM_FEATURE_NOT_ENABLED without NIXL.
        """
        with error_context("link_clusters"):
            timeout = _check_clusters(clusters, timeout, known=False)
            for index, cluster in enumerate(clusters):
                if not cluster.remote_ip_info_list:
                    raise param_invalid(f"clusters[{index}] has no address; call append_remote_ip_info")
                if cluster.remote_cluster_id == self.cluster_id:
                    raise param_invalid(f"clusters[{index}] ({self.cluster_id}) is this process")
            manager = self.cache_manager
            remote, config = manager.open_links(self.cluster_id), self._config
        codes = remote.link(clusters, timeout, config.link_retry_count, config.link_total_time)
        if config.transfer_backend == "hixl":  # where each process links for itself
            linked = LLMStatusCode.LLM_ALREADY_LINK
            codes = [LLMStatusCode.LLM_SUCCESS if code is linked else code for code in codes]
        return _statuses(codes)

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
            LLMException: LLM_PARAM_INVALID for a cluster without an id.
        """
        with error_context("unlink_clusters"):
            timeout = _check_clusters(clusters, timeout, known=True)
            check_type("force", force, bool)
            remote = self.cache_manager.remote
        if remote is None:
            code = LLMStatusCode.LLM_SUCCESS if force else LLMStatusCode.LLM_NOT_YET_LINK
            return _statuses([code] * len(clusters))
        return _statuses(remote.unlink([cluster.remote_cluster_id or 0 for cluster in clusters], timeout, force=force))

    def check_link_status(self, remote_cluster_id: int) -> LLMStatusCode:
        """LLM_SUCCESS if there is a link to a cluster, LLM_NOT_YET_LINK if not.

        Args:
            remote_cluster_id: The cluster, a uint64.
        """
        with error_context("check_link_status"):
            remote_cluster_id = check_int("remote_cluster_id", remote_cluster_id, UINT64)
            remote = self.cache_manager.remote
            linked = remote is not None and remote.has_link(remote_cluster_id)
            return LLMStatusCode.LLM_SUCCESS if linked else LLMStatusCode.LLM_NOT_YET_LINK

    def link(self, comm_name: str, cluster_rank_info: dict[int, int], rank_table: str) -> int:
        """Begins to link clusters to one another. Each of them makes this call, at about the same time.

        Returns at once. Until ``query_register_mem_status`` is OK, transfers raise LLM_NOT_YET_LINK. The time for it is
        ``link_total_time`` seconds, 120 if that is 0, in ``link_retry_count`` tries. See docs/remote.md for the addresses.

        Args:
            comm_name: The name of the communicator, of 1 to 127 characters, the same in all processes.
            cluster_rank_info: The rank of each cluster, in ascending order: 2 to 4 clusters, this one included.
            rank_table: HCCL's table of the servers and devices, in JSON.

        Returns:
            The id of the communicator in this process, from 1 on.

        Raises:
            LLMException: LLM_PARAM_INVALID for any other wrong argument, a server without an address, or a 513th
                communicator; LLM_FAILED if the process cannot listen; LLM_FEATURE_NOT_ENABLED without NIXL.
        """
        with error_context("link"):
            manager = self.cache_manager
            table = checked_rank_table(comm_name, cluster_rank_info, rank_table, self.cluster_id)
            remote, config = manager.open_links(self.cluster_id), self._config
            seconds = config.link_total_time or _DEFAULT_GROUP_SECONDS
            return remote.link_group(comm_name, table, seconds, config.link_retry_count)

    def unlink(self, comm_id: int) -> None:
        """Ends the links of a communicator, on this side. The other processes call ``unlink`` for themselves.

        Args:
            comm_id: What ``link`` has returned.

        Raises:
            LLMException: LLM_NOT_YET_LINK for an unknown id.
        """
        with error_context("unlink"):
            comm_id = check_int("comm_id", comm_id, UINT64)
            self._remote_with(comm_id).unlink_group(comm_id)

    def query_register_mem_status(self, comm_id: int) -> RegisterMemStatus:
        """How far ``link`` is: PREPARING, OK when all clusters are linked, or FAILED. OK and FAILED stay until ``unlink``.

        Args:
            comm_id: What ``link`` has returned.

        Raises:
            LLMException: As for ``unlink``.
        """
        with error_context("query_register_mem_status"):
            comm_id = check_int("comm_id", comm_id, UINT64)
            return self._remote_with(comm_id).group_status(comm_id)

    def transfer_counters(self) -> dict[int, TransferCounters]:
        """What has been transferred to and from each cluster since the first link. For metrics."""
        remote = self.cache_manager.remote
        return {} if remote is None else remote.counters()

    def _remote_with(self, comm_id: int) -> Remote:
        remote = self.cache_manager.remote
        if remote is None:
            raise llm_error(LLMStatusCode.LLM_NOT_YET_LINK, f"there is no communicator {comm_id}")
        return remote


class ClusterLinks(LinkCalls):
    """Links for a CacheManager without LLMDataDist. ``CacheManager.finalize`` ends them.

    Args:
        cache_manager: The manager.
        cluster_id: The id of this process, a uint64.
        config: ``listen_ip_info``, ``link_retry_count`` and ``link_total_time``.

    Raises:
        TypeError, ValueError: An argument of the wrong type.
        LLMException: LLM_FAILED if it cannot listen, LLM_PARAM_INVALID for an address that is not one,
            LLM_FEATURE_NOT_ENABLED without NIXL.
    """

    def __init__(self, cache_manager: "CacheManager", cluster_id: int, config: LLMConfig | None = None) -> None:
        with error_context("ClusterLinks"):
            cluster_id = check_int("cluster_id", cluster_id, UINT64)
            self.cluster_id, self._config = cluster_id, LLMConfig() if config is None else config
            self._cache_manager = cache_manager
            remote = cache_manager.open_links(cluster_id)
            remote.listen(parse_listen_ip_info(self._config.listen_ip_info))

    @property
    def cache_manager(self) -> "CacheManager":
        """The CacheManager."""
        return self._cache_manager


def _check_clusters(clusters: Sequence[LLMClusterInfo], timeout: int, *, known: bool) -> int:
    """Checks the arguments of link_clusters and unlink_clusters. Returns the timeout."""
    check_type("clusters", clusters, list, tuple)
    for index, cluster in enumerate(clusters):
        check_type(f"clusters[{index}]", cluster, LLMClusterInfo)
        if known and cluster.remote_cluster_id is None:
            raise param_invalid(f"clusters[{index}] has no remote_cluster_id")
    timeout = check_int("timeout", timeout, INT32)
    if timeout <= 0:
        raise param_invalid(f"timeout ({timeout}) must be greater than 0 (milliseconds)")
    return timeout


def _statuses(codes: list[LLMStatusCode]) -> Statuses:
    failed = (code for code in codes if code is not LLMStatusCode.LLM_SUCCESS)
    return next(failed, LLMStatusCode.LLM_SUCCESS), codes
