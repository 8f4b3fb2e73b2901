# SPDX-License-Identifier: Apache-2.0
"""LLMConfig: its settings, their checks, and the options it generates."""

import pytest
import torch

from llm_datadist_torch import LLMConfig, LlmConfig, LLMException, LLMStatusCode


def test_both_spellings() -> None:
    assert LlmConfig is LLMConfig


def test_defaults_generate_no_options() -> None:
    assert LLMConfig().generate_options() == {}


def test_options() -> None:
    config = LLMConfig()
    config.device_id = 3
    config.sync_kv_timeout = "5000"
    config.enable_cache_manager = True
    config.mem_pool_cfg = '{"memory_size": 1048576}'
    config.host_mem_pool_cfg = '{"memory_size": 2097152, "page_shift": 12}'
    assert config.generate_options() == {
        "llm.SyncKvCacheWaitTime": "5000",
        "ge.exec.deviceId": "3",
        "llm.EnableCacheManager": "1",
        "llm.MemPoolConfig": '{"memory_size": 1048576}',
        "llm.HostMemPoolConfig": '{"memory_size": 2097152, "page_shift": 12}',
    }


@pytest.mark.parametrize("value", [1, "1", 2**31 - 1, str(2**31 - 1)])
def test_valid_timeouts(value: int | str) -> None:
    assert LLMConfig(sync_kv_timeout=value).generate_options() == {"llm.SyncKvCacheWaitTime": str(value)}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("sync_kv_timeout", 0, "sync_kv_timeout (0) must be greater than 0"),
        ("sync_kv_timeout", -1, "sync_kv_timeout (-1) must be greater than 0"),
        ("sync_kv_timeout", "0", "sync_kv_timeout ('0') must be greater than 0"),
        ("sync_kv_timeout", "1s", "sync_kv_timeout ('1s') must be an int or a string of digits"),
        ("sync_kv_timeout", "-1", "must be an int or a string of digits"),
        ("sync_kv_timeout", "", "must be an int or a string of digits"),
        ("sync_kv_timeout", "²", "must be an int or a string of digits"),
        ("device_id", -1, "device_id (-1) must not be negative"),
        ("mem_pool_cfg", "1 GB", "mem_pool_cfg ('1 GB') must be JSON"),
        ("mem_pool_cfg", "[1]", 'must be a JSON object with "memory_size"'),
        ("mem_pool_cfg", "{}", 'must be a JSON object with "memory_size"'),
        ("mem_pool_cfg", '{"memory_size": 0}', "memory_size (0) must be an int greater than 0"),
        ("mem_pool_cfg", '{"memory_size": "1"}', "memory_size ('1') must be an int greater than 0"),
        ("mem_pool_cfg", '{"memory_size": 1, "page_shift": 9}', "page_shift (9) must be an int in [10, 31)"),
        ("host_mem_pool_cfg", '{"memory_size": 1, "page_shift": 31}', "page_shift (31) must be an int in [10, 31)"),
    ],
)
def test_invalid_values(name: str, value: object, text: str) -> None:
    config = LLMConfig()
    with pytest.raises(LLMException) as refusal:
        setattr(config, name, value)
    assert text in str(refusal.value)
    assert refusal.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    assert config == LLMConfig()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("sync_kv_timeout", 1.0), ("sync_kv_timeout", True), ("device_id", "0"), ("device_id", True)),
        *(("enable_cache_manager", 1), ("mem_pool_cfg", {}), ("host_mem_pool_cfg", 1)),
    ],
)
def test_wrong_types(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{name} must be"):
        setattr(LLMConfig(), name, value)


@pytest.mark.parametrize(
    ("name", "value"), [("sync_kv_timeout", 2**31), ("sync_kv_timeout", str(2**31)), ("device_id", 2**31)]
)
def test_numbers_outside_their_integer_type(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{name} \(2147483648\) out of range"):
        setattr(LLMConfig(), name, value)


@pytest.mark.parametrize("name", ["mem_pool_cfg", "host_mem_pool_cfg"])
def test_an_empty_pool_is_no_limit(name: str) -> None:
    config = LLMConfig(**{name: ""})
    assert config.memory_sizes() == {}
    assert LLMConfig.from_options(config.generate_options()).memory_sizes() == {}


@pytest.mark.parametrize(
    "name", ["listen_ip_info", "link_retry_count", "rdma_traffic_class", "enable_switch_role", "ge_options"]
)
def test_settings_for_remote_access_can_only_be_disabled(name: str) -> None:
    config = LLMConfig()
    for off in (None, False, ""):
        setattr(config, name, off)
    for on in (0, 1, True, "x", [], torch.zeros(2)):
        with pytest.raises(LLMException, match=f"{name} concerns other machines") as refusal:
            setattr(config, name, on)
        assert refusal.value.status_code is LLMStatusCode.LLM_FEATURE_NOT_ENABLED
    assert config == LLMConfig()


def test_unknown_setting() -> None:
    with pytest.raises(AttributeError, match="LLMConfig has no setting 'sync_timeout'"):
        LLMConfig().sync_timeout = 1
