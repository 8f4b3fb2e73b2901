# SPDX-License-Identifier: Apache-2.0
"""Keeps a stream busy with real work. Unlike a stall of the simulated runtime, this works on NPUs too."""

import functools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@functools.cache
def long_copy() -> tuple[Tensor, Tensor, float]:
    """Two buffers so large that few copies between them keep a stream busy, and the seconds of one copy."""
    dst, src = (torch.empty(2**27, dtype=torch.uint8, device="npu") for _ in range(2))
    times = []
    for _ in range(3):  # the first one touches the memory
        begin = time.monotonic()
        dst.copy_(src)
        torch.npu.synchronize()
        times.append(time.monotonic() - begin)
    return dst, src, min(times)


@contextmanager
def busy(stream: torch.npu.Stream | None = None, seconds: float = 0.3) -> Iterator[torch.npu.Event]:
    """Keeps a stream busy, the current one by default. Yields its end, and waits for the device afterwards."""
    stream = stream or torch.npu.current_stream()
    dst, src, unit = long_copy()
    torch.npu.synchronize()
    with torch.npu.stream(stream):
        for _ in range(math.ceil(seconds / unit)):
            dst.copy_(src, non_blocking=True)
        end = stream.record_event()
    assert not end.query(), "the stream was idle at once"
    yield end
    torch.npu.synchronize()
