# SPDX-License-Identifier: Apache-2.0
"""What copy_cache_batch copies, compared with the plain PyTorch reference. See test_copies_argument.py for errors."""

from __future__ import annotations

import random

import pytest
import torch
from utils import assert_same_bytes, cache, check_batch, copy_cache_batch, filled, reference_batch, table, to_host

Copies = list[tuple[int, int, int, int]]


def whole_rows(*pairs: tuple[int, int]) -> Copies:
    """The copies of whole rows, from (dst, src) pairs of batch indices."""
    return [(d, s, 0, -1) for d, s in pairs]


class TestOrder:
    """Copies within one cache, where a naive order gives wrong bytes."""

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
        check_batch(tensors, tensors, copies, batch_dim=batch_dim)

    def test_random_graphs(self, device: str) -> None:
        """Slices of two rows may partly overlap, so one copy can depend on several others."""
        choose = random.Random(0)
        cycles = 0
        for trial in range(500 if device == "cpu" else 100):
            rows, row = choose.choice([(2, 8), (4, 16), (6, 5), (24, 3)])
            written: set[tuple[int, int]] = set()
            copies = []
            for _ in range(choose.randint(1, 20)):
                d, s, offset = choose.randrange(rows), choose.randrange(rows), choose.choice([0, choose.randrange(row)])
                size = choose.choice([-1, choose.randint(1, row - offset)])
                taken = {(d, byte) for byte in range(offset, row if size == -1 else offset + size)}
                if not written & taken:
                    written |= taken
                    copies.append((d, s, offset, size))
            tensors = cache(2, rows, row, dtype=torch.uint8, seed=trial, device=device)
            check_batch(tensors, tensors, copies)
            cycles += any((s, d) in {(c[0], c[1]) for c in copies} for d, s, _, _ in copies)
        assert cycles > 20

    @pytest.mark.parametrize("as_list", [True, False])
    def test_permutation_of_64_rows_equals_index_select(self, device: str, as_list: bool) -> None:
        order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
        stacked = filled(5, 64, 4, 8, dtype=torch.float16)
        expected = stacked.index_select(1, order)
        on_device = stacked.to(device)
        copies = table(whole_rows(*enumerate(order.tolist())))
        tensors = list(on_device.unbind(0)) if as_list else [on_device]
        copy_cache_batch(tensors, tensors, copies, batch_dim=0 if as_list else 1)
        assert_same_bytes([on_device], [expected])

    @pytest.mark.parametrize(("layers", "rows", "width"), [(1, 5, 800_000), (3, 7, 250_001), (40, 9, 20_011)])
    def test_large_permutations_run_in_threads(self, device: str, layers: int, rows: int, width: int) -> None:
        tensors = cache(layers, rows, width, dtype=torch.uint8, device=device)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(layers)).tolist()
        check_batch(tensors, tensors, whole_rows(*enumerate(order)))

    def test_copies_that_read_what_many_copies_write(self, device: str) -> None:
        """300 copies write every other byte of row 0, and 300 copies read all of it."""
        tensors = [filled(301, 600, dtype=torch.uint8, device=device)]
        copies = [(0, 1, byte, 1) for byte in range(0, 600, 2)] + whole_rows(*((row, 0) for row in range(1, 301)))
        check_batch(tensors, tensors, copies)


