# SPDX-License-Identifier: Apache-2.0
"""Calls that the op and the manager refuse alike. A refused call writes nothing.

REFUSED has one entry for each way a call can be wrong. Each runs through the op (ValueError) and through CacheManager
(LLM_PARAM_INVALID, which is a ValueError too), and both give the same text.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from utils import cache, copy_cache, filled, nothing_written, shrunk

from llm_datadist_torch import Cache, CacheManager, LLMException, LLMStatusCode

Tensors = list[Tensor]


@dataclass
class Refused:
    """A call and the text of its refusal. The default tensors are [4, 8] float32 (rows of 32 bytes)."""

    name: str
    text: str
    args: tuple[int, ...] = ()
    make: Callable[[str], tuple[Tensors, Tensors]] = field(
        default=lambda device: (cache(2, 4, 8, device=device), cache(2, 4, 8, device=device, seed=1))
    )
    batch_dim: int = 0
    manager_text: str = ""  # where the manager checks it first


def pair(make_dst: Callable[[str], Tensor], make_src: Callable[[str], Tensor] | None = None, **kwargs: int) -> dict:
    """The arguments of Refused for one tensor on each side."""
    make_src = make_src or (lambda device: filled(4, 8, device=device, seed=1))
    return {"make": lambda device: ([make_dst(device)], [make_src(device)]), **kwargs}


def plain(device: str) -> Tensor:
    return filled(4, 8, device=device)


def shifted_past_its_storage(device: str) -> Tensor:
    buffer = filled(64, device=device)
    view = buffer[8:40].view(4, 8)
    buffer.untyped_storage().resize_(128)
    return view


def begins_past_its_storage(device: str) -> Tensor:
    buffer = filled(64, device=device)
    view = buffer[32:].view(4, 8)
    buffer.untyped_storage().resize_(64)
    return view


def swapped(device: str) -> tuple[Tensors, Tensors]:
    a, b = cache(2, 4, 8, device=device)
    return [a, b], [b, a]


def chained(device: str) -> tuple[Tensors, Tensors]:
    a, b, c = cache(3, 4, 8, device=device)
    return [b, c], [a, b]


def same_destination_twice(device: str) -> tuple[Tensors, Tensors]:
    a = filled(4, 8, device=device)
    return [a, a], cache(2, 4, 8, device=device, seed=1)


def destinations_half_over_one_another(device: str) -> tuple[Tensors, Tensors]:
    buffer = filled(48, device=device)
    return [buffer[:32].view(4, 8), buffer[4:36].view(4, 8)], cache(2, 4, 8, device=device, seed=1)


def in_place_and_written_as_well(device: str) -> tuple[Tensors, Tensors]:
    a, b = cache(2, 4, 8, device=device)
    return [a, a], [a, b]


def strided_bytes(dst: tuple[int, int], src: tuple[int, int]) -> Callable[[str], tuple[Tensors, Tensors]]:
    """Three ranges of 8 bytes for dst and for src in one buffer. Each is given as (first byte, pitch)."""

    def make(device: str) -> tuple[Tensors, Tensors]:
        buffer = filled(80, dtype=torch.uint8, device=device)
        to, source = (buffer.as_strided((3, 1, 8), (pitch, 8, 1), start) for start, pitch in (dst, src))
        return [to], [source]

    return make


BIG = 2**63 - 1
REFUSED = [
    # Numbers
    Refused("dst index at the end", "dst_batch_index (4) out of range [0, 4), the batch of dst[0]", (4,)),
    Refused("dst index far out", f"dst_batch_index ({2**32 - 1}) out of range [0, 4)", (2**32 - 1,)),
    Refused("src index at the end", "src_batch_index (4) out of range [0, 4), the batch of src[0]", (0, 4)),
    Refused("src index far out", f"src_batch_index ({2**32 - 1}) out of range [0, 4)", (0, 2**32 - 1)),
    Refused("offset at the end", "offset (32) out of range [0, 32), the bytes of a row of dst[0]", (0, 0, 32)),
    Refused("offset huge", f"offset ({BIG}) out of range [0, 32)", (0, 0, BIG)),
    Refused("offset and size huge", f"offset ({BIG}) out of range [0, 32)", (0, 0, BIG, BIG)),
    Refused("size 0", "size (0) must be greater than 0, or -1 for the rest of the row", (0, 0, 0, 0)),
    Refused("size -2", "size (-2) must be greater than 0, or -1 for the rest of the row", (0, 0, 0, -2)),
    Refused("size lowest", f"size ({-(2**63)}) must be greater than 0", (0, 0, 0, -(2**63))),
    Refused("size one too much", "offset (8) plus size (25) runs past the row of dst[0], 32 bytes", (0, 0, 8, 25)),
    Refused("size huge", f"offset (8) plus size ({BIG}) runs past the row of dst[0], 32 bytes", (0, 0, 8, BIG)),
    Refused(
        "offset beyond the rows of src",
        "offset (16) out of range [0, 16), the bytes of a row of src[0]",
        (0, 0, 16),
        **pair(plain, lambda device: filled(4, 4, device=device)),
    ),
    Refused(
        "size beyond the rows of src",
        "offset (8) plus size (9) runs past the row of src[0], 16 bytes",
        (0, 0, 8, 9),
        **pair(plain, lambda device: filled(4, 4, device=device)),
    ),
    Refused(
        "the rest of a longer src row",
        "size (-1) means the 44 bytes of the row of src[0] from offset (4), which runs past the row of dst[0], 32 bytes",
        (0, 0, 4),
        **pair(plain, lambda device: filled(4, 12, device=device)),
    ),
    Refused(
        "the rest of a src row that is one byte longer",
        "size (-1) means the 33 bytes of the row of src[0] from offset (0), which runs past the row of dst[0], 32 bytes",
        **pair(*(lambda device, n=n: filled(4, n, dtype=torch.uint8, device=device) for n in (32, 33))),
    ),
    # Lists
    Refused(
        "different number of tensors",
        "expected dst and src to hold the same number of tensors, got 2 and 3",
        make=lambda device: (cache(2, 4, 8, device=device), cache(3, 4, 8, device=device)),
        manager_text="dst and src must have the same num_tensors, got num_tensors 2 and 3",
    ),
    Refused(
        "different dtypes",
        "expected src[0] to have the dtype of dst[0], Float, got Int",
        **pair(plain, lambda device: filled(4, 8, dtype=torch.int32, device=device)),
    ),
    # Tensors
    Refused(
        "rows not dense",
        "expected the rows of dst[0] to be dense (each one contiguous range of bytes), got shape [4, 4], strides [8, 2]",
        **pair(lambda device: plain(device)[:, ::2]),
    ),
    Refused(
        "rows of src not dense",
        "expected the rows of src[0] to be dense",
        **pair(plain, lambda device: filled(4, 4, 2, device=device)[:, :2].transpose(1, 2)[:, :, :1].expand(4, 2, 4)),
    ),
    Refused(
        "rows with a broadcast dimension",
        "expected the rows of dst[0] to be dense",
        **pair(lambda device: filled(4, 1, device=device).expand(4, 8)),
    ),
    Refused(
        "rows over one another",
        "expected the rows of dst[0] to be at least 32 bytes (one row) apart, got 4",
        **pair(lambda device: filled(16, device=device).as_strided((4, 8), (1, 1))),
    ),
    Refused(
        "one row for all",
        "expected the rows of src[0] to be at least 32 bytes (one row) apart, got 0",
        **pair(plain, lambda device: filled(8, device=device).expand(4, 8)),
    ),
    Refused(
        "storage too small",
        "expected dst[0] to lie inside its storage of 64 bytes, got shape [4, 8]",
        **pair(shrunk),
    ),
    Refused("storage of src too small", "expected src[0] to lie inside its storage of 64 bytes", **pair(plain, shrunk)),
    Refused(
        "storage ends before the tensor",
        "expected dst[0] to lie inside its storage of 128 bytes, got shape [4, 8], strides [8, 1], storage offset 8",
        **pair(shifted_past_its_storage),
    ),
    Refused(
        "storage ends before the tensor begins",
        "expected dst[0] to lie inside its storage of 64 bytes, got shape [4, 8], strides [8, 1], storage offset 32",
        **pair(begins_past_its_storage),
    ),
    Refused(
        "requires grad",
        "dst[0] requires grad, and a copy into it would be lost to autograd",
        **pair(lambda device: plain(device).requires_grad_()),
    ),
    # Leading dimensions
    Refused(
        "other sizes before batch_dim",
        "expected the sizes before batch_dim (1) to be the same, got [3, 4, 8] for dst[0] and [2, 4, 8] for src[0]",
        batch_dim=1,
        **pair(lambda device: filled(3, 4, 8, device=device), lambda device: filled(2, 4, 8, device=device)),
    ),
    Refused(
        "leading dimension broadcast in dst",
        "the range to write in dst[0] overlaps the range to write in dst[0]",
        batch_dim=1,
        **pair(
            lambda device: filled(4, 8, device=device).expand(3, 4, 8), lambda device: filled(3, 4, 8, device=device)
        ),
        args=(1, 2),
    ),
    Refused(
        "more ranges than could ever be listed",
        "ranges of dst[0] overlap one another",
        batch_dim=2,
        **pair(
            lambda device: filled(1, 1, device=device).expand(2**40, 2**20, 1, 1),
            lambda device: filled(1, 1, device=device).expand(2**40, 2**20, 1, 1),
        ),
    ),
    Refused(
        "leading ranges half over one another",
        "the range to write in dst[0] overlaps the range to write in dst[0]",
        batch_dim=1,
        **pair(
            lambda device: filled(100, device=device).as_strided((3, 4, 8), (4, 16, 1)),
            lambda device: filled(3, 4, 8, device=device, seed=1),
        ),
    ),
    # Overlap
    *(
        Refused(name, "the range to write in dst[0] overlaps the range to read in src[0]", batch_dim=1, make=make)
        for name, make in {
            "sources between the destinations, over the next": strided_bytes((0, 16), (12, 16)),
            "sources between the destinations, over the one before": strided_bytes((12, 16), (0, 16)),
            "sources one destination further": strided_bytes((0, 16), (16, 16)),
            "first range in place, others over other sources": strided_bytes((0, 8), (0, 16)),
        }.items()
    ),
    Refused("swap", "overlaps the range to read in src[", make=swapped),
    Refused("chain", "the range to write in dst[0] overlaps the range to read in src[1]", make=chained),
    Refused(
        "one destination twice",
        "the range to write in dst[1] overlaps the range to write in dst[0]: the result would depend on the order",
        make=same_destination_twice,
    ),
    Refused(
        "destinations half over one another",
        "the range to write in dst[1] overlaps the range to write in dst[0]",
        make=destinations_half_over_one_another,
    ),
    Refused(
        "in place and written as well",
        "overlaps the range to write in dst[",
        make=in_place_and_written_as_well,
    ),
]

cases = pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)


@cases
def test_op(case: Refused, device: str) -> None:
    dst, src = case.make(device)
    args = case.args + (0, 0, 0, -1)[len(case.args) :]
    with nothing_written(*dst, *src), pytest.raises(ValueError, match=r"^copy_cache: ") as refusal:
        copy_cache(dst, src, *args, -1, batch_dim=case.batch_dim)
    assert case.text in str(refusal.value)
    assert str(refusal.value).endswith(" (req_id 18446744073709551615)")


@cases
def test_manager(case: Refused, device: str) -> None:
    dst, src = (Cache.from_tensors(tensors, batch_dim=case.batch_dim) for tensors in case.make(device))
    with nothing_written(*dst.tensors, *src.tensors), pytest.raises(LLMException) as refusal:
        CacheManager().copy_cache(dst, src, *case.args)
    assert (case.manager_text or case.text) in str(refusal.value)
    assert refusal.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    assert isinstance(refusal.value, ValueError)
