# SPDX-License-Identifier: Apache-2.0
"""LLMDataDist: its lifetime, its manager, and the calls that it refuses."""

import logging
import weakref
from collections.abc import Iterator

import pytest
import torch
from utils import cache, free_port, refused

from llm_datadist_torch import (
    Cache,
    CacheDesc,
    CacheKey,
    CacheManager,
    DataType,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    Placement,
)
from llm_datadist_torch.datadist.log import warn_once

DESC = CacheDesc(2, (4, 8), DataType.DT_FLOAT, Placement.HOST)
OPTIONS = LLMConfig(enable_cache_manager=True).generate_options()
INVALID = LLMStatusCode.LLM_PARAM_INVALID


@pytest.fixture
def datadist() -> Iterator[LLMDataDist]:
    made = LLMDataDist(LLMRole.PROMPT, 0)
    yield made
    made.finalize()


def test_roles() -> None:
    assert {role.name: role.value for role in LLMRole} == {"PROMPT": 1, "DECODER": 2, "MIX": 3}


def test_before_init_and_after_finalize(datadist: LLMDataDist) -> None:
    with pytest.raises(RuntimeError, match="not initialised"):
        _ = datadist.cache_manager
    datadist.finalize()  # no effect
    datadist.init(OPTIONS)
    manager = datadist.cache_manager
    datadist.init({})  # no effect
    assert isinstance(manager, CacheManager) and datadist.cache_manager is manager
    held = manager.allocate_cache(DESC)
    datadist.finalize()
    datadist.finalize()
    with pytest.raises(RuntimeError, match="not initialised"):
        _ = datadist.cache_manager
    assert not held.tensors
    datadist.init(OPTIONS)
    assert datadist.cache_manager is not manager
    assert datadist.cache_manager.allocate_cache(DESC).cache_id == 1


def test_every_call_after_finalize(datadist: LLMDataDist) -> None:
    datadist.init(OPTIONS)
    manager, other = datadist.cache_manager, CacheManager()
    caches = [(m.allocate_cache(DESC, [CacheKey(0, 1)]), m.allocate_blocks_cache(DESC)) for m in (manager, other)]
    datadist.finalize()
    for plain, blocks in caches:  # its own caches, which have ended, and those of another manager
        for call, *args in (
            (manager.copy_cache, plain, plain, 0, 1),
            (manager.copy_blocks, blocks, {0: [1]}),
            (manager.swap_blocks, blocks, blocks, {0: 1}),
            (manager.allocate_cache, DESC),
            (manager.allocate_blocks_cache, DESC),
            (manager.register_cache, DESC, cache(2, 4, 8)),
            (manager.register_blocks_cache, DESC, cache(2, 4, 8)),
        ):
            refused(LLMStatusCode.LLM_ENGINE_FINALIZED, f"{call.__name__}: the manager is finalized", call, *args)
        manager.deallocate_cache(plain)  # no effect from here on
        manager.deallocate_blocks_cache(blocks)
        manager.unregister_cache(plain.cache_id)
        manager.remove_cache_key(CacheKey(0, 1))


def test_only_one_is_initialised_at_a_time(datadist: LLMDataDist) -> None:
    datadist.init(OPTIONS)
    second = LLMDataDist(LLMRole.DECODER, 1)
    refused(LLMStatusCode.LLM_FAILED, "another LLMDataDist is initialised", second.init, OPTIONS)
    second.finalize()  # no effect: the other one is initialised
    assert datadist.cache_manager
    datadist.finalize()
    second.init(OPTIONS)
    second.finalize()


def test_dropped_without_finalize() -> None:
    """The next one can be initialised, and listen at the same address. A manager that is still there works on."""
    config = LLMConfig(enable_cache_manager=True)
    config.listen_ip_info = f"127.0.0.1:{free_port()}"
    for _ in range(20):
        made = LLMDataDist(LLMRole.PROMPT, 0)
        made.init(config.generate_options())
        manager, alive = made.cache_manager, weakref.ref(made)
        del made
        assert alive() is None
        manager.allocate_cache(DESC)
        del manager


