# SPDX-License-Identifier: Apache-2.0
"""What copy_cache_batch copies and refuses, against the plain reference: all sources read before anything is written."""

from __future__ import annotations

import random
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
    to_host,
)

Copies = list[tuple[int, int, int, int]]


def table(copies: Copies) -> Tensor:
    return torch.tensor(copies, dtype=torch.int64).view(-1, 4)


def check(dst: list[Tensor], src: list[Tensor], copies: Copies, **kwargs: int) -> None:
    expected = reference_batch(dst, src, copies, **kwargs)
    src_expected = [to_host(s) for s in src]
    shared = {t.untyped_storage().data_ptr() for t in dst} & {t.untyped_storage().data_ptr() for t in src}
    assert copy_cache_batch(dst, src, table(copies), **kwargs) is None
    assert_same_bytes(dst, expected)
    if not shared:
        assert_same_bytes(src, src_expected)


def whole_rows(*pairs: tuple[int, int]) -> Copies:
    """From (dst, src) pairs of rows."""
    return [(d, s, 0, -1) for d, s in pairs]


def test_copy_on_write_destination() -> None:
    """A lazily cloned tensor shares its bytes until it is written; the op must not write the shared ones."""
    original, src, copies = filled(4, 8), filled(4, 8, seed=1), whole_rows((1, 2), (2, 0))
    before, expected = original.clone(), reference_batch([original], [src], copies)
    lazy = torch._lazy_clone(original)
    copy_cache_batch([lazy], [src], table(copies))
    assert_same_bytes([lazy, original], [*expected, before])


class TestOrder:
    """Copies within one cache, for which some order is wrong."""

    @pytest.mark.parametrize(
        "copies",
        [
            pytest.param(whole_rows((1, 0), (2, 1), (3, 2)), id="chain"),
            pytest.param(whole_rows((3, 2), (2, 1), (1, 0)), id="chain backwards"),
            pytest.param(whole_rows((0, 1), (1, 0)), id="swap"),
            pytest.param(whole_rows((0, 1), (1, 2), (2, 0)), id="cycle of three"),
            pytest.param(whole_rows((0, 1), (1, 0), (2, 3), (3, 2)), id="two swaps"),
            pytest.param(whole_rows((0, 1), (1, 0), (2, 0), (3, 2)), id="swap with a tail that reads it"),
            pytest.param(whole_rows((1, 0), (2, 0), (3, 0)), id="one row to all others"),
            pytest.param(whole_rows((2, 2), (0, 2), (1, 0)), id="in place among others"),
            pytest.param([(0, 1, 0, 16), (0, 2, 16, -1), (1, 0, 8, 16), (2, 0, 20, 12)], id="parts of rows"),
            pytest.param([(0, 1, 0, 16), (1, 0, 15, 1)], id="a cycle through one byte"),
            pytest.param([(0, 1, 0, 16), (1, 0, 16, 16)], id="neighbours, no cycle"),
        ],
    )
    @pytest.mark.parametrize("batch_dim", [0, 1])
    def test_known_graphs(self, device: str, copies: Copies, batch_dim: int) -> None:
        tensors = cache(3, 4, 8, device=device) if batch_dim == 0 else [filled(3, 4, 8, device=device)]
        check(tensors, tensors, copies, batch_dim=batch_dim)

    def test_random_graphs_of_rows(self, device: str) -> None:
        choose = random.Random(0)
        for trial in range(300 if device == "cpu" else 100):
            rows = choose.randint(1, 24)
            count = choose.randint(0, rows)
            copies = whole_rows(*((d, choose.randrange(rows)) for d in choose.sample(range(rows), count)))
            stacked = filled(2, rows, 3, seed=trial, device=device)
            check([stacked], [stacked], copies, batch_dim=1)

    def test_random_graphs_of_slices(self, device: str) -> None:
        """Slices of two rows may overlap in part, so one copy can wait for several others, and they for it."""
        choose = random.Random(0)
        cycles = 0
        for trial in range(500 if device == "cpu" else 100):
            rows, row = choose.choice([(2, 8), (4, 16), (6, 5)])
            written: set[tuple[int, int]] = set()
            copies = []
            for _ in range(choose.randint(1, 20)):
                d, s, offset = choose.randrange(rows), choose.randrange(rows), choose.randrange(row)
                size = choose.choice([-1, *range(1, row - offset + 1)])
                end = row if size == -1 else offset + size
                if not written & {(d, byte) for byte in range(offset, end)}:
                    written |= {(d, byte) for byte in range(offset, end)}
                    copies.append((d, s, offset, size))
            tensors = cache(2, rows, row, dtype=torch.uint8, seed=trial, device=device)
            check(tensors, tensors, copies)
            cycles += any((s, d) in {(c[0], c[1]) for c in copies} for d, s, _, _ in copies)
        assert cycles > 50

    @pytest.mark.parametrize("as_list", [True, False])
    def test_a_permutation_of_64_rows_is_index_select(self, device: str, as_list: bool) -> None:
        order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
        stacked = filled(5, 64, 4, 8, dtype=torch.float16)
        expected = stacked.index_select(1, order)
        on_device = stacked.to(device)
        copies = torch.stack([torch.arange(64), order, torch.zeros_like(order), torch.full_like(order, -1)], dim=1)
        tensors = list(on_device.unbind(0)) if as_list else [on_device]
        copy_cache_batch(tensors, tensors, copies, batch_dim=0 if as_list else 1)
        assert_same_bytes([on_device], [expected])

    @pytest.mark.parametrize(("layers", "rows", "width"), [(1, 5, 400_000), (3, 7, 250_001), (40, 9, 20_011)])
    def test_large_permutations_are_shared_among_threads(self, device: str, layers: int, rows: int, width: int) -> None:
        tensors = cache(layers, rows, width, dtype=torch.uint8, device=device)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(layers)).tolist()
        check(tensors, tensors, whole_rows(*enumerate(order)))

    def test_a_copy_that_reads_what_very_many_write(self, device: str) -> None:
        """Every other byte of row 0 is written, and 300 copies read all of it."""
        tensors = [filled(301, 600, dtype=torch.uint8, device=device)]
        copies = [(0, 1, byte, 1) for byte in range(0, 600, 2)] + whole_rows(*((row, 0) for row in range(1, 301)))
        check(tensors, tensors, copies)


