# SPDX-License-Identifier: Apache-2.0
"""Calls that are refused: nothing is written, and the message names the op, the argument, its value and the rule.

Each call of REFUSED runs through both ops (ValueError) and through CacheManager (LLM_PARAM_INVALID, which is a
ValueError too). All three give the same text. Those of OP_ONLY cannot be made with a Cache.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from utils import cache, copy_cache, copy_cache_batch, filled, nothing_written, shrunk, table

from llm_datadist_torch import Cache, CacheManager, LLMException, LLMStatusCode

Tensors = list[Tensor]
Make = Callable[[str], Tensor]  # from the device


@dataclass
class Refused:
    """A call, and the text of its refusal. The default tensors are [4, 8] float32 (rows of 32 bytes)."""

    text: str
    numbers: tuple[int, ...]
    make: Callable[[str], tuple[Tensors, Tensors]]
    batch_dim: int
    batch_text: str
    manager_text: str


def of(*shape: int, dtype: torch.dtype = torch.float32) -> Make:
    return lambda d: filled(*shape, dtype=dtype, device=d)


def refused(
    text: str,
    *numbers: int,
    dst: Make | None = None,
    src: Make | None = None,
    make: Callable[[str], tuple[Tensors, Tensors]] | None = None,
    batch_dim: int = 0,
    batch: str = "",
    manager: str = "",
) -> Refused:
    """One tensor on each side, dst and src, or two lists.

    Args:
        batch: The text of copy_cache_batch where it is another one.
        manager: The text of CacheManager where it checks first.
    """
    make = make or (lambda d: ([(dst or of(4, 8))(d)], [(src or of(4, 8))(d)]))
    return Refused(text, (*numbers, *(0, 0, 0, -1)[len(numbers) :]), make, batch_dim, batch or text, manager or text)


def shifted(begin: int, nbytes: int) -> Make:
    """A tensor from this element on, in a storage that was resized to so many bytes later."""

    def make(d: str) -> Tensor:
        buffer = filled(64, device=d)
        view = buffer[begin : begin + 32].view(4, 8)
        buffer.untyped_storage().resize_(nbytes)
        return view

    return make


def chosen(dst: list[int], src: list[int]) -> Callable[[str], tuple[Tensors, Tensors]]:
    """Lists with these tensors of four."""

    def make(d: str) -> tuple[Tensors, Tensors]:
        tensors = cache(4, 4, 8, device=d)
        return [tensors[i] for i in dst], [tensors[i] for i in src]

    return make


TWICE = "write the same bytes: the result would depend on the order"
REFUSED = {
    # Numbers
    "dst index": refused("dst_batch_index (4) out of range [0, 4), the batch of dst[0]", 4),
    "src index": refused("src_batch_index (4) out of range [0, 4), the batch of src[0]", 0, 4),
    "offset": refused("offset (32) out of range [0, 32), the bytes of a row of dst[0]", 0, 0, 32),
    "offset and size huge": refused(f"offset ({2**63 - 1}) out of range [0, 32)", 0, 0, 2**63 - 1, 2**63 - 1),
    "size 0": refused("size (0) must be greater than 0, or -1 for the rest of the row", 0, 0, 0, 0),
    "size lowest": refused(f"size ({-(2**63)}) must be greater than 0, or -1", 0, 0, 0, -(2**63)),
    "size one too much": refused("offset (8) plus size (25) runs past the row of dst[0], 32 bytes", 0, 0, 8, 25),
    "size huge": refused(f"offset (8) plus size ({2**63 - 1}) runs past the row of dst[0]", 0, 0, 8, 2**63 - 1),
    "offset beyond the rows of src": refused(
        "offset (16) out of range [0, 16), the bytes of a row of src[0]", 0, 0, 16, src=of(4, 4)
    ),
    "size beyond the rows of src": refused(
        "offset (8) plus size (9) runs past the row of src[0], 16 bytes", 0, 0, 8, 9, src=of(4, 4)
    ),
    "the rest of a longer src row": refused(
        "size (-1) means the 44 bytes of the row of src[0] from offset (4), which runs past the row of dst[0], 32 bytes",
        *(0, 0, 4),
        src=of(4, 12),
    ),
    # Lists
    "different number of tensors": refused(
        "expected dst and src to hold the same number of tensors, got 2 and 3",
        make=chosen([0, 1], [1, 2, 3]),
        manager="dst and src must have the same num_tensors, got num_tensors 2 and 3",
    ),
    "different dtypes": refused(
        "expected src[0] to have the dtype of dst[0], Float, got Int", src=of(4, 8, dtype=torch.int32)
    ),
    # Tensors
    "rows not dense": refused(
        "expected the rows of dst[0] to be dense (each one contiguous range of bytes), got shape [4, 4], strides [8, 2]",
        dst=lambda d: filled(4, 8, device=d)[:, ::2],
    ),
    "rows of src not dense": refused(
        "expected the rows of src[0] to be dense",
        src=lambda d: filled(4, 4, 2, device=d)[:, :2].transpose(1, 2)[:, :, :1].expand(4, 2, 4),
    ),
    "rows over one another": refused(
        "expected the rows of dst[0] to be at least 32 bytes (one row) apart, got 4",
        dst=lambda d: filled(16, device=d).as_strided((4, 8), (1, 1)),
    ),
    "one row for all": refused(
        "expected the rows of src[0] to be at least 32 bytes (one row) apart, got 0",
        src=lambda d: filled(8, device=d).expand(4, 8),
    ),
    "storage too small": refused("expected dst[0] to lie inside its storage of 64 bytes, got shape [4, 8]", dst=shrunk),
    "storage of src too small": refused("expected src[0] to lie inside its storage of 64 bytes", src=shrunk),
    "storage ends before the tensor": refused(
        "expected dst[0] to lie inside its storage of 128 bytes, got shape [4, 8], strides [8, 1], storage offset 8",
        dst=shifted(8, 128),
    ),
    "storage ends before the tensor begins": refused(
        "inside its storage of 64 bytes, got shape [4, 8], strides [8, 1], storage offset 32", dst=shifted(32, 64)
    ),
    "storage of a later tensor": refused(
        "expected src[1] to lie inside its storage of 64 bytes",
        make=lambda d: (cache(2, 4, 8, device=d), [filled(4, 8, device=d), shrunk(d)]),
    ),
    "requires grad": refused(
        "dst[0] requires grad, and a copy into it would be lost to autograd",
        dst=lambda d: filled(4, 8, device=d).requires_grad_(),
    ),
    # Leading dimensions
    "other sizes before batch_dim": refused(
        "expected the sizes before batch_dim (1) to be the same, got [3, 4, 8] for dst[0] and [2, 4, 8] for src[0]",
        dst=of(3, 4, 8),
        src=of(2, 4, 8),
        batch_dim=1,
    ),
    "leading dimension broadcast in dst": refused(
        "the range to write in dst[0] overlaps the range to write in dst[0]",
        dst=lambda d: filled(4, 8, device=d).expand(3, 4, 8),
        src=of(3, 4, 8),
        batch_dim=1,
        batch=f"copies[0] into dst[0] and copies[0] into dst[0] {TWICE}",
    ),
    "more ranges than could ever be listed": refused(
        "ranges of dst[0] overlap one another",
        make=lambda d: ([filled(1, 1, device=d).expand(2**40, 2**20, 1, 1)],) * 2,
        batch_dim=2,
    ),
    # Overlap. copy_cache_batch orders copies that read what others write.
    "one destination twice": refused(
        "the range to write in dst[2] overlaps the range to write in dst[0]: the result would depend on the order",
        make=chosen([0, 1, 0], [1, 2, 3]),
        batch=f"copies[0] into dst[0] and copies[0] into dst[2] {TWICE}",
    ),
    "destinations half over one another": refused(
        "the range to write in dst[1] overlaps the range to write in dst[0]",
        make=lambda d: (
            (lambda whole: [whole[:32].view(4, 8), whole[4:36].view(4, 8)])(filled(48, device=d)),
            cache(2, 4, 8, device=d, seed=1),
        ),
        batch=TWICE,
    ),
    "in place and written as well": refused(
        "overlaps the range to write in dst[", make=chosen([0, 0], [0, 1]), batch=TWICE
    ),
}
ORDERED = {
    "a swap": refused("overlaps the range to read in src[", make=chosen([0, 1], [1, 0])),
    "a chain": refused(
        "the range to write in dst[0] overlaps the range to read in src[1]", make=chosen([1, 2], [0, 1])
    ),
    "sources between the destinations": refused(
        "the range to write in dst[0] overlaps the range to read in src[0]",
        make=lambda d: (lambda b: ([b[:48].view(3, 1, 16)[..., :8]], [b[12:60].view(3, 1, 16)[..., :8]]))(of(80)(d)),
        batch_dim=1,
    ),
}
OP_ONLY = {
    "dst index -1": refused("dst_batch_index (-1) out of range [0, 4), the batch of dst[0]", -1),
    "src index -1": refused("src_batch_index (-1) out of range [0, 4), the batch of src[0]", 0, -1),
    "offset -1": refused("offset (-1) out of range [0, 32), the bytes of a row of dst[0]", 0, 0, -1),
    "batch_dim": refused("batch_dim (2) out of range [0, 2), the dimensions of dst[0]", batch_dim=2),
    "batch_dim -1": refused("batch_dim (-1) out of range [0, 2), the dimensions of dst[0]", batch_dim=-1),
    "batch_dim of a tensor without dimensions": refused(
        "batch_dim (0) out of range [0, 0), the dimensions of src[0]", dst=of(1), src=lambda d: filled(1, device=d)[0]
    ),
    "no tensors": refused("expected dst and src to hold at least one tensor, got empty lists", make=lambda d: ([], [])),
    "one list without tensors": refused("the same number of tensors, got 1 and 0", make=chosen([0], [])),
    "no rows": refused("expected dst[0] not to be empty, got shape [0, 8]", dst=of(0, 8)),
    "empty rows": refused("expected src[0] not to be empty, got shape [4, 0]", src=of(4, 0)),
    "dst index of a later tensor": refused(
        "dst_batch_index (2) out of range [0, 2), the batch of dst[1]",
        2,
        make=lambda d: ([filled(4, 8, device=d), filled(2, 8, device=d)], cache(2, 4, 8, device=d)),
    ),
    "src index of a later tensor": refused(
        "src_batch_index (2) out of range [0, 2), the batch of src[1]",
        *(0, 2),
        make=lambda d: (cache(2, 4, 8, device=d), [filled(4, 8, device=d), filled(2, 8, device=d)]),
    ),
    "dtypes within dst": refused(
        "expected dst[1] to have the dtype of dst[0], Float, got Int",
        make=lambda d: ([filled(4, 8, device=d), filled(4, 8, device=d).int()], cache(2, 4, 8, device=d)),
    ),
    "dtypes within src": refused(
        "expected src[1] to have the dtype of dst[0], Float, got Int",
        make=lambda d: (cache(2, 4, 8, device=d), [filled(4, 8, device=d), filled(4, 8, device=d).int()]),
    ),
    "meta beside real": refused(
        "expected dst and src to be both meta tensors, got meta and cpu",
        make=lambda _: ([torch.empty(4, 8, device="meta")], [filled(4, 8)]),
    ),
    "devices within src": refused(
        "expected src[1] to be on the device of src[0], cpu, got meta",
        make=lambda _: (cache(2, 4, 8), [filled(4, 8), torch.empty(4, 8, device="meta")]),
    ),
    **{
        layout: refused(
            f"expected src[0] to have the strided layout, got {layout}",
            make=lambda _, layout=layout: ([filled(4, 8)], [getattr(filled(4, 8), f"to_{layout.lower()}")()]),
        )
        for layout in ("Sparse", "Mkldnn")
    },
    "Jagged": refused(
        "expected dst[0] to have the strided layout, got Jagged",
        make=lambda _: ([torch.nested.nested_tensor(cache(2, 4, 8), layout=torch.jagged)],) * 2,
    ),
}


EVERY = {**REFUSED, **ORDERED, **OP_ONLY}


@pytest.mark.parametrize(
    ("op", "name"),
    [*(("copy_cache", name) for name in EVERY), *(("copy_cache_batch", name) for name in EVERY if name not in ORDERED)],
)
def test_op(op: str, name: str, device: str) -> None:
    case = EVERY[name]
    dst, src = case.make(device)
    real = [t for t in dst + src if t.layout == torch.strided and not t.is_meta]
    with nothing_written(*real), pytest.raises(ValueError) as refusal:
        if op == "copy_cache":
            copy_cache(dst, src, *case.numbers, -1, batch_dim=case.batch_dim)
        else:
            copy_cache_batch(dst, src, table([case.numbers]), -1, batch_dim=case.batch_dim)
    text = str(refusal.value)
    assert text.startswith(f"{op}: ")
    assert (case.text if op == "copy_cache" else case.batch_text) in text
    assert text.endswith(" (req_id 18446744073709551615)") or any(t.is_meta for t in dst + src)


@pytest.mark.parametrize("name", [*REFUSED, *ORDERED])
def test_manager(name: str, device: str) -> None:
    case = EVERY[name]
    dst, src = (Cache.from_tensors(tensors, batch_dim=case.batch_dim) for tensors in case.make(device))
    with nothing_written(*dst.tensors, *src.tensors), pytest.raises(LLMException) as refusal:
        CacheManager().copy_cache(dst, src, *case.numbers)
    assert case.manager_text in str(refusal.value)
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


def test_tensors_without_a_kernel() -> None:
    quantized = torch._empty_affine_quantized([4, 8], scale=1.0, zero_point=0, dtype=torch.quint8)
    nested = torch.nested.nested_tensor(cache(2, 4, 8))
    for tensor, key in ((quantized, "QuantizedCPU"), (nested, "NestedTensorCPU")):
        with pytest.raises(
            NotImplementedError, match=rf"copy_cache: no kernel for {key} and {key} tensors .*\(req_id 7\)"
        ):
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
