# SPDX-License-Identifier: Apache-2.0
"""The kernel, interpreted on the CPU, copies what its tables say and nothing else."""

import itertools
import random

import pytest
import torch
from byte_model import HOSTILE
from kernel_utils import launch, run_interpreted
from utils import filled

from llm_datadist_torch._native.kernel import FORMS, TILE_BYTES

Table = list[list[int]]
FAR = [number for number in HOSTILE if abs(number) > 2]
LENGTHS = {
    "bytes": lambda rng, tile: rng.choice((1, 2, 3, 31, 32, 33, rng.randint(1, 300))),
    "tiles": lambda rng, tile: rng.choice((1, tile - 1, tile, rng.randint(1, tile))),
}


def random_tables(rng: random.Random, tile: int, room: int, lengths: str) -> tuple[Table, Table, int]:
    """Bases and pieces of some groups, and the end of the destinations, which never overlap. Sources are anywhere."""
    bases, pieces, end = [], [], 0
    for _ in range(rng.randint(1, 3)):
        begin, at = len(pieces), rng.randint(0, 3)
        for _ in range(rng.randint(1, 8)):
            length = LENGTHS[lengths](rng, tile)
            pieces.append([at, rng.randint(0, room - tile), length])
            at += length + rng.choice((0, 1, 7))
        order = pieces[begin:]
        rng.shuffle(order)
        pieces[begin:] = order
        for _ in range(rng.randint(1, 5)):
            bases.append([end, rng.randint(0, room), begin, len(pieces)])
            end += at + rng.choice((0, 5))
    return bases, pieces, end


def random_shares(rng: random.Random, bases: Table) -> Table:
    """Cuts the work anywhere, also so that a program has nothing to do."""
    work = [(base, piece) for base, (_, _, begin, end) in enumerate(bases) for piece in range(begin, end)]
    cuts = sorted([0, len(work), *(rng.randint(0, len(work)) for _ in range(rng.randint(0, 7)))])
    return [[*(work[a] if a < b else (0, 0)), b - a] for a, b in itertools.pairwise(cuts)]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("form", FORMS)
def test_every_program_copies_its_share(form: str, lengths: str, seed: int) -> None:
    rng, size = random.Random(seed), FORMS[form]
    tile, room = TILE_BYTES // size, 5 * TILE_BYTES // size
    bases, pieces, end = random_tables(rng, tile, room, lengths)
    dtype = {1: torch.int8, 4: torch.int32}[size]
    src = filled(2 * room, dtype=dtype)
    dst = filled(end + 64, dtype=dtype, seed=1)
    expected = dst.clone()
    for base_dst, base_src, begin, stop in bases:
        for at, of, length in pieces[begin:stop]:
            expected[base_dst + at : base_dst + at + length] = src[base_src + of : base_src + of + length]
    # The bases may be any addresses, also such that offsets are negative.
    dst_base, src_base = (rng.randint(0, len(tensor) - 1) for tensor in (dst, src))
    moved = [[at - dst_base, of - src_base, begin, stop] for at, of, begin, stop in bases]
    shares = random_shares(rng, bases)
    run_interpreted(form, dst[dst_base:], src[src_base:], *map(torch.tensor, (shares, moved, pieces)))
    assert torch.equal(dst, expected)


@pytest.mark.parametrize("columns", [4, 5])
@pytest.mark.parametrize("seed", range(40))
def test_rows_of_a_table_on_the_device(columns: int, seed: int) -> None:
    """Caches of some tensors with gaps between rows, gathered to a buffer too. Numbers are mostly valid, else anything."""
    rng = random.Random(seed)
    tensors, batch, row, room = rng.randint(1, 3), 4, rng.choice((7, 300, TILE_BYTES + 5)), rng.choice((0, 3))
    step, count = row + room, rng.randint(1, 6)
    dst, src = (filled(tensors * batch * step + 9, dtype=torch.int8, seed=seed) for seed in (0, 1))
    slots = filled(tensors * count * row, dtype=torch.int8, seed=2)
    copies, expected, expected_slots, outside = [], dst.clone(), slots.clone(), 0
    targets = rng.sample(range(batch), batch)
    for number in range(count):
        at, of = rng.randint(0, row - 1), rng.randint(0, row - 1) if columns == 5 else None
        longest = row - max(at, of or 0)
        copy = [targets[number % batch], rng.randint(0, batch - 1), at, rng.choice((longest, rng.randint(1, longest)))]
        copy += [of] if columns == 5 else []
        valid = number < batch and rng.random() < 0.7
        if not valid:
            column = rng.randrange(columns)
            limit = (batch, batch, row, row - max(at, of or 0) + 1, row)[column]
            copy[column] = rng.choice((limit, limit, *((0, -2) if column == 3 else (-1, -1)), *FAR))
            outside += 1
        copies.append(copy)
        for tensor in range(tensors) if valid else ():
            to, source = ((tensor * batch + copy[side]) * step for side in (0, 1))
            content = src[source + (at if of is None else of) :][: copy[3]]
            expected[to + at :][: copy[3]] = content
            expected_slots[(tensor * count + number) * row :][: copy[3]] = content
    limits = [batch, row, batch, row]
    for into, want, side in ((dst, expected, (step, 0, 1)), (slots, expected_slots, (0, row, 0))):
        each = batch * step if into is dst else count * row
        places = torch.tensor([[t * each, *side, t * batch * step, step, 0, 1, *limits] for t in range(tensors)])
        skipped, tiles = torch.zeros(1, dtype=torch.int32), -(-row // TILE_BYTES)
        numbers = count, columns, tiles, tensors * count * tiles
        launch(
            "copy_rows", rng.randint(1, 5), into, src, places, torch.tensor(copies), skipped, *numbers, TILE=TILE_BYTES
        )
        assert torch.equal(into, want)
        assert skipped.item() == outside
