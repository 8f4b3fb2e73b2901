# SPDX-License-Identifier: Apache-2.0
"""LLMDataDist: how users of LLM-DataDist come by their CacheManager."""

import threading

from ._checks import UINT64, check_int, check_type
from ._enum import NamedIntEnum
from ._fork import renew_lock_in_children
from ._logging import reporting
from ._remote import RemoteCall
from .cache_manager import CacheManager
from .config import LLMConfig
from .status import LLMException, LLMParamInvalid, LLMStatusCode


class LLMRole(NamedIntEnum):
    """What a process of a cluster does. On one machine it makes no difference."""

    PROMPT = 1
    DECODER = 2
    MIX = 3


class LLMDataDist:
    """Makes the CacheManager of a process, of which one at a time is initialised.

    Args:
        role: Kept, and of no effect: no other machine is told.
        cluster_id: A uint64. Likewise.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: A cluster_id that is no uint64.
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
        """Makes the CacheManager. Nothing if that is done already.

        Args:
            options: What ``LLMConfig.generate_options`` gives.

        Raises:
            TypeError: Something else than a dict of strings.
            LLMException: LLM_FAILED while another LLMDataDist of the process is initialised; LLM_PARAM_INVALID for a
                value that is not allowed.
        """
        with reporting("init"), LLMDataDist._lock:
            if LLMDataDist._initialised is self:
                return
            if LLMDataDist._initialised is not None:
                raise LLMException("another LLMDataDist is initialised; finalize it first", LLMStatusCode.LLM_FAILED)
            config = LLMConfig.from_options(options)
            manager = CacheManager(config) if config.enable_cache_manager else None
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
            raise LLMParamInvalid("cache_manager: not enabled; set enable_cache_manager in the options of init")
        return self._cache_manager

    def finalize(self) -> None:
        """Ends all caches of the CacheManager, after the copy that runs. Nothing if it is done already."""
        with LLMDataDist._lock:
            manager = self._cache_manager
            if LLMDataDist._initialised is self:
                LLMDataDist._initialised = None
        # With the lock free: a signal handler of the thread whose copy is waited for may want it, to finalize as well.
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
