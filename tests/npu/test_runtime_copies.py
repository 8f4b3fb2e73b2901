# SPDX-License-Identifier: Apache-2.0
"""The runtime's copies, called directly as csrc/npu calls them. The simulated runtime has them from the documentation."""

import ctypes

import pytest
import torch
from npu_utils import CANN, scattered
from torch import Tensor
from utils import check_copy, filled

from llm_datadist_torch._native.counters import RuntimeCalls, runtime_calls

HOST_TO_DEVICE, DEVICE_TO_HOST, WITHIN_THE_DEVICE = 1, 2, 3  # aclrtMemcpyKind
KINDS = {HOST_TO_DEVICE: "host to device", DEVICE_TO_HOST: "device to host", WITHIN_THE_DEVICE: "within the device"}
MAX_WIDTH, MAX_HEIGHT, MAX_BATCH = 5_000_000, 32_768, 4096

POINTER, SIZE = ctypes.c_void_p, ctypes.c_size_t
RUNTIME = ctypes.CDLL("libascendcl.so")
SIMULATED = hasattr(RUNTIME, "ascend_sim_reset")  # also where ASCEND_SIM_HIDDEN hides the handle
STRIDED_WITHIN = CANN >= (9, 0) or not SIMULATED
"""Whether there are to be strided copies within the device. test_profiles.py runs the simulated runtime of CANN 9.0."""
ARGUMENTS = {
    "aclrtMemcpyAsync": [POINTER, SIZE, POINTER, SIZE, ctypes.c_int, POINTER],
    "aclrtMemcpy2dAsync": [POINTER, SIZE, POINTER, SIZE, SIZE, SIZE, ctypes.c_int, POINTER],
    "aclrtMemcpyBatchAsync": [*[POINTER] * 4, SIZE, POINTER, POINTER, SIZE, POINTER, POINTER],
}


class BatchAttribute(ctypes.Structure):
    """aclrtMemcpyBatchAttr. A place is an id and a type: 0 for the host, 1 for a device."""

    _fields_ = [(f"{side}_{name}", ctypes.c_uint32) for side in ("dst", "src") for name in ("id", "type")]
    _fields_ += [("reserved", ctypes.c_uint8 * 16)]


def call(name: str, *arguments: object) -> int:
    """Calls a function of the runtime on the current stream, and waits. Returns its code."""
    torch.npu.synchronize()
    function = getattr(RUNTIME, name)
    function.argtypes = ARGUMENTS[name]
    code: int = function(*arguments, torch.npu.current_stream().npu_stream)
    torch.npu.synchronize()
    return code


