# SPDX-License-Identifier: Apache-2.0
"""Copies of one batch that read what others write. See test_copy_cache.py for layouts of the caches."""

from __future__ import annotations

import random

import pytest
import torch
from utils import cache, check_batch, filled, intra_op_threads

Copies = list[tuple[int, int, int, int]]


def whole_rows(*pairs: tuple[int, int]) -> Copies:
    """The copies of whole rows, from (dst, src) pairs of batch indices."""
    return [(d, s, 0, -1) for d, s in pairs]


def test_random_graphs(device: str) -> None:
    """Slices of two rows may partly overlap, so one copy can depend on several others."""
    choose = random.Random(0)
    cycles = 0
    for trial in range(500 if device == "cpu" else 50):
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
    assert cycles > 10


@pytest.mark.parametrize(("layers", "rows", "width"), [(1, 5, 800_000), (3, 7, 250_001), (40, 9, 20_011)])
def test_large_permutations_run_in_threads(device: str, layers: int, rows: int, width: int) -> None:
    tensors = cache(layers, rows, width, dtype=torch.uint8, device=device)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(layers)).tolist()
    with intra_op_threads(2):
        check_batch(tensors, tensors, whole_rows(*enumerate(order)))


def test_copies_that_read_what_many_copies_write(device: str) -> None:
    """300 copies write every other byte of row 0, and 300 copies read all of it."""
    tensors = [filled(301, 600, dtype=torch.uint8, device=device)]
    copies = [(0, 1, byte, 1) for byte in range(0, 600, 2)] + whole_rows(*((row, 0) for row in range(1, 301)))
    check_batch(tensors, tensors, copies)
