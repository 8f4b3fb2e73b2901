# SPDX-License-Identifier: Apache-2.0
"""Makes the kernel of an NPU ready: compiles it, loads it, and checks what it copies before any op uses it."""

import ctypes
import logging
import os
import time
from enum import IntEnum

import torch

from .library import npu_functions

_logger = logging.getLogger("LLM_DATADIST")  # that of datadist/log.py


class KernelUse(IntEnum):
    """Where the ops use the kernel of a device. As in csrc/npu/device_kernel.cpp."""

    NEVER = 0
    BY_ONE_THREAD = 1
    """By the thread that has loaded it."""
    WHERE_FASTER = 2
    ALWAYS = 3


def warm_up(device: int | None = None) -> bool:
    """Makes copies within an NPU use a kernel of its vector cores, where that is expected to be faster.

    Within the device, the runtime makes a task of each row. The kernel copies all rows of a call in one to three tasks.
    Call this once for each device, before the model runs. It compiles the kernel with triton-ascend, which takes seconds
    the first time (triton keeps the result on disk), and compares some copies by the kernel with copies on the CPU.
    Without triton-ascend or with a CANN before 8.5, copies stay tasks, and a warning says so.

    The environment variable ``LLM_DATADIST_KERNEL`` decides otherwise: ``never`` makes this function do nothing;
    ``always`` makes all copies within the device use the kernel, and this function raise what it otherwise warns of.

    Args:
        device: The index of the NPU; None for the current one.

    Returns:
        Whether the kernel is in use.

    Raises:
        ValueError: ``LLM_DATADIST_KERNEL`` is neither ``never`` nor ``always``.
        RuntimeError: With ``always``: the kernel cannot be compiled or loaded, or its copies are wrong.
    """
    wish = os.environ.get("LLM_DATADIST_KERNEL")
    if wish not in (None, "never", "always"):
        raise ValueError(f"expected LLM_DATADIST_KERNEL to be never or always, got {wish}")
    if wish == "never":
        return False
    try:
        _prepare(device, wish == "always")
    except Exception as error:
        reason = f"warm_up: copies within the NPU do not use the kernel: {error}"
        if wish == "always":
            raise RuntimeError(reason) from error
        _logger.warning("%s", reason)
        return False
    return True


def _prepare(device: int | None, always: bool) -> None:
    if not hasattr(torch, "npu"):
        raise RuntimeError("torch_npu is not imported")
    try:
        from . import kernel
    except ModuleNotFoundError:
        raise RuntimeError("triton-ascend is not installed") from None

    device = torch.npu.current_device() if device is None else device
    with torch.npu.device(device):
        started = time.monotonic()
        chip = torch.npu.get_device_name(device)
        _logger.info("compiling the kernel for %s, or taking it from triton's cache", chip)
        of_words, of_bytes, of_rows = (kernel.compile_for(chip, form) for form in ("i32", "i8", None))
        load_kernel(device, of_words, of_bytes, of_rows, kernel.TILE_BYTES)
        check_kernel(device)
        use_kernel(device, KernelUse.ALWAYS if always else KernelUse.WHERE_FASTER)
        _logger.info("the kernel is compiled and checked after %.1f s", time.monotonic() - started)


def load_kernel(device: int, of_words: bytes, of_bytes: bytes, of_rows: bytes, tile_bytes: int) -> None:
    """Loads the two forms of `copy_pieces` and `copy_rows`, for the current device. No op uses them before `use_kernel`."""
    binaries = of_words, of_bytes, of_rows
    error = npu_functions().llm_datadist_npu_load_kernel(
        device, (ctypes.c_char_p * 3)(*binaries), (ctypes.c_size_t * 3)(*map(len, binaries)), tile_bytes
    )
    if error is not None:
        raise RuntimeError(error.decode())


def use_kernel(device: int, use: KernelUse) -> None:
    npu_functions().llm_datadist_npu_use_kernel(device, use)


def skipped_rows(device: int | None = None) -> int:
    """How many rows of ``copies`` on an NPU copy_cache_batch has skipped, because they were not inside the caches.

    Of all calls and replays since `warm_up`; a row counts once in a call. Waits for the device.

    Args:
        device: The index of the NPU; None for the current one.
    """
    device = torch.get_device_module("npu").current_device() if device is None else device
    skipped: int = npu_functions().llm_datadist_npu_skipped_rows(device)
    return skipped


def check_kernel(device: int) -> None:
    """Raises RuntimeError if the kernel, used by this thread alone, copies other bytes than the CPU does."""
    generator = torch.Generator().manual_seed(0)
    use_kernel(device, KernelUse.BY_ONE_THREAD)
    try:
        for shape in ((3, 7, 1021), (40, 5, 4096), (2, 5, 100_003)):
            caches = [torch.randint(256, shape, generator=generator, dtype=torch.uint8) for _ in range(2)]
            for copies in ([(0, 1, 0, -1), (3, 2, 8, 900)], [(1, 3, 1, 1000), (4, 0, 5, 7)]):
                results = []
                for where, table in (("cpu", "cpu"), (f"npu:{device}", "cpu"), (f"npu:{device}", f"npu:{device}")):
                    dst, src = (cache.to(where, copy=True) for cache in caches)
                    torch.ops.llm_datadist.copy_cache_batch([dst], [src], torch.tensor(copies).to(table), batch_dim=1)
                    results.append(dst.cpu())
                if not all(torch.equal(results[0], result) for result in results[1:]):
                    raise RuntimeError(f"its copies of {copies} in a cache of shape {shape} are wrong")
    except BaseException:
        use_kernel(device, KernelUse.NEVER)
        raise