class TestLayouts:
    def test_two_caches(self, device: str) -> None:
        dst, src = cache(3, 6, 8, device=device), cache(3, 4, 8, device=device, seed=1)
        check(dst, src, [(5, 3, 0, -1), (0, 0, 4, 8), (0, 1, 12, 20), (2, 3, 0, 1)])

    def test_neighbours(self, device: str) -> None:
        dst, src = cache(3, 8, 8, device=device), cache(3, 8, 8, device=device, seed=1)
        check(dst, src, whole_rows((2, 4), (0, 0), (3, 5), (1, 1), (4, 6), (7, 2)))

    def test_tensors_of_several_shapes(self, device: str) -> None:
        """Keys and values of different width, as in latent attention."""
        shapes = [(6, 8), (6, 3), (6, 8), (6, 3), (4, 5), (7, 2), (6, 9)]
        tensors = [filled(*shape, device=device, seed=i) for i, shape in enumerate(shapes)]
        check(tensors, tensors, whole_rows((0, 1), (1, 0), (3, 2)))

    def test_rows_further_apart_than_their_size(self, device: str) -> None:
        buffer = filled(6, 20, device=device)
        view = buffer[:, 3:11]
        around = to_host(buffer)
        expected = reference_batch([around[:, 3:11]], [view], whole_rows((0, 1), (1, 0), (2, 0)))
        copy_cache_batch([view], [view], table(whole_rows((0, 1), (1, 0), (2, 0))))
        assert_same_bytes([view], expected)
        assert torch.equal(as_bytes(buffer[:, 11:]), as_bytes(around[:, 11:]))
        assert torch.equal(as_bytes(buffer[:, :3]), as_bytes(around[:, :3]))

    def test_keys_and_values_in_one_tensor(self, device: str) -> None:
        layers = cache(3, 2, 8, 4, device=device)
        check(layers, layers, whole_rows((0, 7), (7, 0), (1, 2)), batch_dim=1)

    def test_heads_before_the_batch(self, device: str) -> None:
        """[batch, heads, tokens, dim] taken as [heads, batch, tokens * dim]: places lie between one another's rows."""
        tensor = filled(4, 3, 5, 2, device=device).transpose(0, 1)
        check([tensor], [tensor], [(0, 1, 0, 16), (1, 0, 0, 16), (2, 3, 8, 24)], batch_dim=1)

    def test_layers_interleaved_in_one_buffer(self, device: str) -> None:
        buffer = filled(6, 3, 8, device=device)
        layers = list(buffer.unbind(1))
        check(layers, layers, whole_rows((0, 1), (1, 0), (5, 3)))

    @pytest.mark.parametrize("first", [0, 1, 4])
    def test_two_parts_of_one_stack(self, device: str, first: int) -> None:
        stacked = filled(3, 8, 4, device=device)
        dst, src = stacked[:, :4], stacked[:, first : first + 4]
        check([dst], [src], whole_rows((0, 1), (1, 0), (2, 2), (3, 1)), batch_dim=1)

    @pytest.mark.parametrize("shift", [1, 7, 8, 12])
    def test_views_a_few_bytes_apart(self, device: str, shift: int) -> None:
        buffer = filled(80, dtype=torch.uint8, device=device)
        dst, src = buffer[:64].view(8, 8), buffer[shift : 64 + shift].view(8, 8)
        check([dst], [src], whole_rows((0, 1), (1, 0), (2, 2), (3, 1), (6, 5)))

    @pytest.mark.parametrize("shift", [-5, -1, 1, 5])
    def test_stacks_a_few_bytes_apart(self, device: str, shift: int) -> None:
        """The last row of one place reaches into the first row of the next."""
        buffer = filled(96 + abs(shift), dtype=torch.uint8, device=device)
        dst, src = (buffer[start:][:96].view(3, 4, 8) for start in (max(0, -shift), max(0, shift)))
        check([dst], [src], whole_rows((0, 3), (3, 0), (1, 2)), batch_dim=1)

    @pytest.mark.parametrize("pitches", [(64, 32), (32, 64)])
    def test_places_at_other_pitches(self, device: str, pitches: tuple[int, int]) -> None:
        """What one place reads, another one writes."""
        buffer = filled(192, dtype=torch.uint8, device=device)
        dst, src = (buffer.as_strided((3, 3, 8), (pitch, 8, 1)) for pitch in pitches)
        check([dst], [src], whole_rows((1, 0), (2, 1)), batch_dim=1)

    def test_one_tensor_read_by_the_copies_of_another(self, device: str) -> None:
        a, b = cache(2, 4, 8, device=device)
        check([a, b], [b, a], whole_rows((0, 0), (1, 2), (2, 1)))

    def test_one_tensor_twice_in_src(self, device: str) -> None:
        shared = filled(4, 8, device=device, seed=9)
        check(cache(2, 4, 8, device=device), [shared, shared], whole_rows((0, 1), (3, 1)))

    def test_expanded_source(self, device: str) -> None:
        src = filled(1, 4, 8, device=device, seed=1).expand(3, 4, 8)
        check([filled(3, 4, 8, device=device)], [src], whole_rows((0, 1), (1, 2)), batch_dim=1)


