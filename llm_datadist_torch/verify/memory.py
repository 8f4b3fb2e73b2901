# SPDX-License-Identifier: Apache-2.0
"""How much memory the checks may use."""

import os
from pathlib import Path

import torch

from .registry import NotTried

VARIABLE = "LLM_DATADIST_VERIFY_GIB"
"""The environment variable that hands the limit of the command line to the process that runs the checks."""


def require_memory(device: torch.device, size: int) -> None:
    """Raises NotTried unless that many bytes are free, and within the limit of the command line.

    The host needs them too, so that devices whose memory is simulated in host memory are no exception.
    """
    limit = float(os.environ.get(VARIABLE, "inf"))
    free = [("the limit of --memory", limit * 2**30), ("free host memory", _free_host_bytes())]
    if device.type != "cpu":
        free.append((f"free memory of {device}", torch.get_device_module(device).mem_get_info(device)[0]))
    for what, bytes_ in free:
        if bytes_ < size:
            raise NotTried(f"needs {size / 2**30:.1f} GiB; {what} is {bytes_ / 2**30:.1f} GiB")


def _free_host_bytes() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), float("inf"))
