# SPDX-License-Identifier: Apache-2.0
"""Caches in several layouts and kinds of memory, each with a host model that plain PyTorch copies within."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ..datadist.memory import check_served
from ..datadist.status import LLMException
from ..ops import copy_cache, copy_cache_batch
from .registry import DoesNotHold, NotTried

Copies = Sequence[Sequence[int]]
"""The rows of ``copies``: dst_batch_index, src_batch_index, offset, size; the last two in bytes."""

TENSORS, BATCH, ROW = 6, 4, 512
"""The usual cache. Rows and addresses are multiples of 64 bytes: ``limits`` has the checks of others."""

_GAP = 64


@dataclass(frozen=True)
class Layout:
    """How the tensors of a cache lie in memory.

    Attributes:
        sizes: The sizes of its buffers, in bytes.
        views: Makes the tensors of the cache out of its buffers.
        batch_dim: The dimension of the tensors that is the batch.
    """

    sizes: Sequence[int]
    views: Callable[[Sequence[Tensor]], list[Tensor]]
    batch_dim: int = 0

    def rows(self, buffers: Sequence[Tensor], index: int) -> list[Tensor]:
        """The rows of a batch index as flat views, one for each tensor and index of the dimensions before the batch."""
        rows = [tensor.select(self.batch_dim, index) for tensor in self.views(buffers)]
        return [row for tensor in rows for row in (tensor.unbind() if self.batch_dim else (tensor,))]


def stacked(tensors: int = TENSORS, batch: int = BATCH, row: int = ROW) -> Layout:
    """One tensor, ``[tensors, batch, row]``."""
    return Layout([tensors * batch * row], lambda buffers: [buffers[0].view(tensors, batch, row)], 1)


def separate(tensors: int = TENSORS, batch: int = BATCH, row: int = ROW) -> Layout:
    """A list of tensors, each with memory of its own."""
    return Layout([batch * row] * tensors, lambda buffers: [buffer.view(batch, row) for buffer in buffers])


def views(tensors: int = TENSORS, batch: int = BATCH, row: int = ROW) -> Layout:
    """A list of views at equal distances in one buffer."""
    return Layout([tensors * batch * row], lambda buffers: list(buffers[0].view(tensors, batch, row)))


def scattered(tensors: int = TENSORS, batch: int = BATCH, row: int = ROW, *, backward: bool = False) -> Layout:
    """A list of views with gaps of different sizes. No stride fits a forward and a backward list."""
    starts = list(accumulate(batch * row + _GAP * (1 + index * index % 7) for index in range(tensors)))

    def cut(buffers: Sequence[Tensor]) -> list[Tensor]:
        cuts = [buffers[0][start : start + batch * row].view(batch, row) for start in starts]
        return cuts[::-1] if backward else cuts

    return Layout([starts[-1] + batch * row], cut)


def keys_and_values(tensors: int = TENSORS, batch: int = BATCH, row: int = ROW) -> Layout:
    """A list of ``[2, batch, row]``, one tensor for each layer."""
    return Layout(
        [2 * batch * row] * tensors, lambda buffers: [buffer.view(2, batch, row) for buffer in buffers], batch_dim=1
    )


def heads(tensors: int = TENSORS, batch: int = BATCH, row: int = ROW) -> Layout:
    """A list of ``[batch, 4 heads, row]`` with the heads in front: the rows of one head lie far apart."""
    return Layout(
        [4 * batch * row] * tensors,
        lambda buffers: [buffer.view(batch, 4, row).transpose(0, 1) for buffer in buffers],
        batch_dim=1,
    )


class CheckedCache:
    """A cache of random bytes in one kind of memory, and its model in host memory.

    Args:
        layout: How its tensors lie in memory.
        device: The device of the check.
        memory: ``device``, ``pinned`` or ``pageable``.
        seed: Decides the bytes.
    """

    def __init__(self, layout: Layout, device: torch.device, memory: str = "device", seed: int = 0) -> None:
        self.device = device
        generator = torch.Generator().manual_seed(seed)
        self.layout = layout
        self.model = [torch.randint(256, (size,), dtype=torch.uint8, generator=generator) for size in layout.sizes]
        self.buffers = [place(buffer, device, memory) for buffer in self.model]
        self.tensors = layout.views(self.buffers)

    def copy_model(self, src: "CheckedCache", copies: Copies) -> None:
        """Copies within the models, reading everything before anything is written."""
        before = [buffer.clone() for buffer in src.model]
        for dst_index, src_index, offset, size in copies:
            pairs = zip(self.layout.rows(self.model, dst_index), src.layout.rows(before, src_index), strict=True)
            for to, of in pairs:
                end = len(of) if size == -1 else offset + size
                to[offset:end] = of[offset:end]

    def expect_model(self) -> None:
        """Raises DoesNotHold if a byte of the buffers differs from the model. Waits for the device."""
        synchronize(self.device)
        for index, (buffer, model) in enumerate(zip(self.buffers, self.model, strict=True)):
            expect_bytes(buffer, model, f"buffer {index}")


def place(buffer: Tensor, device: torch.device, memory: str = "device") -> Tensor:
    """A copy of a host tensor in the kind of memory that is named."""
    if memory == "device":
        return buffer.clone() if device.type == "cpu" else buffer.to(device)
    return buffer.clone() if memory == "pageable" or device.type == "cpu" else buffer.pin_memory()


def synchronize(device: torch.device) -> None:
    """Waits for an NPU."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def require_served(device: torch.device) -> None:
    """Raises NotTried on a chip that CacheManager refuses."""
    try:
        check_served(device)
    except LLMException as error:
        raise NotTried(str(error)) from error


def expect_bytes(actual: Tensor, expected: Tensor, what: str) -> None:
    """Raises DoesNotHold, with the first byte that differs, unless the bytes are equal."""
    got, expected = actual.cpu().flatten(), expected.flatten()
    if not torch.equal(got, expected):
        different = torch.nonzero(got != expected).flatten()
        at = int(different[0])
        raise DoesNotHold(
            f"wrong bytes: {len(different)} of {len(expected)} in {what}, the first at {at}: {int(got[at])} in place of "
            f"{int(expected[at])}"
        )


def expect_copy(dst: CheckedCache, src: CheckedCache, *slice_: int) -> None:
    """Calls copy_cache and compares every byte of both caches with the models."""
    dst.copy_model(src, [_copy(*slice_)])
    copy_cache(dst.tensors, src.tensors, *slice_, batch_dim=dst.layout.batch_dim)
    dst.expect_model()
    src.expect_model()


def expect_batch(dst: CheckedCache, src: CheckedCache, copies: Copies) -> None:
    """Calls copy_cache_batch and compares every byte of both caches with the models."""
    dst.copy_model(src, copies)
    copy_cache_batch(dst.tensors, src.tensors, table(copies), batch_dim=dst.layout.batch_dim)
    dst.expect_model()
    src.expect_model()


def table(copies: Copies) -> Tensor:
    """The ``copies`` argument of copy_cache_batch."""
    return torch.tensor(copies, dtype=torch.int64).view(-1, 4)


def _copy(dst_index: int = 0, src_index: int = 0, offset: int = 0, size: int = -1) -> tuple[int, int, int, int]:
    return dst_index, src_index, offset, size
