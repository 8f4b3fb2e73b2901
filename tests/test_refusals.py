# SPDX-License-Identifier: Apache-2.0
"""Calls that are refused: nothing is written, and the message names the op, the argument, its value and the rule.

See test_copies_argument.py for the copies argument, and test_properties.py for random calls.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from utils import cache, copy_cache, copy_cache_batch, filled, nothing_written, shrunk, table

from llm_datadist_torch import Cache, CacheManager, LLMException, LLMStatusCode

Calls = dict[str, tuple[Any, ...]]
BIG = 2**63 - 1


def refused_by_all(d: str) -> Calls:
    """Calls on a device, by the text of their refusal: batch_dim, dst, src and the numbers. Both ops refuse them
    (ValueError), and CacheManager (LLM_PARAM_INVALID, which is a ValueError too)."""

    def one(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [filled(*shape, dtype=dtype, device=d)]

    a, b, c, e = cache(4, 4, 8, device=d)  # rows of 32 bytes
    whole, late, repeated = one(48)[0], one(64)[0][8:40].view(4, 8), one(1, 1)[0].expand(2**40, 2**20, 1, 1)
    late.untyped_storage().resize_(128)
    return {
        # Numbers
        "dst_batch_index (4) out of range [0, 4), the batch of dst[0]": (0, [a], [b], 4),
        "src_batch_index (4) out of range [0, 4), the batch of src[0]": (0, [a], [b], 0, 4),
        "offset (32) out of range [0, 32), the bytes of a row of dst[0]": (0, [a], [b], 0, 0, 32),
        f"offset ({BIG}) out of range [0, 32), the bytes of a row of dst[0]": (0, [a], [b], 0, 0, BIG, BIG),
        "size (0) must be greater than 0, or -1 for the rest of the row": (0, [a], [b], 0, 0, 0, 0),
        f"size ({-BIG - 1}) must be greater than 0, or -1 for the rest of the row": (0, [a], [b], 0, 0, 0, -BIG - 1),
        "offset (8) plus size (25) runs past the row of dst[0], 32 bytes": (0, [a], [b], 0, 0, 8, 25),
        "offset (8) plus size (9) runs past the row of src[0], 16 bytes": (0, [a], one(4, 4), 0, 0, 8, 9),
        "size (-1) means the 44 bytes of the row of src[0] from offset (4), which runs past the row of dst[0], 32": (
            *(0, [a], one(4, 12)),
            *(0, 0, 4),
        ),
        # Lists
        "expected dst and src to hold the same number of tensors, got 2 and 3": (0, [a, b], [b, c, a]),
        "expected src[0] to have the dtype of dst[0], Float, got Int": (0, [a], one(4, 8, dtype=torch.int32)),
        # Tensors
        "expected the rows of dst[0] to be dense (each one contiguous range of bytes), got shape [4, 4], strides [8, 2]": (
            *(0, [a[:, ::2]], [b]),
        ),
        "expected the rows of dst[0] to be at least 32 bytes (one row) apart, got 4": (
            *(0, [whole.as_strided((4, 8), (1, 1))], [b]),
        ),
        "expected dst[0] to lie inside its storage of 64 bytes, got shape [4, 8]": (0, [shrunk(d)], [b]),
        "expected src[1] to lie inside its storage of 64 bytes": (0, [a, b], [c, shrunk(d)]),
        "to lie inside its storage of 128 bytes, got shape [4, 8], strides [8, 1], storage offset 8": (0, [late], [b]),
        "dst[0] requires grad, and its gradient would be lost": (0, [e.requires_grad_()], [b]),
        # Dimensions before the batch
        "expected the sizes before batch_dim (1) to be the same, got [3, 4, 8] for dst[0] and [2, 4, 8] for src[0]": (
            *(1, one(3, 4, 8), one(2, 4, 8)),
        ),
        "ranges of dst[0] overlap one another: got shape [3, 4, 8], strides [0, 8, 1]": (
            *(1, [a.expand(3, 4, 8)], one(3, 4, 8)),
        ),
        "ranges of dst[0] overlap one another: got shape [1099511627776, ": (2, [repeated], [repeated]),
        # Lists that overlap
        " into dst[2] write the same bytes: the result would depend on the order of the copies": (
            *(0, [a, b, a], [b, c, c]),
        ),
        " into dst[1] write the same bytes": (*(0, [whole[:32].view(4, 8), whole[4:36].view(4, 8)], [a, b]),),
    }


def refused_by_the_ops(d: str) -> Calls:
    """Calls that cannot be made with a Cache."""
    a, b, c = cache(3, 4, 8, device=d)
    whole_numbers = filled(4, 8, dtype=torch.int32, device=d)
    short, on_meta = filled(2, 8, device=d), torch.empty(4, 8, device="meta")
    jagged = torch.nested.nested_tensor(cache(2, 4, 8), layout=torch.jagged)
    return {
        "dst_batch_index (-1) out of range [0, 4), the batch of dst[0]": (0, [a], [b], -1),
        "offset (-1) out of range [0, 32), the bytes of a row of dst[0]": (0, [a], [b], 0, 0, -1),
        "batch_dim (2) out of range [0, 2), the dimensions of dst[0]": (2, [a], [b]),
        "batch_dim (0) out of range [0, 0), the dimensions of src[0]": (0, [a[0]], [a[0, 0]]),
        "expected dst and src to hold at least one tensor, got empty lists": (0, [], []),
        "expected dst[0] not to be empty, got shape [0, 8]": (0, [a[:0]], [b]),
        "dst_batch_index (2) out of range [0, 2), the batch of dst[1]": (0, [a, short], [b, c], 2),
        "src_batch_index (2) out of range [0, 2), the batch of src[1]": (0, [b, c], [a, short], 0, 2),
        "expected src[1] to have the dtype of dst[1], Float, got Int": (0, [a, b], [c, whole_numbers]),
        "expected dst and src to be both meta tensors, got meta and ": (0, [on_meta], [a]),
        "expected src[1] to be on the device of src[0], ": (0, [a, b], [c, on_meta]),
        "expected src[0] to have the strided layout, got Sparse": (0, [filled(4, 8)], [filled(4, 8).to_sparse()]),
        "expected src[0] to have the strided layout, got Mkldnn": (0, [filled(4, 8)], [filled(4, 8).to_mkldnn()]),
        "expected dst[0] to have the strided layout, got Jagged": (0, [jagged], [jagged]),
    }


def numbers_of(given: tuple[int, ...]) -> tuple[int, ...]:
    return (*given, *(0, 0, 0, -1)[len(given) :])


@pytest.mark.parametrize("text", [*refused_by_all("cpu"), *refused_by_the_ops("cpu")])
def test_ops(text: str, device: str) -> None:
    batch_dim, dst, src, *numbers = {**refused_by_all(device), **refused_by_the_ops(device)}[text]
    real = [t for t in dst + src if t.layout == torch.strided and not t.is_meta]
    copies = table([numbers_of(numbers)])
    for op, call in (
        ("copy_cache", lambda: copy_cache(dst, src, *numbers_of(numbers), -1, batch_dim=batch_dim)),
        ("copy_cache_batch", lambda: copy_cache_batch(dst, src, copies, -1, batch_dim=batch_dim)),
    ):
        with nothing_written(*real), pytest.raises(ValueError) as refusal:
            call()
        message = str(refusal.value)
        assert message.startswith(f"{op}: ")
        assert text in message
        assert message.endswith(" (req_id 18446744073709551615)") or any(t.is_meta for t in dst + src)


@pytest.mark.parametrize("text", refused_by_all("cpu"))
def test_manager(text: str, device: str) -> None:
    batch_dim, *call = refused_by_all(device)[text]
    dst, src = (Cache.from_tensors(tensors, batch_dim=batch_dim) for tensors in call[:2])
    with nothing_written(*dst.tensors, *src.tensors), pytest.raises(LLMException) as refusal:
        CacheManager().copy_cache(dst, src, *call[2:])
    # The manager compares the numbers of tensors first.
    assert ("must have the same num_tensors, got num_tensors 2 and 3" if "same number" in text else text) in str(
        refusal.value
    )
    assert refusal.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    assert isinstance(refusal.value, ValueError)


def test_wrapper_subclass_without_memory() -> None:
    """Its storage has a size but no address. Other subclasses unwrap themselves first."""

    class Wrapper(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func: Callable, types: object, args: tuple = (), kwargs: object = None) -> object:
            with torch._C._DisableTorchDispatch():
                return func(*args, **(kwargs or {}))

    wrapper = torch.Tensor._make_wrapper_subclass(Wrapper, (4, 8))
    for dst, src, name in ((wrapper, filled(4, 8), "dst"), (filled(4, 8), wrapper, "src")):
        with pytest.raises(ValueError, match=rf"copy_cache: expected {name}\[0\] to have memory"):
            copy_cache([dst], [src], 1, 2)


def test_zero_tensor() -> None:
    """Autograd's zeros have no memory."""
    dst, zeros = filled(4, 8), torch._efficientzerotensor(4, 8)
    with nothing_written(dst), pytest.raises(ValueError, match=r"src\[0\] .* strides \[0, 0\].* or a ZeroTensor"):
        copy_cache([dst], [zeros], 1, 2)
    with pytest.raises(RuntimeError, match="ZeroTensors are immutable"):
        copy_cache([zeros], [dst], 1, 2)


