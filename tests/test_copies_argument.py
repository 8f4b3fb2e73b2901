# SPDX-License-Identifier: Apache-2.0
"""The copies argument of copy_cache_batch: accepted forms and refusals."""

import re

import pytest
import torch
from torch import Tensor
from utils import (
    as_bytes,
    assert_same_bytes,
    cache,
    copy_cache_batch,
    filled,
    nothing_written,
    reference_batch,
    table,
    to_host,
)


class TestCopiesArgument:
    def test_no_copies(self, device: str) -> None:
        tensors = cache(2, 4, 8, device=device)
        expected = [to_host(t) for t in tensors]
        copy_cache_batch(tensors, tensors, torch.empty(0, 4, dtype=torch.int64))
        assert_same_bytes(tensors, expected)

    def test_100_000_copies(self, device: str) -> None:
        """They are one chain: recursion along it would overflow the stack."""
        rows = 100_001
        buffer = filled(rows, 4, dtype=torch.uint8, device=device)
        expected = torch.cat([as_bytes(buffer).view(rows, 4)[1:], as_bytes(buffer).view(rows, 4)[:1]])
        copies = torch.zeros(rows, 4, dtype=torch.int64)
        copies[:, 0] = torch.arange(rows)
        copies[:, 1] = (copies[:, 0] + 1) % rows
        copies[:, 3] = -1
        copy_cache_batch([buffer], [buffer], copies)
        assert_same_bytes([buffer], [expected])

    @pytest.mark.parametrize("how", ["transposed", "every second row", "columns of a wider table"])
    def test_strides(self, device: str, how: str) -> None:
        copies = table([(0, 1, 4, 8), (2, 3, 8, 4)])
        given = {
            "transposed": copies.t().contiguous().t(),
            "every second row": copies.repeat_interleave(2, dim=0)[::2],
            "columns of a wider table": torch.cat([copies, copies], dim=1)[:, :4],
        }[how]
        dst, src = cache(2, 4, 8, device=device), cache(2, 4, 8, device=device, seed=1)
        expected = reference_batch(dst, src, copies.tolist())
        assert not given.is_contiguous()
        copy_cache_batch(dst, src, given)
        assert_same_bytes(dst, expected)

    def test_version_counters(self, device: str) -> None:
        dst, src = cache(2, 4, 8, device=device), cache(2, 4, 8, device=device, seed=1)
        copy_cache_batch(dst, src, table([(0, 1, 4, 8)]))
        assert [t._version for t in dst + src] == [1, 1, 0, 0]


def resized(copies: Tensor) -> Tensor:
    copies.untyped_storage().resize_(63)
    return copies


ROW = (1, 0, 0, -1)
# The copies argument and the text of its refusal. Tensors are [4, 8] float32.
REFUSED = {
    "another dtype": (table([ROW]).int(), "expected copies of dtype Long (int64), got Int"),
    "one dimension": (table([ROW])[0], "expected copies of shape [n, 4], got [4]"),
    "three numbers": (table([ROW])[:, :3], "expected copies of shape [n, 4], got [1, 3]"),
    "sparse": (table([ROW]).to_sparse(), "expected copies to have the strided layout, got Sparse"),
    "shrunk": (resized(table([ROW, ROW])), "expected copies to lie inside its storage of 63 bytes"),
    "first row": (table([(4, *ROW[1:])]), "copies[0]: dst_batch_index (4) out of range [0, 4), the batch of dst[0]"),
    "negative": (table([ROW, (0, -1, 0, -1)]), "copies[1]: src_batch_index (-1) out of range [0, 4)"),
    "offset": (table([ROW, (0, 1, 32, -1)]), "copies[1]: offset (32) out of range [0, 32)"),
    "size": (table([ROW, (0, 1, 8, 25)]), "copies[1]: offset (8) plus size (25) runs past the row of dst[0]"),
    "overflow": (table([ROW, (0, 1, 8, 2**63 - 1)]), f"copies[1]: offset (8) plus size ({2**63 - 1}) runs past"),
    "size 0": (table([ROW, (0, 1, 0, 0)]), "copies[1]: size (0) must be greater than 0, or -1"),
    "the last of many": (table([(0, 1, 0, 0)]).expand(100_000, 4), "copies[0]: size (0) must be greater than 0"),
    "one row twice": (
        table([ROW, (2, 0, 0, -1), (1, 2, 0, -1)]),
        "copies[0] into dst[0] and copies[2] into dst[0] write the same bytes: the result would depend on the order",
    ),
    "one byte twice": (table([(1, 0, 0, 16), (1, 0, 15, 4)]), "copies[0] into dst[0] and copies[1] into dst[0] write"),
    "in place, and written": (table([(1, 1, 0, -1), (1, 0, 31, 1)]), "copies[0] into dst[0] and copies[1] into dst[0]"),
    "a row repeated by stride 0": (table([ROW]).expand(2**40, 4), "copies[0] into dst[0] and copies[1] into dst[0]"),
}