def buffers(kind: int, dst_bytes: int, src_bytes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dst and src with random bytes, and copies of both in host memory. Of the two, those on the host are pinned."""
    on_host = [filled(size, dtype=torch.uint8, seed=size) for size in (dst_bytes, src_bytes)]
    dst = on_host[0].pin_memory() if kind == DEVICE_TO_HOST else on_host[0].npu()
    src = on_host[1].pin_memory() if kind == HOST_TO_DEVICE else on_host[1].npu()
    return dst, src, *on_host


def check(kind: int, width: int, height: int, pitches: tuple[int, int], starts: tuple[int, int] = (0, 0)) -> None:
    """Copies rows, or one row with a plain copy, and compares all bytes. Pitches and starts: of dst, of src."""
    dst, src, expected, source = buffers(kind, *(s + pitch * height for s, pitch in zip(starts, pitches, strict=True)))
    expected[starts[0] :].view(height, -1)[:, :width] = source[starts[1] :].view(height, -1)[:, :width]
    to, of, code = dst.data_ptr() + starts[0], src.data_ptr() + starts[1], 0
    if height == 1:
        assert call("aclrtMemcpyAsync", to, width, of, width, kind) == 0
    else:
        code = call("aclrtMemcpy2dAsync", to, pitches[0], of, pitches[1], width, height, kind)
        assert code == (0 if STRIDED_WITHIN or kind != WITHIN_THE_DEVICE else 100000)
    assert code or torch.equal(dst.cpu(), expected)


def check_ranges(kind: int, count: int, size: int, gap: int) -> None:
    """Copies ranges with one batch, the sources in opposite order, and compares all bytes."""
    views = [t.view(count, size + gap)[:, :size] for t in buffers(kind, *[count * (size + gap)] * 2)]
    dst, src, expected, source = views
    expected.copy_(source.flip(0))
    of_dst, of_src = ((POINTER * count)(*(row.data_ptr() for row in rows)) for rows in (dst, list(src)[::-1]))
    sizes, index, failed = (SIZE * count)(*[size] * count), SIZE(0), SIZE(0)
    attribute = BatchAttribute(dst_type=kind == HOST_TO_DEVICE, src_type=kind == DEVICE_TO_HOST)
    pointers = ctypes.byref(attribute), ctypes.byref(index), 1, ctypes.byref(failed)
    assert call("aclrtMemcpyBatchAsync", of_dst, sizes, of_src, sizes, count, *pointers) == 0
    assert torch.equal(dst._base.cpu(), expected._base)


def assumed(sentence: str, *kinds: int) -> pytest.MarkDecorator:
    """Runs a test for each kind of copy. Each is an assumption of its own."""
    marks = {kind: pytest.mark.assumption(f"{sentence}, {KINDS[kind]}") for kind in kinds or KINDS}
    return pytest.mark.parametrize("kind", [pytest.param(k, marks=mark, id=KINDS[k]) for k, mark in marks.items()])


@assumed("aclrtMemcpyAsync takes any address and size")
@pytest.mark.parametrize("starts", [(0, 1), (1, 0), (7, 13)])
def test_plain(kind: int, starts: tuple[int, int]) -> None:
    for size in (1, 2, 3, 31, 33, 63, 65, 511, 4097, 2**20):
        check(kind, size, 1, (size + 64, size + 64), starts)


@assumed("aclrtMemcpyAsync takes 4 GiB")
@pytest.mark.skipif(SIMULATED, reason="the simulated runtime would take 9 GiB from the host")
def test_4_gib(kind: int) -> None:
    check(kind, 2**32, 1, (2**32, 2**32))


@assumed("aclrtMemcpy2dAsync takes any address, width and pitch, of each side its own")
@pytest.mark.profiles
@pytest.mark.unaligned
@pytest.mark.parametrize("width", [1, 3, 31, 63, 65, 256, 511, 4097])
def test_strided(kind: int, width: int) -> None:
    check(kind, width, 9, (width + 2, width + 7), (1, 3))
    check(kind, width, 9, (width, 2 * width), (64, 128))


@assumed(f"aclrtMemcpy2dAsync takes widths up to {MAX_WIDTH:,}")
def test_wide(kind: int) -> None:
    check(kind, MAX_WIDTH, 3, (MAX_WIDTH + 64, MAX_WIDTH + 128))


@assumed(f"aclrtMemcpy2dAsync takes heights up to {MAX_HEIGHT:,}")
def test_high(kind: int) -> None:
    check(kind, 8, MAX_HEIGHT, (8, 16))


@assumed("aclrtMemcpyBatchAsync takes any address and size", HOST_TO_DEVICE, DEVICE_TO_HOST)
def test_batch(kind: int) -> None:
    for size in (1, 3, 65, 256, 4097):
        check_ranges(kind, 100, size, gap=2)


@assumed(f"aclrtMemcpyBatchAsync takes {MAX_BATCH:,} copies", HOST_TO_DEVICE, DEVICE_TO_HOST)
def test_large_batch(kind: int) -> None:
    check_ranges(kind, MAX_BATCH, 64, gap=0)


class TestNoFallback:
    """If the runtime refuses a call, the ops make plain copies. The bytes are right then, and only the count tells."""

    @pytest.mark.assumption("A row of a stacked cache is one strided copy")
    @pytest.mark.parametrize("pinned", [False, True])
    def test_stacked(self, pinned: bool) -> None:
        dst, src = filled(160, 4, 64, device="npu"), filled(160, 4, 64, seed=1)
        before = runtime_calls()
        check_copy([dst], [src.pin_memory() if pinned else src.npu()], 1, 2, batch_dim=1)
        strided = RuntimeCalls(strided=1) if pinned or STRIDED_WITHIN else RuntimeCalls(plain=160)
        assert runtime_calls() - before == strided

    @pytest.mark.assumption("A row of each tensor of a list, between pinned memory and the device, is one batch")
    @pytest.mark.parametrize("to_device", [True, False])
    def test_batch(self, to_device: bool) -> None:
        pair = scattered(160, 4, 64), scattered(160, 4, 64, device="cpu", pinned=True, seed=1, backward=True)
        before = runtime_calls()
        check_copy(*(pair if to_device else pair[::-1]), 1, 2)
        assert runtime_calls() - before == RuntimeCalls(batch=1)
