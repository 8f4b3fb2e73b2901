# SPDX-License-Identifier: Apache-2.0
"""LLM-DataDist's names: the table on the page on moving is up to date, and its submodules can be imported."""

import importlib

import pytest
from fresh_process import run_code
from utils import ROOT

import llm_datadist_torch
from llm_datadist_torch import LLMException, LLMStatusCode, MemInfo, Memtype, RegisterMemStatus, Status


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("", ""),  # the table is up to date
        ("llm_datadist_torch.LLMStatusCode._member_map_['LLM_TIMEOUT']._value_ = 1", "LLM_TIMEOUT"),
        ("del llm_datadist_torch.CacheManager.check_cache_key", "check_cache_key"),
        ("llm_datadist_torch.LLMConfig.link_retry_count.default = 2", "link_retry_count has another default"),
        ("llm_datadist_torch.CacheManager.deallocate_cache = lambda self, held: None", "deallocate_cache takes"),
        ("llm_datadist_torch.CacheManager.copy_cache.__defaults__ = (1, 0, 0, -1, None)", "dst_batch_index"),
    ],
)
def test_a_difference_is_found(change: str, text: str) -> None:
    code = f"""
import os, runpy, sys, llm_datadist_torch
{change}
os.chdir("{ROOT}")
sys.argv = ["compare_api.py", "--check"]
runpy.run_path("tools/compare_api.py", run_name="__main__")
"""
    assert text in run_code(code, exit_code=1 if change else 0).stderr


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("configs", ["LLMClusterInfo", "LLMConfig", "LLMRole", "LlmConfig"]),
        ("data_type", ["DataType"]),
        ("status", ["LLMException", "LLMStatusCode", "Status"]),
        ("v2.llm_types", ["BlocksCacheKey", "Cache", "CacheDesc", "CacheKey", "CacheKeyByIdAndIndex", "Placement"]),
        ("v2.config", ["LLMRole", "LlmConfig"]),
        ("v2.llm_datadist", ["LLMDataDist"]),
        ("v2.cache_manager", ["CacheManager"]),
    ],
)
def test_submodules(module: str, names: list[str]) -> None:
    """They have the objects that the package has, and no copies of them."""
    submodule = importlib.import_module(f"llm_datadist_torch.{module}")
    for name in names:
        assert getattr(submodule, name) is getattr(llm_datadist_torch, name)


@pytest.mark.parametrize("name", ["KvCache", "KvCacheManager", "Tensor", "TensorDesc"])
def test_names_for_imports_alone(name: str) -> None:
    with pytest.raises(LLMException, match=f"{name} is not there: use ") as refusal:
        getattr(llm_datadist_torch, name)(1, a=2)
    assert refusal.value.status_code is LLMStatusCode.LLM_FEATURE_NOT_ENABLED


def test_the_small_types() -> None:
    memory = MemInfo(Memtype.MEM_TYPE_HOST, 8, 2)
    assert (memory.mem_type, memory.addr, memory.size) == (Memtype.MEM_TYPE_HOST, 8, 2)
    with pytest.raises(TypeError, match="mem_type"):
        MemInfo(1, 8, 2)
    assert Status(LLMStatusCode.LLM_SUCCESS).is_ok()
    assert not Status(LLMStatusCode.LLM_TIMEOUT).is_ok()
    assert [status.value for status in RegisterMemStatus] == [0, 1, 2]


@pytest.mark.parametrize("name", ["KvcacheManager", "Misspelt"])
def test_a_name_that_is_not_there_is_an_import_error(name: str) -> None:
    with pytest.raises(ImportError, match=f"cannot import name '{name}'"):
        exec(f"from llm_datadist_torch import {name}")
