# SPDX-License-Identifier: Apache-2.0
"""``python -m llm_datadist_torch`` without a command: prints what a problem report needs."""

import sys
from collections.abc import Iterator

import torch

from .. import ops
from ..datadist.memory import check_served
from ..datadist.status import LLMException
from . import library as _library

_KEYS = ("CPU", "PrivateUse1", "Meta", "CompositeExplicitAutograd", "ADInplaceOrView")  # PrivateUse1 is the NPU


def _report() -> Iterator[tuple[str, bool]]:
    """The lines of the report, each with False if it reports something broken."""
    has_npu = "torch_npu" in sys.modules
    yield _library.environment(), True
    for library in (_library.LIBRARY, *([_library.NPU_LIBRARY] if has_npu else [])):
        yield f"{library}, built with {_library.built_with(library).read_text()}", True
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
        if op.startswith("llm_datadist::"):
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
        dst, src = (torch.randint(256, (3, 4, 1000), dtype=torch.uint8) for _ in range(2))
        expected = dst.clone()
        expected[:, 1, 5:905] = src[:, 2, 5:905]
        copied = dst.to(device)
        ops.copy_cache([copied], [src.to(device)], 1, 2, 5, 900, batch_dim=1)
        right = torch.equal(copied.cpu(), expected)
        return f"copy_cache on {device}: {'the bytes are right' if right else 'wrong bytes'}", right
    except Exception as error:  # any error belongs in the report
        return f"copy_cache on {device}: {type(error).__name__}: {error}", False


def main() -> int:
    """Prints the report. Returns the exit status: 1 if something is broken."""
    status = 0
    for line, works in _report():
        print(line if works else f"BROKEN: {line}")
        status = status if works else 1
    return status
