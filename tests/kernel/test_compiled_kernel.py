# SPDX-License-Identifier: Apache-2.0
"""What the compilers make of the kernel, up to hivmc, the last of them, which is a part of CANN.

See Note [The loop of the kernel] in llm_datadist_torch/_native/kernel.py.
"""

import re
from pathlib import Path

import pytest
from kernel_utils import provide_compilers

from llm_datadist_torch._native.kernel import FORMS, TILE_BYTES, compile_for

UNIFIED_BUFFER = {"Ascend910B3": 192 * 1024, "Ascend910_9382": 192 * 1024, "Ascend950PR_9589": 248 * 1024}
"""Its bytes in each vector core of a chip."""


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chip: str, form: str | None) -> str:
    # Its output, which becomes the binary, is its input: the module that the compilers before it have made.
    provide_compilers(monkeypatch, tmp_path, chip, 'cp "$module" "$output.o"')
    return compile_for(chip, form).decode()


@pytest.mark.parametrize("form", [*FORMS, None])
@pytest.mark.parametrize("chip", UNIFIED_BUFFER)
def test_the_loop_is_dma_through_two_buffers(compiled: str, chip: str, form: str | None) -> None:
    """`copy_pieces` in its forms, and `copy_rows`."""
    assert f'"UB_SIZE", {8 * UNIFIED_BUFFER[chip]} : i32' in compiled  # in bits
    kernel = compiled[compiled.index(f"func.func @copy_{'pieces' if form else 'rows'}(") :]
    arguments, body = kernel.split("\n", 1)

    # The argument block: three addresses of the launcher, which a kernel without synchronisation does not use, then
    # those of the tables, then the grid.
    types = re.findall(r"%arg\d+: (\w+(?:<\?x\w+)?)", arguments)
    adds, form = form is None, form or "i8"
    tables = ["memref<?xi64"] * 2 + (["memref<?xi32", *["i64"] * 4] if adds else ["memref<?xi64"])
    assert types == ["i64", *["memref<?xi8"] * 2, *[f"memref<?x{form}"] * 2, *tables, *["i32"] * 3]
    assert not re.search(r"%arg[012]\b", body)

    # One load and one store, each a DMA of a whole piece. No other function: no vector work, no copy element by element.
    # copy_rows adds its count in the end, by DMA too.
    called = re.findall(r"call @(\w+)\(", body)
    name = {"i8": "int8_t", "i32": "int32_t"}[form]
    assert called[:2] == [f"load_gm_to_ubuf_1d_{name}", f"store_ubuf_to_gm_1d_{name}"]
    assert called[2:] == ["store_ubuf_to_gm_1d_int32_t"] * adds
    assert "PIPE_V" not in body

    # A load waits for the store before the last one, which has used its buffer: there are two events. One event would
    # be waited for by each load, and the buffers would not be used at the same time.
    waits = re.findall(r"wait_flag\[<PIPE_MTE3>, <PIPE_MTE2>, (.*?)\]", body)
    assert waits[0].startswith("%") and waits[1:] == ["<EVENT_ID0>", "<EVENT_ID1>"]

    # The two buffers, and a number for the count, are all that is in the unified buffer.
    constants = dict(re.findall(r"(%\w+) = (?:arith.constant |llvm.mlir.constant\()(\d+) : i64", body))
    found = re.findall(r"pointer_cast\((%\w+)\) : memref<(\d+)x(\w+), #hivm.address_space<ub>>", body)
    ranges = sorted((int(constants[at]), int(count), kind) for at, count, kind in found)
    assert sorted((count, kind) for _, count, kind in ranges if count > 1) == [(TILE_BYTES // FORMS[form], form)] * 2
    assert len(ranges) == 2 + adds
    ends = [at + count * FORMS[kind] for at, count, kind in ranges]
    assert all(end <= at for end, (at, _, _) in zip(ends, ranges[1:], strict=False))
    assert ends[-1] <= 2 * TILE_BYTES + 64 <= UNIFIED_BUFFER[chip]

    # One loop, over pieces. For the 950 it is written as branches.
    assert len(re.findall(r"scf\.for |scf\.while |cond_br .* \^bb2, ", body)) == 1
