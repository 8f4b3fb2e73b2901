# SPDX-License-Identifier: Apache-2.0
"""The copies argument of copy_cache_batch: accepted forms and refusals. See test_refusals.py for the other arguments."""

import re

import pytest
import torch
from torch import Tensor
from utils import as_bytes, assert_same_bytes, cache, copy_cache_batch, filled, nothing_written, reference_batch, table


def test_100_000_copies(device: str) -> None:
    """They are one chain: recursion along it would overflow the stack."""
    rows = 100_001
    buffer = filled(rows, 4, dtype=torch.uint8, device=device)
    expected = as_bytes(buffer).view(rows, 4).roll(-1, 0)
    copies = torch.zeros(rows, 4, dtype=torch.int64)
    copies[:, 0] = torch.arange(rows)
    copies[:, 1] = (copies[:, 0] + 1) % rows
    copies[:, 3] = -1
    copy_cache_batch([buffer], [buffer], copies)
    assert_same_bytes([buffer], [expected])


COPIES = table([(0, 1, 4, 8), (2, 3, 8, 4)])


@pytest.mark.parametrize(
    "given",
    [COPIES.t().contiguous().t(), COPIES.repeat_interleave(2, dim=0)[::2], torch.cat([COPIES, COPIES], dim=1)[:, :4]],
    ids=["transposed", "every second row", "columns of a wider table"],
)
def test_strides(device: str, given: Tensor) -> None:
    dst, src = cache(2, 4, 8, device=device), cache(2, 4, 8, device=device, seed=1)
    expected = reference_batch(dst, src, COPIES.tolist())
    assert not given.is_contiguous()
    copy_cache_batch(dst, src, given)
    assert_same_bytes(dst, expected)


def resized(copies: Tensor) -> Tensor:
    copies.untyped_storage().resize_(63)
    return copies


ROW = (1, 0, 0, -1)
# The copies argument and the text of its refusal. Tensors are [4, 8] float32.
REFUSED = {
    "another dtype": (table([ROW]).int(), "expected copies of dtype Long (int64), got Int"),
    "one dimension": (table([ROW])[0], "expected copies of shape [n, 4] or [n, 5], got [4]"),
    "three numbers": (table([ROW])[:, :3], "expected copies of shape [n, 4] or [n, 5], got [1, 3]"),
    "sparse": (table([ROW]).to_sparse(), "expected copies to have the strided layout, got Sparse"),
    "shrunk": (resized(table([ROW, ROW])), "expected copies to lie inside its storage of 63 bytes"),
    "a later copy": (table([ROW, (0, -1, 0, -1)]), "copies[1]: src_batch_index (-1) out of range [0, 4)"),
    "the first of many": (table([(0, 1, 0, 0)]).expand(100_000, 4), "copies[0]: size (0) must be greater than 0"),
    "one row twice": (
        table([ROW, (2, 0, 0, -1), (1, 2, 0, -1)]),
        "copies[0] into dst[0] and copies[2] into dst[0] write the same bytes: the result would depend on the order",
    ),
    "one byte twice": (table([(1, 0, 0, 16), (1, 0, 15, 4)]), "copies[0] into dst[0] and copies[1] into dst[0] write"),
    "in place, and written": (table([(1, 1, 0, -1), (1, 0, 31, 1)]), "copies[0] into dst[0] and copies[1] into dst[0]"),
    "a row repeated by stride 0": (table([ROW]).expand(2**40, 4), "copies[0] into dst[0] and copies[1] into dst[0]"),
    "more copies than rows": (
        table([(row % 4, row % 4, 0, -1) for row in range(5)]),
        "copies[0] into dst[0] and copies[4] into dst[0] write the same bytes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(device: str, name: str) -> None:
    given, text = REFUSED[name]
    dst, src = cache(2, 4, 8, device=device), cache(2, 4, 8, device=device, seed=1)
    with (
        nothing_written(*dst, *src),
        pytest.raises(ValueError, match=rf"copy_cache_batch: .*{re.escape(text)}.*\(req_id 7\)$"),
    ):
        copy_cache_batch(dst, src, given, 7)


@pytest.mark.parametrize("name", ["another dtype", "one dimension", "three numbers"])
def test_refused_while_tracing(name: str) -> None:
    """These checks do not need the values."""
    given, text = REFUSED[name]
    tensors = [torch.empty(4, 8, device="meta")]
    for copies in (given, given.to("meta")):
        with pytest.raises(ValueError, match="copy_cache_batch: " + re.escape(text)):
            copy_cache_batch(tensors, tensors, copies)


@pytest.mark.parametrize(
    "copy",
    [(0, 0, 0, 20, 4), (0, 0, 4, 20, 0), (2, 1, 8, -1, 16), (3, 0, 31, 1, 0)],
    ids=["towards the front of a row", "towards its end", "the rest of a row", "one byte"],
)
def test_an_offset_for_each_side(device: str, copy: tuple[int, ...]) -> None:
    tensors = cache(2, 4, 8, device=device)
    dst_row, src_row, dst_offset, size, src_offset = copy
    expected = [as_bytes(t).view(4, 32) for t in tensors]
    for rows in expected:
        moved = rows[src_row, src_offset:][: None if size == -1 else size].clone()
        rows[dst_row, dst_offset:][: len(moved)] = moved
    copy_cache_batch(tensors, tensors, table([copy]))
    assert_same_bytes(tensors, expected)


@pytest.mark.parametrize(
    ("copy", "text"),
    [
        ((0, 0, 32, 1, 0), "copies[0]: dst_offset (32) out of range [0, 32), the bytes of a row of dst[0]"),
        ((0, 0, 0, 1, -1), "copies[0]: src_offset (-1) out of range [0, 32), the bytes of a row of src[0]"),
        ((0, 0, 0, 30, 3), "copies[0]: src_offset (3) plus size (30) runs past the row of src[0], 32 bytes"),
        (
            (0, 0, 5, -1, 4),
            "copies[0]: size (-1) means the 28 bytes of the row of src[0] from src_offset (4), which runs",
        ),
    ],
)
def test_offsets_outside_a_row(device: str, copy: tuple[int, ...], text: str) -> None:
    dst, src = cache(1, 4, 8, device=device), cache(1, 4, 8, device=device, seed=1)
    with nothing_written(*dst, *src), pytest.raises(ValueError, match=re.escape(text)):
        copy_cache_batch(dst, src, table([copy]))


def test_no_copies(device: str) -> None:
    """Nothing is written, and wrong arguments are still refused."""
    dst, src = cache(2, 4, 8, device=device), cache(2, 4, 8, device=device, seed=1)
    with nothing_written(*src):
        expected = [as_bytes(d) for d in dst]
        copy_cache_batch(dst, src, table([]))
        assert_same_bytes(dst, expected)
    with pytest.raises(ValueError, match="expected dst and src to hold the same number of tensors, got 2 and 1"):
        copy_cache_batch(dst, src[:1], table([]))
    with pytest.raises(ValueError, match=r"batch_dim \(2\) out of range \[0, 2\)"):
        copy_cache_batch(dst, src, table([]), batch_dim=2)


def test_copies_on_the_meta_device(device: str) -> None:
    tensors = cache(2, 4, 8, device=device)
    with nothing_written(*tensors), pytest.raises(ValueError, match=r"^copy_cache_batch: expected copies on the"):
        copy_cache_batch(tensors, tensors, table([ROW]).to("meta"))
