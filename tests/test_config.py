# SPDX-License-Identifier: Apache-2.0
"""LLMConfig: its settings, their checks, and the options it generates."""

import pytest
from utils import refused

from llm_datadist_torch import LLMConfig, LlmConfig, LLMStatusCode, Placement
from llm_datadist_torch.datadist.config import SETTINGS
from llm_datadist_torch.datadist.log import warn_once

INVALID = LLMStatusCode.LLM_PARAM_INVALID


def test_defaults_generate_no_options() -> None:
    assert LlmConfig is LLMConfig
    assert LLMConfig().generate_options() == {}


def test_options() -> None:
    config = LLMConfig(sync_kv_timeout="5000", device_id=3, enable_cache_manager=True)
    config.mem_pool_cfg = '{"memory_size": 1048576}'
    config.host_mem_pool_cfg = '{"memory_size": 2097152, "page_shift": 12}'
    options = {
        "llm.SyncKvCacheWaitTime": "5000",
        "ge.exec.deviceId": "3",
        "ge.session_device_id": "3",
        "llm.EnableCacheManager": "1",
        "llm.MemPoolConfig": '{"memory_size": 1048576}',
        "llm.HostMemPoolConfig": '{"memory_size": 2097152, "page_shift": 12}',
    }
    assert config.generate_options() == config.options == config.gen_options() == options
    again = LLMConfig.from_options(options)
    assert again.generate_options() == options
    limits = {Placement.DEVICE: (1048576, "memory_size"), Placement.HOST: (2097152, "memory_size")}
    assert again.memory_limits() == limits


@pytest.mark.parametrize("value", [1, "1", 2**31 - 1, str(2**31 - 1)])
def test_valid_timeouts(value: int | str) -> None:
    assert LLMConfig(sync_kv_timeout=value).generate_options() == {"llm.SyncKvCacheWaitTime": str(value)}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("sync_kv_timeout", 0, "sync_kv_timeout (0) must be greater than 0"),
        ("sync_kv_timeout", "0", "sync_kv_timeout ('0') must be greater than 0"),
        *(("sync_kv_timeout", text, "must be an int or a string of digits") for text in ("1s", "-1", "", "²")),
        ("device_id", -1, "device_id (-1) must not be negative"),
        ("device_id", [], "device_id ([]) must name one device"),
        ("device_id", (0, 1), "device_id ((0, 1)) must name one device"),
        *(("link_total_time", value, f"({value}) must be in [0, 4294967295]") for value in (-1, 2**32)),
        *(("link_retry_count", value, f"({value}) must be in [1, 100]") for value in (0, 101)),
        ("mem_utilization", 1.01, "mem_utilization (1.01) must be in [0, 1]"),
        ("cluster_info", "{", "cluster_info ('{') must be JSON"),
        ("ge_options", {"ge.flowGraphMemMaxSize": "1,2"}, "ge.flowGraphMemMaxSize ('1,2') must be a string of digits"),
        ("ge_options", {"ge.flowGraphMemMaxSize": "1 GB"}, "must be a string of digits: the bytes of one memory pool"),
        ("mem_pool_cfg", "1 GB", "mem_pool_cfg ('1 GB') must be JSON"),
        *(("mem_pool_cfg", text, 'must be a JSON object with "memory_size"') for text in ("[1]", "{}")),
        ("mem_pool_cfg", '{"memory_size": 0}', "memory_size (0) must be an int greater than 0"),
        ("mem_pool_cfg", '{"memory_size": "1"}', "memory_size ('1') must be an int greater than 0"),
        ("mem_pool_cfg", '{"memory_size": 1, "page_shift": 9}', "page_shift (9) must be an int in [10, 31)"),
        ("host_mem_pool_cfg", '{"memory_size": 1, "page_shift": 31}', "page_shift (31) must be an int in [10, 31)"),
    ],
)
def test_invalid_values(name: str, value: object, text: str) -> None:
    config = LLMConfig()
    refused(INVALID, text, setattr, config, name, value)
    assert config == LLMConfig()