@pytest.mark.parametrize("options", [{}, {"llm.EnableCacheManager": "0"}])
def test_manager_is_not_enabled(datadist: LLMDataDist, options: dict[str, str]) -> None:
    datadist.init(options)
    text = "not enabled: set LLMConfig.enable_cache_manager to True, or LLMConfig.local_comm_res to any string"
    refused(INVALID, text.partition(": ")[0], lambda: datadist.cache_manager)
    refused(INVALID, text.partition(": ")[2], lambda: datadist.cache_manager)


@pytest.mark.parametrize("value", ["", '{"version": "1.3"}'])
def test_local_comm_res_enables_the_manager(datadist: LLMDataDist, value: str) -> None:
    """Any value of it: many scripts have no other switch."""
    config = LLMConfig()
    assert config.local_comm_res == ""
    config.local_comm_res = value
    assert config.enable_cache_manager is False
    assert config.generate_options() == {"llm.LocalCommRes": value}
    datadist.init(config.generate_options())
    assert datadist.cache_manager.allocate_cache(DESC).cache_id == 1


def test_listening_enables_the_manager(datadist: LLMDataDist) -> None:
    address = f"127.0.0.1:{free_port()}"
    datadist.init({"llm.listenIpInfo": address, "llm.EnableCacheManager": "0"})
    refused(INVALID, "not enabled", lambda: datadist.cache_manager)
    datadist.finalize()
    datadist.init({"llm.listenIpInfo": address})
    assert datadist.cache_manager.allocate_cache(DESC).cache_id == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"llm.EnableCacheManager": "yes"}, "llm.EnableCacheManager ('yes') must be 0 or 1"),
        ({"llm.LocalCommRes": "", "llm.EnableCacheManager": "0"}, "enable_cache_manager (False) must be True"),
    ],
)
def test_refused_options_initialise_nothing(datadist: LLMDataDist, options: dict[str, str], text: str) -> None:
    refused(INVALID, text, datadist.init, options)
    datadist.init(OPTIONS)
    assert datadist.cache_manager


def test_wrong_types(datadist: LLMDataDist) -> None:
    for args in ((1, 0), (LLMRole.MIX, "0"), (LLMRole.MIX, True)):
        with pytest.raises(TypeError):
            LLMDataDist(*args)
    with pytest.raises(ValueError, match="cluster_id"):
        LLMDataDist(LLMRole.MIX, 2**64)
    for options in (None, [], {"llm.EnableCacheManager": 1}, {1: "1"}):
        with pytest.raises(TypeError, match="init: "):
            datadist.init(options)


def test_options_without_effect_are_logged_once(datadist: LLMDataDist, caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    for _ in range(2):
        datadist.init(OPTIONS | {"llm.BufPoolCfg": "{}", "ge.exec.rankId": "0", "llm.SyncKvCacheWaitTimes": "9"})
        datadist.finalize()
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "option ge.exec.rankId has no effect here",
        "option llm.SyncKvCacheWaitTimes is unknown, and has no effect",
        "buf_pool_cfg (option llm.BufPoolCfg) has no effect here",
    ]


def test_calls_that_cannot_be_served(datadist: LLMDataDist) -> None:
    """They say what to use instead."""
    remap = CacheManager().remap_registered_memory
    refused(LLMStatusCode.LLM_FEATURE_NOT_ENABLED, "register the memory anew", remap, 1, 2)
    with pytest.raises(LLMException, match=r"^remap_registered_memory "):
        remap(anything=1)
    for target, name, instead in (
        (datadist, "kv_cache_manager", "use cache_manager"),
        (Cache.from_tensors(torch.ones(1)), "per_device_tensor_addrs", "use tensor_addrs"),
    ):
        refused(LLMStatusCode.LLM_FEATURE_NOT_ENABLED, instead, getattr, target, name)
