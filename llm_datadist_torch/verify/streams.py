# SPDX-License-Identifier: Apache-2.0
"""Keeps a stream of an NPU busy for a known time, so that order and waits become visible."""

import functools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .caches import synchronize
from .registry import DoesNotHold, NotTried

_LEAST = 2e-3  # seconds of one copy of a hold: many short ones would fill torch_npu's task queue, 4,096 long
_LARGEST = 2**30


class Hold:
    """Work that keeps a stream busy.

    Attributes:
        seconds: How long the work takes, as measured for the same work before.
    """

    def __init__(self, device: torch.device, stream: Any, seconds: float) -> None:
        npu = torch.get_device_module(device)
        buffers, unit = _unit(device)
        count = math.ceil(seconds / unit)
        self.seconds = count * unit
        with npu.stream(stream):
            for _ in range(count):
                buffers[0].copy_(buffers[1], non_blocking=True)
            self._end = npu.Event()
            self._end.record(stream)
        self._begin = time.monotonic()
        if self.over:
            raise NotTried("the work that should keep the stream busy was done at once")

    @property
    def over(self) -> bool:
        """Whether the work is done."""
        return bool(self._end.query())

    def expect_running(self, what: str) -> str:
        """Raises DoesNotHold if the hold has ended. Returns how early it was."""
        elapsed = time.monotonic() - self._begin
        if self.over:
            raise DoesNotHold(f"{what} after {elapsed * 1e3:.1f} ms, when the stream had become idle")
        return f"{what} after {elapsed * 1e3:.2f} ms, of {self.seconds * 1e3:.0f} ms that the stream was busy"


@contextmanager
def held(device: torch.device, stream: Any = None, seconds: float = 0.5) -> Iterator[Hold]:
    """Keeps a stream busy, the current one by default, and waits for the device at the end of the block."""
    npu = torch.get_device_module(device)
    _unit(device)
    synchronize(device)
    try:
        yield Hold(device, stream or npu.current_stream(device), seconds)
    finally:
        synchronize(device)


@functools.cache
def _unit(device: torch.device) -> tuple[tuple[Tensor, Tensor], float]:
    """Two buffers, and the seconds that a copy between them takes. Sized so that this is some milliseconds."""
    size = 2**22
    while True:
        buffers = (
            torch.empty(size, dtype=torch.uint8, device=device),
            torch.empty(size, dtype=torch.uint8, device=device),
        )
        seconds = _copy_seconds(buffers, device)
        if seconds >= _LEAST or size >= _LARGEST:
            return buffers, seconds
        size *= 2


def _copy_seconds(buffers: tuple[Tensor, Tensor], device: torch.device) -> float:
    times = []
    for _ in range(4):  # the first one touches the memory
        synchronize(device)
        begin = time.monotonic()
        for _ in range(4):
            buffers[0].copy_(buffers[1], non_blocking=True)
        synchronize(device)
        times.append((time.monotonic() - begin) / 4)
    return min(times)
