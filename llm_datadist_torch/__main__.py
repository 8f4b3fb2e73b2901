# SPDX-License-Identifier: Apache-2.0
"""``python -m llm_datadist_torch``: prints versions, libraries, devices and kernels, and runs a copy on each device.

If the package cannot be imported, this module does not run: the text of the ImportError gives the reason and the versions.
"""

import sys
from collections.abc import Iterator

import torch

from . import ops
from ._native import library
from .datadist.memory import check_served
from .datadist.status import LLMException

_KEYS = ("CPU", "PrivateUse1", "Meta", "CompositeExplicitAutograd", "ADInplaceOrView")  # PrivateUse1 is the NPU


def _report() -> Iterator[tuple[str, bool]]:
    """The lines of the report, each with False if it reports something broken."""
    has_npu = "torch_npu" in sys.modules
    yield library.environment(), True
    for file in (library.LIBRARY, *([library.NPU_LIBRARY] if has_npu else [])):
        yield f"{file}, built with {library.built_with(file).read_text()}", True
    if not has_npu:
        yield "torch_npu has not been imported: the CPU alone", True
    devices = ["cpu"]
    if has_npu:
        npu = torch.get_device_module("npu")
        yield f"CANN {npu.utils.get_cann_version() or 'of unknown version'}, NPUs: {npu.device_count()}", True
        if npu.device_count() > 0:
            devices.append("npu:0")
            yield _chip(torch.device("npu:0")), True
    for op in sorted(torch._C._dispatch_get_all_op_names()):
        if op.startswith("llm_datadist::") and not op.endswith("_views"):  # those call the others
            keys = [key for key in _KEYS if torch._C._dispatch_has_kernel_for_dispatch_key(op, key)]
            yield f"kernels of {op}: {', '.join(keys)}", "CPU" in keys and ("PrivateUse1" in keys or not has_npu)
    for device in devices:
        yield _self_check(device)


def _chip(device: torch.device) -> str:
    try:
        check_served(device)
    except LLMException as error:
        return str(error)
    return f"{device} is an {torch.get_device_module(device).get_device_name(device)}, which is served"


def _self_check(device: str) -> tuple[str, bool]:
    try:
        dst, src = (torch.randint(256, (3, 4, 1000), dtype=torch.uint8, device="cpu") for _ in range(2))
        expected = dst.clone()
        expected[:, 1, 5:905] = src[:, 2, 5:905]
        copied = dst.to(device)
        ops.copy_cache([copied], [src.to(device)], 1, 2, 5, 900, batch_dim=1)
        right = torch.equal(copied.cpu(), expected)
        return f"copy_cache on {device}: {'the bytes are right' if right else 'wrong bytes'}", right
    except Exception as error:  # any error belongs in the report
        return f"copy_cache on {device}: {type(error).__name__}: {error}", False


def main() -> int:
    """Prints the report. Returns the exit status: 1 if something is broken, 2 for arguments, which it does not take."""
    if len(sys.argv) > 1:
        print(f"python -m llm_datadist_torch takes no arguments, got {' '.join(sys.argv[1:])}", file=sys.stderr)
        return 2
    status = 0
    for line, works in _report():
        print(line if works else f"BROKEN: {line}")
        status = status if works else 1
    return status


if __name__ == "__main__":
    sys.exit(main())
