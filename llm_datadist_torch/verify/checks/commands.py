# SPDX-License-Identifier: Apache-2.0
"""The runtime's copies, called as the NPU kernels call them: what the simulated runtime has from the documentation."""

from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ..._native import counters as _commands
from ..caches import CheckedCache, expect_batch, expect_bytes, expect_copy, place, scattered, stacked, synchronize
from ..registry import DoesNotHold, check, expect
from ..runtime import DEVICE_TO_DEVICE, DEVICE_TO_HOST, HOST_TO_DEVICE, KINDS, accepted, copy_2d, copy_batch

STRIDED = "caches that are stacked or views of one buffer: one command for each, else one for each tensor"
BATCHES = "lists copied between host and device: one command, else one for each tensor"

MAX_WIDTH, MAX_HEIGHT = 5_000_000, 5_242_880


def _memories(kind: int) -> tuple[str, str]:
    """The kinds of memory of dst and src. Host memory is pinned, as the runtime copies pageable memory at once."""
    return "pinned" if kind == DEVICE_TO_HOST else "device", "pinned" if kind == HOST_TO_DEVICE else "device"


def _stream(device: torch.device) -> int:
    return int(torch.get_device_module(device).current_stream(device).npu_stream)


def _random(size: int, seed: int) -> Tensor:
    return torch.randint(256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def try_2d(
    device: torch.device, kind: int, width: int, height: int, dst_pitch: int, src_pitch: int, *, at: tuple[int, int]
) -> None:
    """A strided copy that begins at the bytes ``at`` of two buffers: accepted, right, and nothing else written."""
    to, of = _memories(kind)
    dst_model, src_model = _random(at[0] + dst_pitch * height, 0), _random(at[1] + src_pitch * height, 1)
    dst, src = place(dst_model, device, to), place(src_model, device, of)
    rows = [model[start:].view(height, -1) for model, start in ((dst_model, at[0]), (src_model, at[1]))]
    rows[0][:, :width] = rows[1][:, :width]
    synchronize(device)
    code = copy_2d(dst[at[0] :], dst_pitch, src[at[1] :], src_pitch, width, height, _stream(device), kind)
    if code != 0:
        raise DoesNotHold(f"aclrtMemcpy2dAsync of {height} x {width} bytes {KINDS[kind]} returned {code}")
    synchronize(device)
    expect_bytes(dst, dst_model, "dst")


def try_plain(device: torch.device, kind: int, size: int, *, at: tuple[int, int]) -> None:
    """A plain copy that begins at the bytes ``at`` of two buffers: accepted, right, and nothing else written."""
    to, of = _memories(kind)
    dst_model, src_model = _random(at[0] + size + 64, 0), _random(at[1] + size + 64, 1)
    dst, src = place(dst_model, device, to), place(src_model, device, of)
    dst_model[at[0] : at[0] + size] = src_model[at[1] : at[1] + size]
    synchronize(device)
    addresses = dst.data_ptr() + at[0], src.data_ptr() + at[1]
    accepted("aclrtMemcpyAsync", addresses[0], size, addresses[1], size, kind, _stream(device))
    synchronize(device)
    expect_bytes(dst, dst_model, f"dst, for {size} bytes {KINDS[kind]}")


def try_batch(device: torch.device, kind: int, count: int, size: int, *, gap: int) -> None:
    """A batch of copies in opposite order: accepted, right, and nothing else written."""
    to, of = _memories(kind)
    dst_model, src_model = (_random(count * (size + gap), seed) for seed in range(2))
    dst, src = place(dst_model, device, to), place(src_model, device, of)

    def parts(buffer: Tensor) -> list[Tensor]:
        return list(buffer.view(count, size + gap)[:, :size])

    for one, other in zip(parts(dst_model), reversed(parts(src_model)), strict=True):
        one.copy_(other)
    synchronize(device)
    copy_batch(parts(dst), parts(src)[::-1], _stream(device), device, kind)
    synchronize(device)
    expect_bytes(dst, dst_model, "dst")


class _OfKind(Protocol):
    def __call__(self, device: torch.device, kind: int) -> str: ...


def _for_each_kind(name: str, assumes: str, used_by: str, run: _OfKind, *kinds: int) -> None:
    for kind in kinds:
        text = f"aclrtMemcpy{assumes}, {KINDS[kind]}"
        check(f"acl.{name}.{KINDS[kind].replace(' ', '_')}", text, used_by=used_by)(partial(run, kind=kind))


def _plain(device: torch.device, kind: int) -> str:
    try_plain(device, kind, 2**20, at=(0, 64))
    return ""


def _pitches(device: torch.device, kind: int) -> str:
    for dst_pitch, src_pitch in ((512, 512), (1024, 512), (512, 1024), (256, 256)):
        try_2d(device, kind, 256, 40, dst_pitch, src_pitch, at=(64, 128))
    return ""


def _width(device: torch.device, kind: int) -> str:
    try_2d(device, kind, MAX_WIDTH, 3, MAX_WIDTH + 64, MAX_WIDTH + 128, at=(0, 0))
    try:
        try_2d(device, kind, MAX_WIDTH + 64, 3, MAX_WIDTH + 64, MAX_WIDTH + 128, at=(0, 0))
    except DoesNotHold as error:
        return f"wider: {error}"
    return "wider ones are accepted too"


def _height(device: torch.device, kind: int) -> str:
    try_2d(device, kind, 8, MAX_HEIGHT, 8, 16, at=(0, 0))
    return ""


def _odd_2d(device: torch.device, kind: int) -> str:
    for width in (1, 3, 31, 63, 65, 511, 4097):
        try_2d(device, kind, width, 9, width + 2, width + 7, at=(1, 3))
    return ""


def _odd_plain(device: torch.device, kind: int) -> str:
    for size in (1, 2, 3, 31, 33, 63, 65, 511, 4097, 1_000_003):
        for at in ((0, 1), (1, 0), (7, 13)):
            try_plain(device, kind, size, at=at)
    return ""


def _batch(device: torch.device, kind: int) -> str:
    try_batch(device, kind, 100, 256, gap=64)
    return ""


def _large_batch(device: torch.device, kind: int) -> str:
    try_batch(device, kind, 4096, 64, gap=0)
    return ""


def _odd_batch(device: torch.device, kind: int) -> str:
    for size in (1, 3, 65, 4097):
        try_batch(device, kind, 9, size, gap=2)
    return ""


ALL, SIDES = (DEVICE_TO_DEVICE, HOST_TO_DEVICE, DEVICE_TO_HOST), (HOST_TO_DEVICE, DEVICE_TO_HOST)
_for_each_kind("plain", "Async copies 1 MiB", "every copy", _plain, *ALL)
_for_each_kind("strided", "2dAsync copies rows at the pitches of both sides", STRIDED, _pitches, *ALL)
_for_each_kind("strided_width", "2dAsync takes widths up to 5,000,000", STRIDED, _width, *ALL)
_for_each_kind("strided_height", "2dAsync takes heights up to 5,242,880", STRIDED, _height, *ALL)
_for_each_kind("strided_odd", "2dAsync takes any address, pitch and width", STRIDED, _odd_2d, *ALL)
_for_each_kind("plain_odd", "Async takes any address and size", "every copy", _odd_plain, *ALL)
_for_each_kind("batch", "BatchAsync copies 100 ranges", BATCHES, _batch, *SIDES)
_for_each_kind("batch_of_4096", "BatchAsync takes 4,096 ranges", BATCHES, _large_batch, *SIDES)
_for_each_kind("batch_odd", "BatchAsync takes any address and size", BATCHES, _odd_batch, *SIDES)


@check("commands.stacked", "a stacked cache is one strided copy", used_by=STRIDED)
def stacked_is_one_command(device: torch.device) -> str:
    dst, src = CheckedCache(stacked(160), device), CheckedCache(stacked(160), device, seed=1)
    before = _commands.issued()
    expect_copy(dst, src, 1, 2)
    found = _commands.issued() - before
    expect(found == _commands.Commands(strided=1), f"{found}")
    return f"{found}"


@check(
    "commands.batch", "a batch of copies between a list in pinned memory and the device is one command", used_by=BATCHES
)
def list_is_one_batch(device: torch.device) -> str:
    dst, src = (
        CheckedCache(scattered(160), device),
        CheckedCache(scattered(160, backward=True), device, "pinned", seed=1),
    )
    before = _commands.issued()
    expect_batch(dst, src, [(0, 1, 0, -1), (2, 3, 0, -1)])
    found = _commands.issued() - before
    expect(found == _commands.Commands(batch=1), f"{found}")
    return f"{found}"
