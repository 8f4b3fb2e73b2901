# SPDX-License-Identifier: Apache-2.0
"""What figures and verdicts depend on: versions, chips, driver, CANN, host. No names of machines or users."""

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
_ASCEND = Path("/usr/local/Ascend")


def devices() -> list[str]:
    """The devices to use: the CPU, and the first NPU if there is one."""
    return ["cpu", *(["npu:0"] if _npu_count() else [])]


def facts() -> dict[str, Any]:
    """All of it, for a JSON file."""
    return {
        "versions": {**{package: _version(package) for package in _PACKAGES}, "python": platform.python_version()},
        "host": {
            "processor": processor(),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_bytes": _memory_bytes(),
            "system": platform.platform(),
            "load": os.getloadavg()[0],
        },
        "npus": [_npu(index) for index in range(_npu_count())],
        "runtime": _runtime(),
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
    }


def summary() -> str:
    """What matters most, in two lines."""
    all_ = facts()
    versions = ", ".join(f"{name} {found}" for name, found in all_["versions"].items() if found)
    chips = ", ".join(f"{npu['chip']} ({npu['memory_bytes'] / 2**30:.0f} GiB)" for npu in all_["npus"]) or "no NPU"
    cann = f", CANN {all_['runtime']['cann']}, driver {all_['runtime']['driver']}" if all_["npus"] else ""
    simulated = ", SIMULATED runtime" if all_["runtime"]["simulated"] else ""
    host = all_["host"]
    return f"{versions}\n{host['processor']}, {host['cores']} cores, load {host['load']:.1f}; {chips}{cann}{simulated}"


def processor() -> str:
    """The name of the processor."""
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _npu_count() -> int:
    # torch imports an installed torch_npu itself.
    return int(torch.get_device_module("npu").device_count()) if "torch_npu" in sys.modules else 0


def _npu(index: int) -> dict[str, Any]:
    npu = torch.get_device_module("npu")
    return {"chip": npu.get_device_name(index), "memory_bytes": npu.get_device_properties(index).total_memory}


def _runtime() -> dict[str, Any]:
    if _npu_count() == 0:
        return {"cann": None, "driver": None, "firmware": None, "simulated": False}
    return {
        "cann": torch.get_device_module("npu").utils.get_cann_version() or None,
        "driver": _info("driver"),
        "firmware": _info("firmware"),
        # The runtime of tests/ascend_sim says so itself: its figures are not those of an NPU.
        "simulated": hasattr(ctypes.CDLL("libascendcl.so"), "ascend_sim_reset"),
    }


def _info(part: str) -> str | None:
    try:
        found = re.search(r"^Version\s*=\s*(\S+)", (_ASCEND / part / "version.info").read_text(), re.MULTILINE)
    except OSError:
        return None
    return found[1] if found else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