class TestRefused:
    @pytest.mark.parametrize("name", REFUSED)
    def test_copies(self, device: str, name: str) -> None:
        given, text = REFUSED[name]
        dst, src = cache(2, 4, 8, device=device), cache(2, 4, 8, device=device, seed=1)
        with (
            nothing_written(*dst, *src),
            pytest.raises(ValueError, match=rf"copy_cache_batch: .*{re.escape(text)}.*\(req_id 7\)$"),
        ):
            copy_cache_batch(dst, src, given, 7)

    def test_lists_are_checked_without_copies(self, device: str) -> None:
        """Wrong arguments are refused even if there is nothing to copy."""
        with pytest.raises(ValueError, match="expected dst and src to hold the same number of tensors, got 2 and 1"):
            copy_cache_batch(cache(2, 4, 8, device=device), cache(1, 4, 8, device=device), table([]))
        with pytest.raises(ValueError, match=r"batch_dim \(2\) out of range \[0, 2\)"):
            copy_cache_batch(cache(1, 4, 8, device=device), cache(1, 4, 8, device=device), table([]), batch_dim=2)

    def test_every_tensor_is_checked(self, device: str) -> None:
        shapes = [(4, 8), (4, 8), (3, 8), (4, 8)]
        tensors = [filled(*shape, device=device) for shape in shapes]
        text = r"copies\[0\]: dst_batch_index \(3\) out of range \[0, 3\), the batch of dst\[2\]"
        with nothing_written(*tensors), pytest.raises(ValueError, match=text):
            copy_cache_batch(tensors, tensors, table([(3, 0, 0, -1)]))

    def test_one_tensor_twice_in_dst(self, device: str) -> None:
        a, src = filled(4, 8, device=device), cache(3, 4, 8, device=device, seed=1)
        other = filled(4, 8, device=device)
        text = r"copies\[0\] into dst\[0\] and copies\[0\] into dst\[2\] write the same bytes"
        with nothing_written(a, *src), pytest.raises(ValueError, match=text):
            copy_cache_batch([a, other, a], src, table([(1, 0, 0, 16)]))

    def test_destinations_that_overlap_outside_the_written_bytes(self, device: str) -> None:
        a, src = filled(4, 8, device=device), cache(2, 4, 8, device=device, seed=1)
        halves = [a[:3], a[1:]]
        expected = reference_batch([a], [src[0]], [(0, 0, 0, -1)])
        expected = reference_batch(expected, [src[1]], [(1, 0, 0, -1)])
        copy_cache_batch(halves, src, table([(0, 0, 0, -1)]))
        assert_same_bytes([a], expected)

    def test_more_copies_than_fit_into_the_rows(self, device: str) -> None:
        """The error names the copies, not the tensor."""
        stacked = filled(2, 8, 16, device=device)
        copies = table([(row % 8, row % 8, 0, -1) for row in range(9)])
        text = r"copies\[0\] into dst\[0\] and copies\[8\] into dst\[0\] write the same bytes"
        with nothing_written(stacked), pytest.raises(ValueError, match=text):
            copy_cache_batch([stacked], [stacked], copies, batch_dim=1)

    def test_expanded_destination(self, device: str) -> None:
        dst = filled(1, 4, 8, device=device).expand(3, 4, 8)
        with pytest.raises(ValueError, match=r"copies\[0\] into dst\[0\] and copies\[0\] into dst\[0\] write the same"):
            copy_cache_batch([dst], [filled(3, 4, 8, device=device)], table([(0, 0, 0, 1)]), batch_dim=1)
        huge = filled(1, 4, 8, device=device).expand(2**40, 4, 8)
        with pytest.raises(ValueError, match=r"ranges of dst\[0\] overlap one another"):
            copy_cache_batch([huge], [huge], table([(0, 0, 0, 1)]), batch_dim=1)

    def test_copies_on_the_meta_device(self, device: str) -> None:
        tensors = cache(2, 4, 8, device=device)
        with nothing_written(*tensors), pytest.raises(ValueError, match=r"^copy_cache_batch: expected copies on the"):
            copy_cache_batch(tensors, tensors, table([ROW]).to("meta"))
        with pytest.raises(ValueError, match="expected dst and src to hold at least one tensor, got empty lists"):
            copy_cache_batch([], [], table([ROW]).to("meta"))

    @pytest.mark.parametrize("name", ["another dtype", "one dimension", "three numbers"])
    def test_while_tracing(self, name: str) -> None:
        """Checks that do not need the values are made while tracing."""
        given, text = REFUSED[name]
        tensors = [torch.empty(4, 8, device="meta")]
        for copies in (given, given.to("meta")):
            with pytest.raises(ValueError, match="copy_cache_batch: " + re.escape(text)):
                copy_cache_batch(tensors, tensors, copies)
