# SPDX-License-Identifier: Apache-2.0
"""LLMConfig: the settings of LLM-DataDist that concern one machine."""

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
    if value == "":  # no pool, as LLM-DataDist has it
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

# Settings of LLM-DataDist that concern other machines, or the graph engine that it runs on.
_WITHOUT_EFFECT = {
    *("listen_ip_info", "local_comm_res", "enable_remote_cache_accessible", "enable_switch_role", "cluster_info"),
    *("link_total_time", "link_retry_count", "rdma_traffic_class", "rdma_service_level", "deploy_res_path"),
    *("transfer_backend", "global_resource_config", "ge_options", "mem_utilization", "buf_pool_cfg", "output_max_size"),
}


@dataclass
class LLMConfig:
    """Settings, checked when they are set, each ``None`` until then.

    Attributes:
        sync_kv_timeout: Milliseconds that a blocking copy may take, as an int or a string of digits, greater than 0.
            1000 where it is not set.
        device_id: The NPU of this process. That there is one of this number is checked when a cache is made there.
        enable_cache_manager: Whether a CacheManager is wanted.
        mem_pool_cfg: JSON object with ``memory_size``, the bytes that caches on the device may take together, and
            ``page_shift`` (in [10, 31), default 16), the logarithm of the page size. "" is no limit.
        host_mem_pool_cfg: The same for caches in host memory.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: A number that does not fit an int32.
        LLMException: LLM_PARAM_INVALID, any other value that is not allowed; LLM_FEATURE_NOT_ENABLED, a setting of
            LLM-DataDist that concerns other machines or its graph engine. Setting those to None, False or "" does
            nothing.
        AttributeError: A setting that is not among these.
    """

    sync_kv_timeout: int | str | None = None
    device_id: int | None = None
    enable_cache_manager: bool | None = None
    mem_pool_cfg: str | None = None
    host_mem_pool_cfg: str | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _WITHOUT_EFFECT:
            if value is None or value is False or value == "":  # switched off, as it is
                return
            raise LLMException(
                f"{name} concerns other machines, or LLM-DataDist's graph engine: llm_datadist_torch has neither",
                LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
            )
        if name not in _CHECKS:
            # A misspelt setting that is silently kept is the worst kind of default.
            raise AttributeError(f"LLMConfig has no setting {name!r}; it has {', '.join(_CHECKS)}")
        if value is not None:
            _CHECKS[name](name, value)
        super().__setattr__(name, value)

    @classmethod
    def from_options(cls, options: dict[str, str]) -> "LLMConfig":
        """Settings from the dict that ``generate_options`` makes. Others in it have no effect, which a log line says.

        Raises:
            TypeError: Something else than a dict of strings.
            LLMException: LLM_PARAM_INVALID, a value that is not allowed.
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
        """The bytes that allocated caches may take together, by placement, where that is set."""
        pools = {Placement.DEVICE: self.mem_pool_cfg, Placement.HOST: self.host_mem_pool_cfg}
        return {placement: json.loads(pool)["memory_size"] for placement, pool in pools.items() if pool}

    def generate_options(self) -> dict[str, str]:
        """The settings that were set, by the names that LLM-DataDist's ``init`` takes, every value a string."""
        values = {name: getattr(self, name) for name in _OPTIONS}
        return {
            _OPTIONS[name]: str(int(value)) if isinstance(value, bool) else str(value)
            for name, value in values.items()
            if value is not None
        }


LlmConfig = LLMConfig
