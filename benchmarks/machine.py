# SPDX-License-Identifier: Apache-2.0
"""What figures and verdicts depend on: versions, chips, driver, CANN, host. No names of machines or users.

The benchmarks and the report of the assumptions (tests/npu/assumptions.py) write it into their files.
"""

import ctypes
import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("llm_datadist_torch", "torch", "torch_npu", "llm_datadist")
_SETTINGS = (
    "ASCEND_LAUNCH_BLOCKING",
    "ASCEND_RT_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "PYTORCH_NPU_ALLOC_CONF",
    "TASK_QUEUE_ENABLE",
)


def facts() -> dict[str, Any]:
    """All of it, for a JSON file."""
    npus, runtime = _npus(), {"cann": None, "driver": None, "simulated": False}
    if npus:
        runtime = {
            "cann": torch.get_device_module("npu").utils.get_cann_version() or None,
            "driver": _found(r"^Version\s*=\s*(\S+)", "/usr/local/Ascend/driver/version.info"),
            # The runtime of tests/ascend_sim: its times are not those of an NPU.
            "simulated": hasattr(ctypes.CDLL("libascendcl.so"), "ascend_sim_reset"),
        }
    return {
        "versions": {**{package: _version(package) for package in _PACKAGES}, "python": platform.python_version()},
        "host": {
            "processor": _found(r"model name\s*: (.*)", "/proc/cpuinfo") or platform.machine(),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": platform.platform(),
            "load": os.getloadavg()[0],
        },
        "npus": npus,
        "runtime": runtime,
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
    }


def summary(facts: dict[str, Any]) -> str:
    """What matters most, in two lines."""
    host, runtime = facts["host"], facts["runtime"]
    versions = ", ".join(f"{name} {found}" for name, found in facts["versions"].items() if found)
    chips = ", ".join(f"{npu['chip']} ({npu['memory_bytes'] / 2**30:.0f} GiB)" for npu in facts["npus"]) or "no NPU"
    cann = f", CANN {runtime['cann']}, driver {runtime['driver']}" if facts["npus"] else ""
    simulated = ", SIMULATED runtime: its times are not those of an NPU" if runtime["simulated"] else ""
    cpu = f"{host['processor']}, {host['cores']} cores, {host['threads']} threads, load {host['load']:.1f}"
    return f"{versions}\n{cpu}; {chips}{cann}{simulated}"


def _npus() -> list[dict[str, Any]]:
    if "torch_npu" not in sys.modules:  # torch imports an installed torch_npu itself
        return []
    npu = torch.get_device_module("npu")
    return [
        {"chip": npu.get_device_name(index), "memory_bytes": npu.get_device_properties(index).total_memory}
        for index in range(npu.device_count())
    ]


def _found(pattern: str, file: str) -> str | None:
    try:
        found = re.search(pattern, Path(file).read_text(), re.MULTILINE)
    except OSError:
        return None
    return found[1] if found else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
