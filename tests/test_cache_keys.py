# SPDX-License-Identifier: Apache-2.0
"""Keys of caches: their arguments, by position and by keyword, and what is refused."""

import pickle
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import pytest

from llm_datadist_torch import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex, CacheManager, LLMException, LLMStatusCode

Make = Callable[..., Any]


def values(key: Any) -> tuple[int, ...]:
    return tuple(vars(key).values())


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
    assert values(key) == expected
    assert key.cluster_id == 1
    assert pickle.loads(pickle.dumps(key)) == key


@pytest.mark.parametrize("key", [CacheKey(5, 6), BlocksCacheKey(5)])
def test_prompt_cluster_id_is_an_alias(key: Any) -> None:
    assert key.prompt_cluster_id == 5


class Id(IntEnum):
    FIRST = 3


class Count(int):
    pass


def test_int_subclasses_are_ints() -> None:
    assert CacheKey(Id.FIRST, Count(4)) == CacheKey(3, 4)
    assert BlocksCacheKey(Count(3)) == BlocksCacheKey(Id.FIRST)
    assert CacheKeyByIdAndIndex(Id.FIRST, Count(4), Id.FIRST) == CacheKeyByIdAndIndex(3, 4, 3)
    assert type(CacheKey(Id.FIRST, 1).cluster_id) is int


def test_check_cache_key() -> None:
    CacheManager.check_cache_key(CacheKey(0, 1))
    CacheManager.check_cache_key(CacheKey(0, 2**64 - 1, prefix_id=1))
    for key in (CacheKey(0, 2**64 - 1), CacheKey(0, 1, prefix_id=1)):
        with pytest.raises(LLMException, match="must have either a req_id or a prefix_id") as refusal:
            CacheManager.check_cache_key(key)
        assert refusal.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    with pytest.raises(TypeError, match="check_cache_key: cache_key must be CacheKey, got BlocksCacheKey"):
        CacheManager.check_cache_key(BlocksCacheKey(0))


def test_keys_compare_by_value() -> None:
    assert CacheKey(1, 2) == CacheKey(prompt_cluster_id=1, req_id=2)
    assert len({CacheKey(1, 2), CacheKey(1, 2), CacheKey(1, 3), BlocksCacheKey(1, 2)}) == 3
    with pytest.raises(AttributeError):
        CacheKey(1, 2).req_id = 3


@pytest.mark.parametrize("make", [CacheKey, BlocksCacheKey, CacheKeyByIdAndIndex])
@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, "cluster_id is required"),
        ((1, 2), {"unknown": 1}, "Unsupported: .* got unknown"),
        ((1, 2, 3, 4, 5), {}, "Unsupported: .* takes . arguments, got 5"),
        ((1,), {"cluster_id": 2}, "Unsupported: .* got cluster_id"),
    ],
)
def test_missing_or_unknown_arguments(make: Make, args: Any, kwargs: Any, text: str) -> None:
    with pytest.raises(LLMException, match=text) as refusal:
        make(*args, **kwargs)
    assert refusal.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


@pytest.mark.parametrize(("make", "name"), [(CacheKey, "req_id"), (CacheKeyByIdAndIndex, "cache_id")])
def test_second_argument_is_required(make: Make, name: str) -> None:
    with pytest.raises(LLMException, match=f"{name} is required"):
        make(1)


@pytest.mark.parametrize("make", [CacheKey, BlocksCacheKey, CacheKeyByIdAndIndex])
@pytest.mark.parametrize("wrong", ["1", 1.0, True, None])
@pytest.mark.parametrize("place", [0, 1])
def test_wrong_types(make: Make, wrong: object, place: int) -> None:
    args: list[object] = [1, 1]
    args[place] = wrong
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
        for number in (low, high):
            args = [1] * len(limits)
            args[place] = number
            assert values(make(*args))[place] == number
        for number in (low - 1, high + 1):
            args[place] = number
            with pytest.raises(ValueError, match="out of range") as refusal:
                make(*args)
            assert not isinstance(refusal.value, LLMException)
