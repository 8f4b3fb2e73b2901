# SPDX-License-Identifier: Apache-2.0
"""LLMConfig: the settings of LLM-DataDist."""

import json
from typing import Any

from .cache_desc import Placement
from .checks import UINT32
from .cluster_info import LLMClusterInfo as LLMClusterInfo  # LLM-DataDist has them in this module
from .cluster_info import LLMRole as LLMRole
from .log import warn_once
from .settings import (
    MEMORY_LIMIT,
    Setting,
    check_device_id,
    check_ge_options,
    check_json,
    check_mem_pool,
    check_mem_utilization,
    check_timeout,
    is_a,
    is_uint32,
    is_within,
    parse_flag,
    parse_fraction,
    parse_number,
)
from .status import param_invalid

_SESSION_DEVICE = "ge.session_device_id"


class LLMConfig:
    """Settings, with LLM-DataDist's names and defaults, checked when they are assigned.

    Settings of LLM-DataDist's own transport and graph engine can be assigned and read. They have no effect, which is logged
    once as a warning.

    Attributes:
        sync_kv_timeout: Milliseconds that a blocking copy, pull or push may take, greater than 0, as an int or a string of
            digits. None means 1000.
        device_id: The index of the NPU of this process: an int, or a list or tuple of one int. Its existence is checked
            when a cache is created there. None means the current device.
        enable_cache_manager: Whether LLMDataDist creates a CacheManager. Unset, it does if listen_ip_info is set.
        local_comm_res: Also makes LLMDataDist create a CacheManager if it is assigned, "" included, and
            enable_cache_manager is not.
        listen_ip_info: Where LLMDataDist listens for links: "ip:port", or "ip" for port 26000; several separated by ";".
            "" means that it does not listen.
        link_retry_count: How often link_clusters tries each process.
        link_total_time: Seconds for all tries of a process; 0 means the timeout of the call for each.
        transfer_backend: With "hixl", both processes of a link call link_clusters, and both calls succeed. All else has no
            effect.
        enable_remote_cache_accessible: Has no effect: caches are accessible as ``register_cache`` says.
        enable_switch_role: Has no effect: ``switch_role`` needs no permission.
        mem_pool_cfg: JSON object with ``memory_size``, the bytes that caches on the device may use together, and
            ``page_shift`` (in [10, 31), default 16), the logarithm of the page size. "" means no limit.
        host_mem_pool_cfg: The same for caches in host memory.
        ge_options: Options of the graph engine. ``ge.flowGraphMemMaxSize``, a string of digits, is a limit in bytes on
            the caches on the device. All others have no effect.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: A number that does not fit its integer type.
        LLMException: LLM_PARAM_INVALID for any other value that is not allowed.
        AttributeError: An unknown setting.
    """

    sync_kv_timeout = Setting[int | str | None]("llm.SyncKvCacheWaitTime", None, check_timeout, local=True)
    device_id = Setting[int | list[int] | tuple[int, ...] | None](
        "ge.exec.deviceId", None, check_device_id, parse_number, local=True
    )
    enable_cache_manager = Setting("llm.EnableCacheManager", False, is_a(bool), parse_flag, local=True)
    local_comm_res = Setting("llm.LocalCommRes", "", is_a(str), local=True)
    mem_pool_cfg = Setting("llm.MemPoolConfig", "", check_mem_pool, local=True)
    host_mem_pool_cfg = Setting("llm.HostMemPoolConfig", "", check_mem_pool, local=True)

    buf_pool_cfg = Setting("llm.BufPoolCfg", "", is_a(str))
    cluster_info = Setting("llm.ClusterInfo", "", check_json)
    deploy_res_path = Setting("llm.deployResPath", "", is_a(str))
    enable_remote_cache_accessible = Setting(
        "llm.EnableRemoteCacheAccessible", False, is_a(bool), parse_flag, local=True
    )
    enable_switch_role = Setting("llm.EnableSwitchRole", False, is_a(bool), parse_flag, local=True)
    global_resource_config = Setting("llm.GlobalResourceConfig", "", is_a(str))
    link_retry_count = Setting("llm.LinkRetryCount", 1, is_within(1, 100), parse_number, local=True)
    link_total_time = Setting("llm.LinkTotalTime", 0, is_within(*UINT32), parse_number, local=True)
    listen_ip_info = Setting("llm.listenIpInfo", "", is_a(str), local=True)
    mem_utilization = Setting("llm.MemoryUtilization", 0.95, check_mem_utilization, parse_fraction)
    output_max_size = Setting[int | None]("llm.OutputMaxSize", None, is_a(int), parse_number)
    rdma_service_level = Setting[int | None]("llm.RdmaServiceLevel", None, is_uint32, parse_number)
    rdma_traffic_class = Setting[int | None]("llm.RdmaTrafficClass", None, is_uint32, parse_number)
    transfer_backend = Setting("llm.TransferBackend", "", is_a(str), local=True)

    def __init__(
        self,
        sync_kv_timeout: int | str | None = None,
        device_id: int | list[int] | tuple[int, ...] | None = None,
        enable_cache_manager: bool | None = None,
        mem_pool_cfg: str | None = None,
        host_mem_pool_cfg: str | None = None,
    ) -> None:
        vars(self)["_ge_options"] = {}
        self.sync_kv_timeout = sync_kv_timeout
        self.device_id = device_id
        self.enable_cache_manager = enable_cache_manager
        self.mem_pool_cfg = mem_pool_cfg
        self.host_mem_pool_cfg = host_mem_pool_cfg

    def __setattr__(self, name: str, value: Any) -> None:
        # A misspelt setting must not be ignored silently.
        if name not in SETTINGS and name != "ge_options":
            raise AttributeError(f"LLMConfig has no setting {name!r}; it has ge_options, {', '.join(SETTINGS)}")
        super().__setattr__(name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LLMConfig) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"LLMConfig({self.generate_options()})"

    @property
    def ge_options(self) -> dict[str, str]:
        """Options of the graph engine."""
        options: dict[str, str] = vars(self)["_ge_options"]
        return options

    @ge_options.setter
    def ge_options(self, ge_options: dict[str, str]) -> None:
        check_ge_options("ge_options", ge_options)
        for option in ge_options:
            if option != MEMORY_LIMIT:
                known = option.startswith("ge.")  # LLM-DataDist passes them on to the graph engine
                warn_once(f"option {option} {'has no effect here' if known else 'is unknown, and has no effect'}")
        vars(self)["_ge_options"] = ge_options

    @classmethod
    def from_options(cls, options: dict[str, str]) -> "LLMConfig":
        """The settings in a dict of options. Logs a warning for options that have no effect.

        Args:
            options: The options, as ``generate_options`` returns them. Unknown options become ``ge_options``.

        Raises:
            TypeError: Options that are not a dict of strings.
            LLMException: LLM_PARAM_INVALID for a value that is not allowed.
        """
        check_ge_options("options", options)
        settings = {setting.option: setting for setting in SETTINGS.values()}
        config = cls()
        config.ge_options = {o: text for o, text in options.items() if o not in settings and o != _SESSION_DEVICE}
        for option, text in options.items():
            if option in settings:
                setattr(config, settings[option].name, settings[option].parse(option, text))
        return config

    def generate_options(self) -> dict[str, str]:
        """The assigned settings and the ``ge_options``, as strings, by the names that ``LLMDataDist.init`` takes."""
        options = dict(self.ge_options)
        for name, setting in SETTINGS.items():
            if name in vars(self):
                value = vars(self)[name]
                value = int(value[0]) if isinstance(value, list | tuple) else value
                options[setting.option] = str(int(value)) if isinstance(value, int) else str(value)
        device = LLMConfig.device_id.option
        if device in options:
            options[_SESSION_DEVICE] = options[device]
        return options

    gen_options = generate_options

    @property
    def options(self) -> dict[str, str]:
        """What ``generate_options`` returns."""
        return self.generate_options()

    def wants_cache_manager(self) -> bool:
        """Whether these settings ask LLMDataDist for a CacheManager.

        Raises:
            LLMException: LLM_PARAM_INVALID for local_comm_res with enable_cache_manager=False.
        """
        if "local_comm_res" not in vars(self):
            # A process that listens has caches for its peers.
            return bool(vars(self).get("enable_cache_manager", self.listen_ip_info))
        if vars(self).get("enable_cache_manager") is False:
            raise param_invalid("enable_cache_manager (False) must be True or not set if local_comm_res is set")
        return True

    def memory_limits(self) -> dict[Placement, tuple[int, str]]:
        """The bytes that allocated caches may use together, and the name of the limit, by placement.

        Placements without a limit are left out.
        """
        check_ge_options("ge_options", self.ge_options)  # the dict may have been changed since it was assigned
        limits = {}
        for placement, pool in ((Placement.DEVICE, self.mem_pool_cfg), (Placement.HOST, self.host_mem_pool_cfg)):
            if pool:
                limits[placement] = (int(json.loads(pool)["memory_size"]), "memory_size")
        if MEMORY_LIMIT in self.ge_options:
            limit = (int(self.ge_options[MEMORY_LIMIT]), MEMORY_LIMIT)
            limits[Placement.DEVICE] = min(limit, limits.get(Placement.DEVICE, limit))
        return limits


SETTINGS: dict[str, Setting[Any]] = {
    n: setting for n, setting in vars(LLMConfig).items() if isinstance(setting, Setting)
}
LlmConfig = LLMConfig