class TestLayouts:
    def test_two_caches(self, device: str) -> None:
        dst, src = cache(3, 6, 8, device=device), cache(3, 4, 8, device=device, seed=1)
        check_batch(dst, src, [(5, 3, 0, -1), (0, 0, 4, 8), (0, 1, 12, 20), (2, 3, 0, 1)])

    def test_neighbours(self, device: str) -> None:
        dst, src = cache(3, 8, 8, device=device), cache(3, 8, 8, device=device, seed=1)
        check_batch(dst, src, whole_rows((2, 4), (0, 0), (3, 5), (1, 1), (4, 6), (7, 2)))

    def test_tensors_of_several_shapes(self, device: str) -> None:
        """Keys and values of different widths, as in latent attention."""
        shapes = [(6, 8), (6, 3), (6, 8), (6, 3), (4, 5), (7, 2), (6, 9)]
        tensors = [filled(*shape, device=device, seed=i) for i, shape in enumerate(shapes)]
        check_batch(tensors, tensors, whole_rows((0, 1), (1, 0), (3, 2)))

    def test_rows_further_apart_than_their_size(self, device: str) -> None:
        """The bytes between the rows are not written."""
        buffer, copies = filled(6, 20, device=device), whole_rows((0, 1), (1, 0), (2, 0))
        expected = to_host(buffer)
        expected[:, 3:11] = reference_batch([expected[:, 3:11]], [expected[:, 3:11]], copies)[0]
        copy_cache_batch([buffer[:, 3:11]], [buffer[:, 3:11]], table(copies))
        assert_same_bytes([buffer], [expected])

    def test_rows_of_different_sizes_at_one_pitch(self, device: str) -> None:
        dst, src = (cache(2, 4, 16, device=device, seed=seed) for seed in (0, 1))
        expected = [*reference_batch(dst[:1], src[:1], whole_rows((1, 2))), to_host(dst[1])]
        expected[1][1, :8] = to_host(src[1])[2, :8]
        copy_cache_batch([dst[0], dst[1][:, :8]], [src[0], src[1][:, :8]], table(whole_rows((1, 2))))
        assert_same_bytes(dst, expected)

    def test_sources_at_different_pitches(self, device: str) -> None:
        src = [filled(4, 8, device=device, seed=1), filled(4, 16, device=device, seed=2)[:, :8]]
        check_batch(cache(2, 4, 8, device=device), src, whole_rows((0, 1), (1, 3)))

    def test_keys_and_values_in_one_tensor(self, device: str) -> None:
        layers = cache(3, 2, 8, 4, device=device)
        check_batch(layers, layers, whole_rows((0, 7), (7, 0), (1, 2)), batch_dim=1)

    def test_heads_before_the_batch(self, device: str) -> None:
        """[batch, heads, tokens, dim] viewed as [heads, batch, tokens * dim]: the rows of the heads interleave."""
        tensor = filled(4, 3, 5, 2, device=device).transpose(0, 1)
        check_batch([tensor], [tensor], [(0, 1, 0, 16), (1, 0, 0, 16), (2, 3, 8, 24)], batch_dim=1)

    def test_layers_interleaved_in_one_buffer(self, device: str) -> None:
        layers = list(filled(6, 3, 8, device=device).unbind(1))
        check_batch(layers, layers, whole_rows((0, 1), (1, 0), (5, 3)))

    @pytest.mark.parametrize("first", [0, 1, 4])
    def test_two_parts_of_one_stack(self, device: str, first: int) -> None:
        stacked = filled(3, 8, 4, device=device)
        dst, src = stacked[:, :4], stacked[:, first : first + 4]
        check_batch([dst], [src], whole_rows((0, 1), (1, 0), (2, 2), (3, 1)), batch_dim=1)

    @pytest.mark.parametrize("shift", [1, 7, 8, 12])
    def test_views_a_few_bytes_apart(self, device: str, shift: int) -> None:
        buffer = filled(80, dtype=torch.uint8, device=device)
        dst, src = buffer[:64].view(8, 8), buffer[shift : 64 + shift].view(8, 8)
        check_batch([dst], [src], whole_rows((0, 1), (1, 0), (2, 2), (3, 1), (6, 5)))

    @pytest.mark.parametrize("shift", [-5, 1])
    def test_stacks_a_few_bytes_apart(self, device: str, shift: int) -> None:
        """The last row of one layer overlaps the first row of the next."""
        buffer = filled(96 + abs(shift), dtype=torch.uint8, device=device)
        dst, src = (buffer[start:][:96].view(3, 4, 8) for start in (max(0, -shift), max(0, shift)))
        check_batch([dst], [src], whole_rows((0, 3), (3, 0), (1, 2)), batch_dim=1)

    @pytest.mark.parametrize("pitches", [(64, 32), (32, 64)])
    def test_leading_dimensions_with_different_pitches(self, device: str, pitches: tuple[int, int]) -> None:
        """One layer reads what another one writes."""
        buffer = filled(192, dtype=torch.uint8, device=device)
        dst, src = (buffer.as_strided((3, 3, 8), (pitch, 8, 1)) for pitch in pitches)
        check_batch([dst], [src], whole_rows((1, 0), (2, 1)), batch_dim=1)

    def test_tensors_swapped_between_the_lists(self, device: str) -> None:
        a, b = cache(2, 4, 8, device=device)
        check_batch([a, b], [b, a], whole_rows((0, 0), (1, 2), (2, 1)))

    def test_one_tensor_twice_in_src(self, device: str) -> None:
        shared = filled(4, 8, device=device, seed=9)
        check_batch(cache(2, 4, 8, device=device), [shared, shared], whole_rows((0, 1), (3, 1)))

    def test_expanded_source(self, device: str) -> None:
        src = filled(1, 4, 8, device=device, seed=1).expand(3, 4, 8)
        check_batch([filled(3, 4, 8, device=device)], [src], whole_rows((0, 1), (1, 2)), batch_dim=1)
