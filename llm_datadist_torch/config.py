# SPDX-License-Identifier: Apache-2.0
"""LLMConfig: the settings of LLM-DataDist that apply to one machine."""

import json
from dataclasses import dataclass
from typing import Any

from ._checks import INT32, check_int, check_type
from ._logging import logger
from .cache import Placement
from .status import LLMException, LLMParamInvalid, LLMStatusCode


def _check_sync_kv_timeout(name: str, value: Any) -> None:
    check_type(name, value, int, str)
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise LLMParamInvalid(f"{name} ({value!r}) must be an int or a string of digits")
    check_int(name, int(value), INT32)
    if int(value) <= 0:
        raise LLMParamInvalid(f"{name} ({value!r}) must be greater than 0 (milliseconds)")


def _check_device_id(name: str, value: Any) -> None:
    check_int(name, value, INT32)
    if value < 0:
        raise LLMParamInvalid(f"{name} ({value}) must not be negative")


def _check_flag(name: str, value: Any) -> None:
    check_type(name, value, bool)


def _check_mem_pool(name: str, value: Any) -> None:
    check_type(name, value, str)
    if value == "":  # no pool, as in LLM-DataDist
        return
    try:
        pool = json.loads(value)
    except json.JSONDecodeError as error:
        raise LLMParamInvalid(f"{name} ({value!r}) must be JSON: {error}") from error
    if not isinstance(pool, dict) or "memory_size" not in pool:
        raise LLMParamInvalid(f'{name} ({value!r}) must be a JSON object with "memory_size" (bytes)')
    memory_size, page_shift = pool["memory_size"], pool.get("page_shift", 16)
    if type(memory_size) is not int or memory_size <= 0:
        raise LLMParamInvalid(f"{name}: memory_size ({memory_size!r}) must be an int greater than 0 (bytes)")
    if type(page_shift) is not int or not 10 <= page_shift < 31:
        raise LLMParamInvalid(f"{name}: page_shift ({page_shift!r}) must be an int in [10, 31)")


_CHECKS = {
    "sync_kv_timeout": _check_sync_kv_timeout,
    "device_id": _check_device_id,
    "enable_cache_manager": _check_flag,
    "mem_pool_cfg": _check_mem_pool,
    "host_mem_pool_cfg": _check_mem_pool,
}

_OPTIONS = {
    "sync_kv_timeout": "llm.SyncKvCacheWaitTime",
    "device_id": "ge.exec.deviceId",
    "enable_cache_manager": "llm.EnableCacheManager",
    "mem_pool_cfg": "llm.MemPoolConfig",
    "host_mem_pool_cfg": "llm.HostMemPoolConfig",
}

# Settings for other machines, or for the graph engine of LLM-DataDist.
_REMOTE_SETTINGS = {
    "buf_pool_cfg",
    "cluster_info",
    "deploy_res_path",
    "enable_remote_cache_accessible",
    "enable_switch_role",
    "ge_options",
    "global_resource_config",
    "link_retry_count",
    "link_total_time",
    "listen_ip_info",
    "local_comm_res",
    "mem_utilization",
    "output_max_size",
    "rdma_service_level",
    "rdma_traffic_class",
    "transfer_backend",
}


@dataclass
class LLMConfig:
    """Settings, checked when they are assigned. Each is ``None`` until then.

    Attributes:
        sync_kv_timeout: Milliseconds that a blocking copy may take, greater than 0, as an int or a string of digits.
            The default is 1000.
        device_id: The index of the NPU of this process. Its existence is checked when a cache is created there.
        enable_cache_manager: Whether LLMDataDist creates a CacheManager.
        mem_pool_cfg: JSON object with ``memory_size``, the bytes that caches on the device may use together, and
            ``page_shift`` (in [10, 31), default 16), the logarithm of the page size. "" means no limit.
        host_mem_pool_cfg: The same for caches in host memory.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: A number that does not fit an int32.
        LLMException: LLM_PARAM_INVALID for any other value that is not allowed; LLM_FEATURE_NOT_ENABLED for a setting
            of LLM-DataDist for other machines or its graph engine. Assigning None, False or "" to those does nothing.
        AttributeError: An unknown setting.
    """

    sync_kv_timeout: int | str | None = None
    device_id: int | None = None
    enable_cache_manager: bool | None = None
    mem_pool_cfg: str | None = None
    host_mem_pool_cfg: str | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _REMOTE_SETTINGS:
            if value is None or value is False or value == "":  # off, as it is
                return
            raise LLMException(
                f"{name} concerns other machines, or LLM-DataDist's graph engine: llm_datadist_torch has neither",
                LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
            )
        if name not in _CHECKS:
            # A misspelt setting must not be ignored silently.
            raise AttributeError(f"LLMConfig has no setting {name!r}; it has {', '.join(_CHECKS)}")
        if value is not None:
            _CHECKS[name](name, value)
        super().__setattr__(name, value)

    @classmethod
    def from_options(cls, options: dict[str, str]) -> "LLMConfig":
        """The settings in a dict of options. Logs a warning for options that have no effect.

        Args:
            options: The options, as ``generate_options`` returns them.

        Raises:
            TypeError: Options that are not a dict of strings.
            LLMException: LLM_PARAM_INVALID for a value that is not allowed.
        """
        check_type("options", options, dict)
        names = {option: name for name, option in _OPTIONS.items()}
        config = cls()
        for option, text in options.items():
            check_type("an option", option, str)
            check_type(f"options[{option!r}]", text, str)
            if option not in names:
                logger.warning("option %s has no effect on one machine", option)
                continue
            value: Any = text
            if names[option] == "device_id":
                if not (text.isascii() and text.isdigit()):
                    raise LLMParamInvalid(f"{option} ({text!r}) must be the number of one device")
                value = int(text)
            elif names[option] == "enable_cache_manager":
                if text not in ("0", "1"):
                    raise LLMParamInvalid(f"{option} ({text!r}) must be 0 or 1")
                value = text == "1"
            setattr(config, names[option], value)
        return config

    def memory_sizes(self) -> dict[Placement, int]:
        """The bytes that allocated caches may use together, by placement. Placements without a limit are left out."""
        pools = {Placement.DEVICE: self.mem_pool_cfg, Placement.HOST: self.host_mem_pool_cfg}
        return {placement: json.loads(pool)["memory_size"] for placement, pool in pools.items() if pool}

    def generate_options(self) -> dict[str, str]:
        """The assigned settings, as strings, by the option names that ``LLMDataDist.init`` takes."""
        values = {name: getattr(self, name) for name in _OPTIONS}
        return {
            _OPTIONS[name]: str(int(value)) if isinstance(value, bool) else str(value)
            for name, value in values.items()
            if value is not None
        }


LlmConfig = LLMConfig
