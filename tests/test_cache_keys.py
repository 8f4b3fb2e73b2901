# SPDX-License-Identifier: Apache-2.0
"""Keys of caches: their arguments, by position and by keyword, and what is refused."""

import pickle
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import pytest
from utils import refused

from llm_datadist_torch import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex, CacheManager, LLMException, LLMStatusCode

Make = Callable[..., Any]
INVALID = LLMStatusCode.LLM_PARAM_INVALID
KINDS = pytest.mark.parametrize("make", [CacheKey, BlocksCacheKey, CacheKeyByIdAndIndex])


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (CacheKey(1, 2), (1, 2, 0, 2**64 - 1)),
        (CacheKey(1, 2, 3, 4), (1, 2, 3, 4)),
        (CacheKey(prompt_cluster_id=1, req_id=2, model_id=3), (1, 2, 3, 2**64 - 1)),
        (CacheKey(1, req_id=2**64 - 1, prefix_id=4), (1, 2**64 - 1, 0, 4)),
        (BlocksCacheKey(1), (1, 0)),
        (BlocksCacheKey(prompt_cluster_id=1, model_id=2), (1, 2)),
        (CacheKeyByIdAndIndex(1, 2), (1, 2, 0)),
        (CacheKeyByIdAndIndex(cluster_id=1, cache_id=-1, batch_index=2**32 - 1), (1, -1, 2**32 - 1)),
    ],
)
def test_values(key: Any, expected: tuple[int, ...]) -> None:
    assert tuple(vars(key).values()) == expected
    assert key.cluster_id == 1
    assert isinstance(key, CacheKeyByIdAndIndex) or key.prompt_cluster_id == 1
    assert pickle.loads(pickle.dumps(key)) == key


def test_int_subclasses_are_ints() -> None:
    number = IntEnum("number", {"THREE": 3})
    assert CacheKey(number.THREE, number.THREE) == CacheKey(3, 3)
    assert BlocksCacheKey(number.THREE) == BlocksCacheKey(3)
    assert CacheKeyByIdAndIndex(*[number.THREE] * 3) == CacheKeyByIdAndIndex(3, 3, 3)
    assert type(CacheKey(number.THREE, 1).cluster_id) is int


def test_check_cache_key() -> None:
    CacheManager.check_cache_key(CacheKey(0, 1))
    CacheManager.check_cache_key(CacheKey(0, 2**64 - 1, prefix_id=1))
    for key in (CacheKey(0, 2**64 - 1), CacheKey(0, 1, prefix_id=1)):
        refused(INVALID, "must have either a req_id or a prefix_id", CacheManager.check_cache_key, key)
    with pytest.raises(TypeError, match="check_cache_key: cache_key must be CacheKey, got BlocksCacheKey"):
        CacheManager.check_cache_key(BlocksCacheKey(0))


def test_keys_compare_by_value() -> None:
    assert len({CacheKey(1, 2), CacheKey(prompt_cluster_id=1, req_id=2), CacheKey(1, 3), BlocksCacheKey(1, 2)}) == 3
    with pytest.raises(AttributeError):
        CacheKey(1, 2).req_id = 3


@KINDS
@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, "cluster_id is required"),
        ((1, 2), {"unknown": 1}, "got unknown"),
        ((1, 2, 3, 4, 5), {}, "arguments, got 5"),
        ((1,), {"cluster_id": 2}, "got cluster_id"),
    ],
)
def test_missing_or_unknown_arguments(make: Make, args: Any, kwargs: Any, text: str) -> None:
    refused(INVALID, text if "required" in text else "Unsupported: ", make, *args, **kwargs)
    refused(INVALID, text, make, *args, **kwargs)


def test_second_argument_is_required() -> None:
    refused(INVALID, "req_id is required", CacheKey, 1)
    refused(INVALID, "cache_id is required", CacheKeyByIdAndIndex, 1)


@KINDS
@pytest.mark.parametrize("wrong", ["1", 1.0, True, None])
def test_wrong_types(make: Make, wrong: object) -> None:
    for args in ((wrong, 1), (1, wrong)):
        with pytest.raises(TypeError, match="only support int"):
            make(*args)


@pytest.mark.parametrize(
    ("make", "limits"),
    [
        (CacheKey, [(0, 2**64 - 1)] * 4),
        (BlocksCacheKey, [(0, 2**64 - 1)] * 2),
        (CacheKeyByIdAndIndex, [(0, 2**64 - 1), (-(2**63), 2**63 - 1), (0, 2**32 - 1)]),
    ],
)
def test_numbers_outside_their_type(make: Make, limits: list[tuple[int, int]]) -> None:
    for place, (low, high) in enumerate(limits):
        for number in (low, high, low - 1, high + 1):
            args = [1] * len(limits)
            args[place] = number
            if low <= number <= high:
                assert tuple(vars(make(*args)).values())[place] == number
            else:
                with pytest.raises(ValueError, match="out of range") as refusal:
                    make(*args)
                assert not isinstance(refusal.value, LLMException)