class TestCopiesArgument:
    def test_none_to_make(self, device: str) -> None:
        tensors = cache(2, 4, 8, device=device)
        expected = [to_host(t) for t in tensors]
        copy_cache_batch(tensors, tensors, torch.empty(0, 4, dtype=torch.int64))
        assert_same_bytes(tensors, expected)

    def test_100_000(self, device: str) -> None:
        """Also a chain as long as that, which nothing may follow by recursion."""
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

    def test_may_be_written_at_once(self, device: str) -> None:
        dst, src = cache(2, 4, 8, device=device), cache(2, 4, 8, device=device, seed=1)
        copies = table([(0, 1, 4, 8), (2, 3, 8, 4)])
        expected = reference_batch(dst, src, copies.tolist())
        copy_cache_batch(dst, src, copies)
        copies.fill_(77)
        assert_same_bytes(dst, expected)

    def test_version_counters(self, device: str) -> None:
        dst, src = cache(2, 4, 8, device=device), cache(2, 4, 8, device=device, seed=1)
        copy_cache_batch(dst, src, table([(0, 1, 4, 8)]))
        assert [t._version for t in dst + src] == [1, 1, 0, 0]


def resized(copies: Tensor) -> Tensor:
    copies.untyped_storage().resize_(63)
    return copies


ROW = (1, 0, 0, -1)
# What is given for copies, and the text it is refused with. Tensors are [4, 8] float32.
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
        with nothing_written(*dst, *src), pytest.raises(ValueError, match="copy_cache_batch: .*" + re.escape(text)):
            copy_cache_batch(dst, src, given, 7)

    def test_request_is_named(self, device: str) -> None:
        tensors = cache(2, 4, 8, device=device)
        with pytest.raises(ValueError, match=r"\(req_id 7\)$"):
            copy_cache_batch(tensors, tensors, table([(4, 0, 0, -1)]), 7)

    def test_lists_without_copies(self, device: str) -> None:
        """Nothing to copy does not make a wrong call right."""
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

    def test_destinations_that_share_memory_but_no_byte_that_is_written(self, device: str) -> None:
        a, src = filled(4, 8, device=device), cache(2, 4, 8, device=device, seed=1)
        halves = [a[:3], a[1:]]
        expected = reference_batch([a], [src[0]], [(0, 0, 0, -1)])
        expected = reference_batch(expected, [src[1]], [(1, 0, 0, -1)])
        copy_cache_batch(halves, src, table([(0, 0, 0, -1)]))
        assert_same_bytes([a], expected)

    def test_more_copies_than_there_is_room_for(self, device: str) -> None:
        """The copies are at fault, not the tensor: the text names them also where it could name the tensor."""
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
        """What can be seen without the numbers is refused before a graph with it is run."""
        given, text = REFUSED[name]
        tensors = [torch.empty(4, 8, device="meta")]
        for copies in (given, given.to("meta")):
            with pytest.raises(ValueError, match="copy_cache_batch: " + re.escape(text)):
                copy_cache_batch(tensors, tensors, copies)
