# SPDX-License-Identifier: Apache-2.0
"""Two NPUs."""

import torch

from ...ops import copy_cache
from ..caches import CheckedCache, expect_batch, expect_copy, scattered, stacked
from ..registry import DoesNotHold, NotTried, check, expect

SERVERS = "processes that use several NPUs"


def _other(device: torch.device) -> torch.device:
    count = torch.get_device_module(device).device_count()
    if count < 2:
        raise NotTried("needs two NPUs; this process sees one")
    return torch.device(device.type, ((device.index or 0) + 1) % count)


@check(
    "devices.not_current",
    "copies on an NPU that is not the current one are right, and leave the current one",
    used_by=SERVERS,
)
def not_current(device: torch.device) -> str:
    npu, other = torch.get_device_module(device), _other(device)
    current = npu.current_device()
    for to, of in (("device", "device"), ("device", "pinned"), ("pinned", "device"), ("pageable", "device")):
        for layout in (stacked(), scattered()):
            dst, src = CheckedCache(layout, other, to), CheckedCache(layout, other, of, seed=1)
            expect_copy(dst, src, 1, 2)
            expect_batch(dst, src, [(0, 1, 0, -1), (3, 2, 64, 128)])
    expect(npu.current_device() == current, f"the current device is {npu.current_device()}, and was {current}")
    return f"on {other}"


@check("devices.between_two_is_refused", "a copy between two NPUs is refused, with nothing written", used_by=SERVERS)
def between_two_is_refused(device: torch.device) -> str:
    dst, src = CheckedCache(stacked(), device), CheckedCache(stacked(), _other(device), seed=1)
    try:
        copy_cache(dst.tensors, src.tensors, 1, 2, batch_dim=1)
    except ValueError as error:
        expect("one NPU" in str(error), f"refused, but with: {error}")
    else:
        raise DoesNotHold("accepted")
    dst.expect_model()
    return ""
