# SPDX-License-Identifier: Apache-2.0
"""The kernel and the op together: the interpreted kernel with the tables that the op makes; the warm-up, from compiling to
copies. On the simulated runtime, where a library of the host stands in for what hivmc makes.
"""

import logging
import struct
from pathlib import Path

import ascend_sim
import pytest
import torch
from byte_model import BUFFER_BYTES, BUFFERS, Call, calls, writers
from hypothesis import given, settings
from kernel_stand_in import kernel_in_use, stand_in
from kernel_utils import provide_compilers, run_interpreted
from npu_utils import checked_copy, scattered
from torch import Tensor
from utils import copy_cache_batch, filled, table

from llm_datadist_torch import warm_up
from llm_datadist_torch._native.warm_up import KernelUse, use_kernel

ARENA_BYTES = 2**26


def run_launch(launch: ascend_sim.Launch, form: str, arena: Tensor, arena_address: int) -> None:
    """Runs a launch with the interpreted kernel, on a copy of the device's memory from an address on."""
    assert [slot for slot, _ in launch.place_holders] == [40, 48, 56]
    ends = [begin for _, begin in launch.place_holders[1:]] + [len(launch.arguments)]
    tables = [
        torch.frombuffer(bytearray(launch.arguments[begin:end]), dtype=torch.int64).view(-1, columns)
        for (_, begin), end, columns in zip(launch.place_holders, ends, (3, 4, 3), strict=True)
    ]
    assert len(tables[0]) == launch.blocks
    bases = (
        arena[address - arena_address :][:4].view({"i32": torch.int32, "i8": torch.int8}[form])
        for address in struct.unpack_from("<2q", launch.arguments, 24)
    )
    run_interpreted(form, *bases, *tables)


@settings(max_examples=100)
@given(calls(batch=True))
def test_the_interpreted_kernel_with_the_tables_of_the_op(call: Call) -> None:
    ranges = call.ranges()
    if ranges is None or any(call.reasons()) or writers(ranges) is None or min(call.storage_bytes) < BUFFER_BYTES:
        return
    buffers = [filled(BUFFER_BYTES, dtype=torch.uint8, seed=seed).npu() for seed in range(BUFFERS)]
    before = [buffer.cpu() for buffer in buffers]
    dst, src = call.tensors(buffers)
    with kernel_in_use(), torch.no_grad():
        aligned = torch.zeros(2, 4, dtype=torch.uint8, device="npu")
        ascend_sim.reset()
        copy_cache_batch([aligned], [aligned], table([(0, 1, 0, -1)]))
        copy_cache_batch(dst, src, table(call.copies), batch_dim=call.batch_dim)
        torch.npu.synchronize()
    of_words, *launches = ascend_sim.launches()
    # Buffers for staging are near those of the test: torch_npu's allocator has small ones in a few pieces of 2 MiB.
    arena_address = min(buffer.data_ptr() for buffer in buffers) // 512 * 512 - ARENA_BYTES // 2
    arena = torch.empty(ARENA_BYTES, dtype=torch.uint8)
    places = [arena[buffer.data_ptr() - arena_address :][:BUFFER_BYTES] for buffer in buffers]
    for place, content in zip(places, before, strict=True):
        place.copy_(content)
    for launch in launches:
        run_launch(launch, "i32" if launch.function == of_words.function else "i8", arena, arena_address)
    for place, buffer in zip(places, buffers, strict=True):
        assert torch.equal(place, buffer.cpu())


def use_compilers(monkeypatch: pytest.MonkeyPatch, folder: Path, *units: int) -> None:
    """The compilers, of which the last makes a stand-in for elements of these sizes, for the forms in turn."""
    for number, unit in enumerate(units):
        (folder / f"{number}.so").write_bytes(stand_in(unit))
    provide_compilers(
        monkeypatch,
        folder,
        "Ascend910B3",
        f'number=$(ls {folder}/made* 2>/dev/null | wc -l); cp {folder}/$number.so "$output.o"; touch {folder}/made$number',
    )


def launched() -> int:
    dst, src = (scattered(160, 4, 64, seed=seed, backward=bool(seed)) for seed in (0, 1))
    return checked_copy(dst, src, 1, 2).launches


def test_warm_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    use_compilers(monkeypatch, tmp_path, 4, 1, 1)
    assert launched() == 0
    try:
        with caplog.at_level(logging.INFO):
            assert warm_up()
        assert [record.message.split(",")[0] for record in caplog.records] == [
            "compiling the kernel for Ascend910B3",
            f"the kernel is compiled and checked after {caplog.records[-1].args[0]:.1f} s",
        ]
        assert launched() == 1
        assert warm_up()  # from triton's cache: the compiler would find no fourth stand-in
    finally:
        use_kernel(0, KernelUse.NEVER)


@pytest.mark.parametrize("wish", [None, "always"])
def test_a_kernel_whose_copies_are_wrong_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, wish: str | None
) -> None:
    use_compilers(monkeypatch, tmp_path, 1, 1, 1)
    if wish is None:
        assert not warm_up()
        assert "copies within the NPU do not use the kernel: its copies of" in caplog.text
    else:
        monkeypatch.setenv("LLM_DATADIST_KERNEL", wish)
        with pytest.raises(RuntimeError, match=r"its copies of .* are wrong"):
            warm_up()
    assert launched() == 0