def test_tensors_without_a_kernel() -> None:
    quantized = torch._empty_affine_quantized([4, 8], scale=1.0, zero_point=0, dtype=torch.quint8)
    nested = torch.nested.nested_tensor(cache(2, 4, 8))
    for tensor, key in ((quantized, "QuantizedCPU"), (nested, "NestedTensorCPU")):
        text = rf"copy_cache: no kernel for {key} and {key} tensors .*\(req_id 7\)"
        with pytest.raises(NotImplementedError, match=text):
            copy_cache([tensor], [tensor], 1, req_id=7)
    held = Cache([quantized], Cache.from_tensors(filled(4, 8)).cache_desc, 0, False)
    with pytest.raises(LLMException, match="copy_cache: no kernel for QuantizedCPU") as failure:
        CacheManager().copy_cache(held, held)
    assert failure.value.status_code is LLMStatusCode.LLM_FAILED
    assert isinstance(failure.value.__cause__, NotImplementedError)


@pytest.mark.parametrize("position", range(5), ids=["dst_batch_index", "src_batch_index", "offset", "size", "req_id"])
def test_wrong_types_of_numbers(position: int) -> None:
    dst, src = cache(1, 4, 8), cache(1, 4, 8, seed=1)
    for wrong in ("1", 1.5, [1], 2**63, -(2**63) - 1, *([None] if position < 4 else [])):
        args: list[object] = [0, 0, 0, -1, 0]
        args[position] = wrong
        with nothing_written(*dst), pytest.raises((TypeError, RuntimeError, OverflowError)):
            copy_cache(dst, src, *args)


@pytest.mark.parametrize("wrong", [None, 1, "cache", [None], [1]], ids=repr)
def test_wrong_types_of_lists(wrong: object) -> None:
    for args in ((wrong, cache(1, 4, 8)), (cache(1, 4, 8), wrong)):
        with pytest.raises((TypeError, RuntimeError), match="copy_cache"):
            copy_cache(*args)
