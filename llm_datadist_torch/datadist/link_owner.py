# SPDX-License-Identifier: Apache-2.0
"""The links of a manager, and through them its access to caches of other processes."""

import weakref

from .fork import ForkSafeLock
from .registry import CacheRegistry
from .remote_api import Remote, check_installed, open_remote
from .status import LLMStatusCode, llm_error


class LinkOwner:
    """Has no links until ``LinkCalls`` opens them, and none after its end.

    Args:
        registry: The caches of this process, for its peers.
        timeout_ms: Milliseconds that a transfer may take.
    """

    def __init__(self, registry: CacheRegistry, timeout_ms: int) -> None:
        self._registry, self._timeout_ms = registry, timeout_ms
        self._opening = ForkSafeLock()
        self._remote: Remote | None = None
        self._finalized = False

    def open_links(self, cluster_id: int) -> Remote:
        """The links of this process, none at first, which all transfers use.

        Args:
            cluster_id: The id of this process.

        Raises:
            LLMException: LLM_FEATURE_NOT_ENABLED without NIXL, pyzmq or msgspec; LLM_ENGINE_FINALIZED after ``finalize``.
        """
        with self._opening.current:
            self._check_not_finalized()
            if self._remote is None:
                remote = open_remote(cluster_id, self._registry, self._timeout_ms)
                # A manager that is dropped without finalize must not leave links open.
                weakref.finalize(self, remote.close_in_thread).atexit = False
                self._remote = remote
            return self._remote

    @property
    def remote(self) -> Remote | None:
        """What ``open_links`` has returned, or None."""
        return self._remote

    def _linked(self, cluster_id: int) -> Remote:
        remote = self._remote
        self._check_not_finalized()
        if remote is None:
            check_installed()
            text = f"there is no link to cluster {cluster_id}; call link_clusters of the LLMDataDist of this manager"
            raise llm_error(LLMStatusCode.LLM_NOT_YET_LINK, text)
        return remote

    def _close_links(self) -> None:
        with self._opening.current:
            self._finalized, remote, self._remote = True, self._remote, None
        if remote is not None:
            remote.close()

    def _check_not_finalized(self) -> None:
        if self._finalized:
            raise llm_error(LLMStatusCode.LLM_ENGINE_FINALIZED, "the manager is finalized")
