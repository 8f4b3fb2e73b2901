# SPDX-License-Identifier: Apache-2.0
"""Cache.from_tensors holds views of one storage at equal distances as one stacked tensor. See test_compile.py too."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from utils import assert_same_bytes, cache, filled, nothing_written, reference_copy

from llm_datadist_torch import Cache, CacheDesc, CacheManager, DataType, Placement, copy_cache

Make = Callable[[str, int], list[Tensor]]  # from device and seed


def contiguous_layers(device: str, seed: int) -> list[Tensor]:
    return list(filled(5, 4, 8, device=device, seed=seed).unbind(0))


def layers_inside_of_tokens(device: str, seed: int) -> list[Tensor]:
    """Layers that interleave: [batch, layers, width]."""
    return list(filled(4, 5, 8, device=device, seed=seed).unbind(1))


def keys_of_keys_and_values(device: str, seed: int) -> list[Tensor]:
    """Every second tensor, and not from the first one on: [layers, keys and values, batch, width]."""
    return list(filled(5, 2, 4, 8, device=device, seed=seed)[:, 1].unbind(0))


def tensors_of_their_own(device: str, seed: int) -> list[Tensor]:
    return cache(5, 4, 8, device=device, seed=seed)


LAYOUTS = [contiguous_layers, layers_inside_of_tokens, keys_of_keys_and_values]


@pytest.mark.parametrize("views", LAYOUTS)
def test_one_tensor(device: str, views: Make) -> None:
    given = views(device, 0)
    held = Cache.from_tensors(given)
    assert held.cache_desc.num_tensors == 5
    assert held.cache_desc.dims == (4, 8)
    [stack] = held.tensors
    assert held.batch_dim == 1
    assert [t.data_ptr() for t in stack.unbind(0)] == [t.data_ptr() for t in given] == held.tensor_addrs
    assert all(mine is theirs for mine, theirs in zip(held.unstacked, given, strict=True))


@pytest.mark.parametrize("views", LAYOUTS)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda held: pickle.loads(pickle.dumps(held))])
def test_copies_of_the_cache(views: Make, copied: Callable[[Cache], Cache]) -> None:
    """In a copy too, the stack and the views are the same memory."""
    given = views("cpu", 0)
    held = copied(Cache.from_tensors(given))
    assert_same_bytes(held.unstacked, given)
    held.tensors[0].zero_()
    assert not any(view.any() for view in held.unstacked)


@pytest.mark.parametrize("views", LAYOUTS)
@pytest.mark.parametrize("source", [*LAYOUTS, tensors_of_their_own])
def test_manager(device: str, views: Make, source: Make) -> None:
    dst, src = views(device, 0), source(device, 1)
    expected = reference_copy(dst, src, 3, 1, 5, 9)
    CacheManager().copy_cache(Cache.from_tensors(dst), Cache.from_tensors(src), 3, 1, 5, 9)
    assert_same_bytes(dst, expected)


def test_registered_tensors(device: str) -> None:
    given = contiguous_layers(device, 0)
    placement = Placement.HOST if device == "cpu" else Placement.DEVICE
    manager, desc = CacheManager(), CacheDesc(5, [4, 8], DataType.DT_FLOAT, placement)
    held = manager.register_cache(desc, given)
    assert len(held.tensors) == 1
    expected = reference_copy(given, given, 0, 1)
    manager.copy_cache(held, held, 0, 1)
    assert_same_bytes(given, expected)
    manager.unregister_cache(held.cache_id)
    assert held.unstacked == held.tensors == []


def test_inference_tensors(device: str) -> None:
    with torch.inference_mode():
        dst, src = contiguous_layers(device, 0), contiguous_layers(device, 1)
        into, out_of = Cache.from_tensors(dst), Cache.from_tensors(src)
        assert len(into.tensors) == 1
        expected = reference_copy(dst, src, 2, 1)
        copy_cache(into.tensors, out_of.tensors, 2, 1, batch_dim=into.batch_dim)
        assert_same_bytes(dst, expected)


def test_version_counters_of_the_views() -> None:
    """Autograd finds out that a saved view was written through the stack."""
    given = contiguous_layers("cpu", 0)
    weight = torch.ones(4, 8, requires_grad=True)
    product = (weight * given[3]).sum()
    held = Cache.from_tensors(given)
    copy_cache(held.tensors, held.tensors, 0, 1, batch_dim=held.batch_dim)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def inference_and_not() -> list[Tensor]:
    whole = filled(2, 4, 8)
    with torch.inference_mode():
        return [whole[0], torch.zeros(4, 8)]


def counters_of_their_own() -> list[Tensor]:
    storage = filled(2, 4, 8).untyped_storage()
    return [torch.empty(0).set_(storage, offset, (4, 8)) for offset in (0, 32)]


@pytest.mark.parametrize(
    "make",
    {
        "tensors of their own": lambda: cache(3, 4, 8),
        "one tensor": lambda: [filled(3, 4, 8)[1]],
        "unequal distances": lambda: (lambda whole: [whole[0], whole[1], whole[3]])(filled(5, 4, 8)),
        "backwards": lambda: list(filled(3, 4, 8).unbind(0))[::-1],
        "rows of other sizes": lambda: (lambda w: [w[:, 0], w[:, 1], w[:, 2, :16]])(filled(4, 3, 64)),
        "one tensor twice": lambda: [filled(4, 8)[:]] * 2,
        "strides that differ": lambda: (lambda w: [w[:16].view(4, 4), w[16:].view(4, 4).t()])(filled(32)),
        "two storages": lambda: [filled(2, 4, 8)[0], filled(2, 4, 8)[1]],
        "a gradient": lambda: list((filled(3, 4, 8).requires_grad_() * 1).unbind(0)),
        "parameters": lambda: [torch.nn.Parameter(t, requires_grad=False) for t in filled(3, 4, 8).unbind(0)],
        "counters of their own": counters_of_their_own,
        "an inference tensor": inference_and_not,
    }.values(),
)
def test_others_stay_apart(make: Callable[[], list[Tensor]]) -> None:
    given = make()
    held = Cache.from_tensors(given)
    assert held.batch_dim == 0
    assert all(mine is theirs for mine, theirs in zip(held.tensors, given, strict=True))


def test_overlapping_views_are_refused_either_way(device: str) -> None:
    whole = filled(32, device=device)
    views = [whole[start : start + 16].view(2, 8) for start in (0, 4)]
    for tensors, batch_dim in ((views, 0), (Cache.from_tensors(views).tensors, 1)):
        with nothing_written(whole), pytest.raises(ValueError, match=r"overlap|write the same bytes"):
            copy_cache(tensors, tensors, 0, 1, batch_dim=batch_dim)