WRONG_TYPES = {
    "sync_kv_timeout": [1.0, True],
    "device_id": ["0", True, {0}, ["0"], [True]],
    "enable_cache_manager": [1, "1"],
    "mem_pool_cfg": [{}],
    "host_mem_pool_cfg": [1],
    "local_comm_res": [{}],
    "listen_ip_info": [1],
    "enable_remote_cache_accessible": [1],
    "enable_switch_role": ["1"],
    "link_total_time": ["20", 1.0, True],
    "link_retry_count": ["1", True],
    "mem_utilization": [1, "0.5"],
    "ge_options": ["", [], {"ge.a": 1}, {1: "1"}, {"ge.flowGraphMemMaxSize": 1}],
    "rdma_traffic_class": ["132"],
    "output_max_size": ["1"],
    "transfer_backend": [1],
    "cluster_info": [{}],
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_wrong_types(name: str) -> None:
    for wrong in WRONG_TYPES[name]:
        with pytest.raises(TypeError, match=rf"{name}(\[.*\])? must be"):
            setattr(LLMConfig(), name, wrong)


def test_numbers_outside_their_integer_type() -> None:
    for name, value in (("sync_kv_timeout", 2**31), ("sync_kv_timeout", str(2**31)), ("device_id", [2**31])):
        with pytest.raises(ValueError, match=rf"{name} \(2147483648\) out of range"):
            setattr(LLMConfig(), name, value)


@pytest.mark.parametrize("name", ["mem_pool_cfg", "host_mem_pool_cfg"])
def test_an_empty_pool_is_no_limit(name: str) -> None:
    config = LLMConfig(**{name: ""})
    assert config.memory_limits() == {}
    assert LLMConfig.from_options(config.generate_options()).memory_limits() == {}


@pytest.mark.parametrize("device_id", [3, [3], (3,)])
def test_a_device_in_a_list(device_id: object) -> None:
    config = LLMConfig(device_id=device_id)
    assert config.device_id == device_id
    assert config.generate_options() == {"ge.exec.deviceId": "3", "ge.session_device_id": "3"}
    assert LLMConfig.from_options(config.generate_options()).device_id == 3


LINKING = [
    "listen_ip_info",
    "link_total_time",
    "link_retry_count",
    "enable_switch_role",
    "enable_remote_cache_accessible",
    "transfer_backend",
]
# Name, default, another value, its option. Those that are not for linking have no effect.
REMOTE = [
    ("listen_ip_info", "", "192.168.1.1:26000", {"llm.listenIpInfo": "192.168.1.1:26000"}),
    ("link_total_time", 0, 20, {"llm.LinkTotalTime": "20"}),
    ("link_retry_count", 1, 100, {"llm.LinkRetryCount": "100"}),
    ("mem_utilization", 0.95, 0.5, {"llm.MemoryUtilization": "0.5"}),
    ("ge_options", {}, {"ge.a": "b"}, {"ge.a": "b"}),
    ("buf_pool_cfg", "", "{}", {"llm.BufPoolCfg": "{}"}),
    ("cluster_info", "", "{}", {"llm.ClusterInfo": "{}"}),
    ("deploy_res_path", "", "/a", {"llm.deployResPath": "/a"}),
    ("enable_remote_cache_accessible", False, True, {"llm.EnableRemoteCacheAccessible": "1"}),
    ("enable_switch_role", False, True, {"llm.EnableSwitchRole": "1"}),
    ("global_resource_config", "", "{}", {"llm.GlobalResourceConfig": "{}"}),
    ("output_max_size", None, 4, {"llm.OutputMaxSize": "4"}),
    ("rdma_service_level", None, 4, {"llm.RdmaServiceLevel": "4"}),
    ("rdma_traffic_class", None, 132, {"llm.RdmaTrafficClass": "132"}),
    ("transfer_backend", "", "hixl", {"llm.TransferBackend": "hixl"}),
]


@pytest.mark.parametrize(("name", "default", "value", "options"), REMOTE, ids=[name for name, *_ in REMOTE])
def test_settings_for_other_machines(
    name: str, default: object, value: object, options: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """They can be read and assigned. Without an effect, another value than the default is logged, and only once."""
    warn_once.cache_clear()
    config = LLMConfig()
    assert getattr(config, name) == default
    setattr(config, name, default)
    setattr(config, name, None if name != "ge_options" else {})
    assert config == LLMConfig() and not caplog.records
    for _ in range(2):
        setattr(config, name, value)
    assert getattr(config, name) == value
    assert config.generate_options() == options
    assert LLMConfig.from_options(options) == config
    assert [record.levelname for record in caplog.records] == ([] if name in LINKING else ["WARNING"])
    assert all(f"option {next(iter(options))}" in record.getMessage() for record in caplog.records)
    assert all("has no effect here" in record.getMessage() for record in caplog.records)


def test_every_setting_is_tested() -> None:
    local = ["sync_kv_timeout", "device_id", "enable_cache_manager", "local_comm_res"]
    local += ["mem_pool_cfg", "host_mem_pool_cfg"]
    assert {*SETTINGS, "ge_options"} == {name for name, *_ in REMOTE} | set(local)
    assert {name for name, setting in SETTINGS.items() if setting.local} == {*local, *LINKING}


@pytest.mark.parametrize(
    ("option", "text"),
    [
        *(("llm.LinkRetryCount", text) for text in ("x", "101")),
        *(("llm.EnableSwitchRole", "True"), ("llm.MemoryUtilization", "x"), ("ge.flowGraphMemMaxSize", "1,2")),
        *(("ge.exec.deviceId", text) for text in ("", "0;1", "-1", "x")),
    ],
)
def test_options_that_are_not_allowed(option: str, text: str) -> None:
    refused(INVALID, text, LLMConfig.from_options, {option: text})


def test_the_limit_of_a_changed_dict_is_checked() -> None:
    config = LLMConfig()
    config.ge_options["ge.flowGraphMemMaxSize"] = "12 MB"
    refused(INVALID, "must be a string of digits", config.memory_limits)


def test_unknown_setting() -> None:
    with pytest.raises(AttributeError, match="LLMConfig has no setting 'sync_timeout'"):
        LLMConfig().sync_timeout = 1
