# SPDX-License-Identifier: Apache-2.0
"""copy_blocks, swap_blocks and copy_tokens. See test_compile.py, test_export.py and npu/test_graphs.py for them in graphs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from utils import assert_same_bytes, cache, filled, nothing_written, to_host

from llm_datadist_torch import copy_blocks, copy_tokens, swap_blocks

PAIRS = [(0, 1), (1, 0), (2, 5), (5, 3)]  # source first: a swap, and a chain
GIVEN = {
    "list": PAIRS,
    "NumPy array": numpy.array(PAIRS),
    "tensor": torch.tensor(PAIRS),
    "transposed": torch.tensor(PAIRS).T.contiguous().T,
    "no pairs": [],
    "empty tensor": torch.empty(0, 2, dtype=torch.int64),
}


def reference(
    src: Sequence[Tensor],
    dst: Sequence[Tensor],
    pairs: Any,
    batch_dim: int,
    tokens: slice = slice(None),
    token_dim: int | None = None,
) -> list[Tensor]:
    """What dst holds after the call, in host memory, by indexing."""

    def part(tensor: Tensor, row: int) -> Tensor:
        index: list[Any] = [slice(None)] * tensor.dim()
        index[batch_dim] = row
        if token_dim is not None:
            index[token_dim] = tokens
        return tensor[tuple(index)]

    on_host = [(to_host(of), to_host(to)) for of, to in zip(src, dst, strict=True)]
    for of, to in on_host:
        for source, target in pairs:
            part(to, target).copy_(part(of, source))
    return [to for _, to in on_host]


class TestBlocks:
    @pytest.mark.parametrize("given", GIVEN)
    @pytest.mark.parametrize("batch_dim", [0, 1, 2])
    def test_within_and_between_caches(self, device: str, batch_dim: int, given: str) -> None:
        """[blocks, ...] and [2, blocks, ...] for each layer, [layers, 2, blocks, ...] for all; out to the host and in."""
        shape = ((), (2,), (3, 2))[batch_dim] + (6, 4, 2, 8)
        held, host = cache(2, *shape, dtype=torch.float16, device=device), cache(2, *shape, dtype=torch.float16, seed=1)
        pairs = PAIRS if len(GIVEN[given]) else []
        for call, src, dst in (
            (lambda: copy_blocks(held, GIVEN[given], batch_dim=batch_dim), held, held),
            (lambda: swap_blocks(host, held, GIVEN[given], batch_dim=batch_dim), host, held),
            (lambda: swap_blocks(held, host, GIVEN[given], 7, batch_dim=batch_dim), held, host),
        ):
            expected = reference(src, dst, pairs, batch_dim)
            with torch.device("meta"):  # as inside set_default_device
                call()
            assert_same_bytes(dst, expected)


# Shape, batch_dim, token_dim. There are 16 tokens.
LAYOUTS = {
    "[batch, heads, tokens, dim]": ((6, 2, 16, 8), 0, 2),
    "[batch, tokens, heads, dim]": ((6, 16, 2, 8), 0, 1),
    "[batch, tokens, dim]": ((6, 16, 8), 0, 1),
    "[2, blocks, block_size, heads, dim]": ((2, 6, 16, 2, 8), 1, 2),
    "[blocks, 2, heads, block_size, dim]": ((6, 2, 3, 16, 8), 0, 3),
    "[layers, batch, heads, tokens, dim]": ((3, 6, 2, 16, 8), 1, 3),
    "[tokens, batch, heads, dim]": ((16, 6, 2, 8), 1, 0),
}


class TestTokens:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, device: str, layout: str) -> None:
        shape, batch_dim, token_dim = LAYOUTS[layout]
        dims = {"batch_dim": batch_dim, "token_dim": token_dim}
        held, other = cache(2, *shape, device=device), cache(2, *shape, device=device, seed=1)
        for tokens in (slice(3), slice(2, 7), slice(5, None), slice(15, 16), slice(None)):
            for src in (held, other):
                expected = reference(src, held, PAIRS, batch_dim, tokens, token_dim)
                copy_tokens(src, held, PAIRS, tokens, **dims)
                assert_same_bytes(held, expected)

    def test_other_batch_and_length(self, device: str) -> None:
        """A prefilled request goes into a row of the running batch."""
        running, prefilled = cache(2, 4, 2, 16, 8, device=device), cache(2, 1, 2, 5, 8, device=device, seed=1)
        expected = reference(prefilled, running, [(0, 3)], 0, slice(5), 2)
        copy_tokens(prefilled, running, [(0, 3)], slice(5), token_dim=2)
        assert_same_bytes(running, expected)

    def test_tokens_of_several_sizes(self, device: str) -> None:
        """MLA keeps 512 elements and 64, int8 keys have scales of another dtype."""
        held = [filled(6, 16, 1, 512, device=device), filled(6, 16, 1, 64, dtype=torch.int8, device=device)]
        expected = reference(held, held, PAIRS, 0, slice(3, 9), 1)
        copy_tokens(held, held, PAIRS, slice(3, 9), token_dim=1)
        assert_same_bytes(held, expected)


ROWS = cache(2, 4, 2, 16, 8)  # [batch, heads, tokens, dim]
SHORT, TURNED = [t[:, :, :9] for t in ROWS], [t.view(4, 16, 2, 8) for t in ROWS]
copy_in_rows = partial(copy_tokens, token_dim=2)
PAIR, WITHIN = [(0, 1)], "must be a range within [0, 16), the tokens of src[0], without a step"
SIZES = "copy_tokens: expected the tokens of src[0] and dst[0] to have the same number and size, got slice(None, "
# The text of the refusal, and the call.
REFUSED: list[tuple[Any, ...]] = [
    ("copy_blocks: expected pairs of shape [n, 2], got [1, 3]", copy_blocks, ROWS, [(0, 1, 2)]),
    ("copy_blocks: expected pairs of shape [n, 2], got [2]", copy_blocks, ROWS, [0, 1]),
    ("swap_blocks: expected pairs of shape [n, 2], got [4, 1]", swap_blocks, ROWS, ROWS, torch.zeros(4, 1)),
    ("copy_tokens: expected pairs of shape [n, 2], got [1, 1]", copy_in_rows, ROWS, ROWS, [(0,)], slice(3)),
    ("expected copies of dtype Long (int64), got Float", copy_blocks, ROWS, [(0, 0.5)]),
    ("expected copies of dtype Long (int64), got Int", copy_blocks, ROWS, torch.tensor(PAIRS).int()),
    (
        "copies[1]: src_batch_index (4) out of range [0, 4), the batch of src[0] (req_id 7)",
        copy_blocks,
        ROWS,
        [(0, 1), (4, 2)],
        7,
    ),
    (
        "copies[0]: dst_batch_index (4) out of range [0, 4), the batch of dst[0] (req_id 7)",
        swap_blocks,
        ROWS,
        ROWS,
        [(0, 4)],
        7,
    ),
    ("copies[0] into dst[0] and copies[1] into dst[0] write the same bytes", copy_blocks, ROWS, [(0, 2), (1, 2)]),
    ("to hold the same number of tensors, got 2 and 1 (req_id 7)", copy_in_rows, ROWS[:1], ROWS, PAIR, slice(3), 7),
    *(
        (f"copy_tokens: tokens ({tokens}) {WITHIN}", copy_in_rows, ROWS, ROWS, PAIR, tokens)
        for tokens in (slice(17), slice(-1, None), slice(3, 3), slice(5, 3), slice(16, None), slice(0, 4, 2))
    ),
    ("must be a range within [0, 9), the tokens of dst[0]", copy_in_rows, ROWS, SHORT, PAIR, slice(16)),
    (f"{SIZES}None, None) of shapes [4, 2, 16, 8] and [4, 2, 9, 8]", copy_in_rows, ROWS, SHORT, PAIR, slice(None)),
    (
        f"{SIZES}2, None) of shapes [4, 2, 16, 8] and [4, 16, 2, 8]",
        *(partial(copy_tokens, token_dim=1), ROWS, TURNED, PAIR, slice(2)),
    ),
    *(
        (
            f"batch_dim ({batch}) and token_dim ({token}) must be two dimensions of src[0], got shape [4, 2, 16, 8]",
            *(partial(copy_tokens, batch_dim=batch, token_dim=token), ROWS, ROWS, PAIR, slice(2)),
        )
        for batch, token in ((0, 4), (0, 0), (-1, 2), (0, -2), (4, 2))
    ),
]


@pytest.mark.parametrize(("text", "call", "args"), [(text, call, args) for text, call, *args in REFUSED])
def test_refused(text: str, call: Any, args: list[Any]) -> None:
    with nothing_written(*ROWS), pytest.raises(ValueError, match=re.escape(text)):
        call(*args)


def test_tokens_of_another_type_are_refused() -> None:
    with nothing_written(*ROWS), pytest.raises(TypeError, match="copy_tokens: tokens must be a slice, got int"):
        copy_in_rows(ROWS, ROWS, PAIR, 3)
