# SPDX-License-Identifier: Apache-2.0
"""LLMDataDist: creates the CacheManager and its links to other processes, as in LLM-DataDist."""

import weakref
from typing import ClassVar

from .cache_manager import CacheManager
from .checks import UINT64, check_int, check_type
from .cluster_info import LLMRole, parse_listen_ip_info
from .config import LLMConfig
from .fork import ForkSafeLock
from .link_calls import LinkCalls
from .log import error_context, logger
from .memory import make_current
from .status import LLMStatusCode, llm_error, param_invalid
from .unserved import UnservedProperty


class LLMDataDist(LinkCalls):
    """Creates the CacheManager of a process, and links it to other processes. See docs/remote.md.

    All methods raise TypeError or ValueError for an argument of the wrong type, and those on links RuntimeError before ``init``.
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
            make_current(config.device_id)
            if manager is not None and addresses:
                try:
                    manager.open_links(self.cluster_id).listen(addresses)
                except BaseException:
                    manager.finalize()
                    raise
            self._cache_manager, self._config = manager, config
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
            manager = self._cache_manager
            LLMDataDist._initialised.discard(self)
        # Without the lock, because this waits for a copy, whose thread may run a signal handler that calls finalize too.
        if manager is not None:
            manager.finalize()

    def __enter__(self) -> "LLMDataDist":
        """The object itself. The block ends with ``finalize``; ``init`` is up to the caller."""
        return self

    def __exit__(self, *_: object) -> None:
        self.finalize()

    def switch_role(self, role: LLMRole, switch_options: dict[str, str] | None = None) -> None:
        """Changes the role, and where this process listens.

        Args:
            role: The role to change to.
            switch_options: Options with "llm.listenIpInfo", where to listen from now on. Without it, nowhere.

        Raises:
            LLMException: LLM_EXIST_LINK while there are links; LLM_PARAM_INVALID, LLM_FAILED and LLM_FEATURE_NOT_ENABLED as
                for ``init``.
        """
        with error_context("switch_role"):
            check_type("role", role, LLMRole)
            config = LLMConfig.from_options({} if switch_options is None else switch_options)
            addresses = parse_listen_ip_info(config.listen_ip_info)
            manager = self.cache_manager
            if manager.remote is not None and manager.remote.has_link():
                raise llm_error(LLMStatusCode.LLM_EXIST_LINK, "there are links; end them with unlink_clusters")
            remote = manager.open_links(self.cluster_id) if addresses else manager.remote
            if remote is not None:
                remote.listen(addresses)
            self.role = role
        logger.info("switch_role: %s", role.name)

    kv_cache_manager = UnservedProperty("is of the older interface: use cache_manager")
