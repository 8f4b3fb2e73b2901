# SPDX-License-Identifier: Apache-2.0
"""LLMDataDist: creates the CacheManager, as in LLM-DataDist."""

import threading

from ._checks import UINT64, RemoteCall, check_int, check_type
from ._fork import renew_lock_in_children
from ._logging import error_context
from .cache_manager import CacheManager
from .configs import LLMConfig, LLMRole
from .status import LLMStatusCode, llm_error, param_invalid


class LLMDataDist:
    """Creates the CacheManager of a process. One instance per process can be initialised at a time.

    Args:
        role: The role of the process. Recorded, not used on one machine.
        cluster_id: The id of the process in the cluster, a uint64. Recorded, not used on one machine.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: A cluster_id that does not fit a uint64.
    """

    _lock = threading.RLock()
    _initialised: "LLMDataDist | None" = None

    def __init__(self, role: LLMRole, cluster_id: int) -> None:
        check_type("role", role, LLMRole)
        check_int("cluster_id", cluster_id, UINT64)
        self.role = role
        self.cluster_id = cluster_id
        self._cache_manager: CacheManager | None = None

    def init(self, options: dict[str, str]) -> None:
        """Creates the CacheManager. Does nothing if this instance is initialised.

        Args:
            options: The options, as ``LLMConfig.generate_options`` returns them.

        Raises:
            TypeError: Options that are not a dict of strings.
            LLMException: LLM_FAILED while another LLMDataDist of the process is initialised; LLM_PARAM_INVALID for a
                value that is not allowed.
        """
        with error_context("init"), LLMDataDist._lock:
            if LLMDataDist._initialised is self:
                return
            if LLMDataDist._initialised is not None:
                raise llm_error(LLMStatusCode.LLM_FAILED, "another LLMDataDist is initialised; finalize it first")
            config = LLMConfig.from_options(options)
            manager = CacheManager(config) if config.wants_cache_manager() else None
            self._cache_manager, LLMDataDist._initialised = manager, self

    @property
    def cache_manager(self) -> CacheManager:
        """The CacheManager.

        Raises:
            RuntimeError: Before ``init`` or after ``finalize``.
            LLMException: LLM_PARAM_INVALID if the options did not enable it.
        """
        if LLMDataDist._initialised is not self:
            raise RuntimeError("cache_manager: this LLMDataDist is not initialised; call init first")
        if self._cache_manager is None:
            raise param_invalid(
                "cache_manager: not enabled; set LLMConfig.enable_cache_manager to True, or LLMConfig.local_comm_res to "
                'any string ("" too), before generate_options'
            )
        return self._cache_manager

    def finalize(self) -> None:
        """Ends all caches of the CacheManager, after the running copy. Does nothing if this instance is finalized."""
        with LLMDataDist._lock:
            manager = self._cache_manager
            if LLMDataDist._initialised is self:
                LLMDataDist._initialised = None
        # Without the lock: this waits for a copy, whose thread may run a signal handler that calls finalize too.
        if manager is not None:
            manager._finalize()

    link = RemoteCall()
    unlink = RemoteCall()
    link_clusters = RemoteCall()
    unlink_clusters = RemoteCall()
    check_link_status = RemoteCall()
    query_register_mem_status = RemoteCall()
    switch_role = RemoteCall()


renew_lock_in_children(LLMDataDist)
