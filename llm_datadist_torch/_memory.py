# SPDX-License-Identifier: Apache-2.0
"""The memory of caches: allocated by torch, or wrapped where it lies."""

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._checks import INT64, UINT64, as_int64, check_int
from ._products import check_served
from .status import LLMException, LLMParamInvalid, LLMStatusCode


def has_npu() -> bool:
    """Whether there is an NPU. torch_npu, where it is installed, makes torch.npu."""
    return hasattr(torch, "npu") and bool(torch.npu.is_available())


def device_of(on_device: bool, device_id: int | None) -> torch.device:
    """Where a cache lies: on an NPU, the current one unless said otherwise, or on the CPU where there is none.

    Raises:
        LLMException: LLM_PARAM_INVALID for a number that no NPU has, LLM_FEATURE_NOT_ENABLED for a chip that is not
            served.
    """
    if not on_device or not has_npu():
        return torch.device("cpu")
    npu = torch.get_device_module("npu")
    if device_id is not None and device_id >= npu.device_count():
        raise LLMParamInvalid(
            f"device_id ({device_id}) out of range [0, {npu.device_count()}), the NPUs that there are"
        )
    device = torch.device("npu", npu.current_device() if device_id is None else device_id)
    check_served(device)
    return device


def allocate(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor from torch's allocator, with anything in it. On the host of an NPU it is pinned.

    Raises:
        LLMException: LLM_DEVICE_OUT_OF_MEMORY or, for host memory, LLM_OUT_OF_MEMORY.
    """
    try:
        tensor = torch.empty(shape, dtype=dtype, device=device, pin_memory=device.type == "cpu" and has_npu())
        if tensor.data_ptr() == 0:  # torch_npu's answer where the host has no more memory to pin
            raise torch.OutOfMemoryError("no pinned memory")
    except RuntimeError as error:  # torch.OutOfMemoryError, and what the host's allocator raises
        code = LLMStatusCode.LLM_OUT_OF_MEMORY if device.type == "cpu" else LLMStatusCode.LLM_DEVICE_OUT_OF_MEMORY
        raise LLMException(f"cannot allocate shape {tuple(shape)}, {dtype} on {device}: {error}", code) from error
    return tensor


def wrap(
    addrs: Sequence[Any], count: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Tensors over memory that somebody else owns and that must outlive them; or the tensors given, if they fit.

    Raises:
        TypeError: An address that is not an int, nor all of them tensors.
        ValueError: An address that is no uint64.
        LLMException: LLM_PARAM_INVALID for another number than ``count``, address 0, memory beyond the last address, or
            tensors that are not as described.
    """
    if len(addrs) != count:
        raise LLMParamInvalid(f"addrs must hold {count} addresses (num_tensors), got {len(addrs)}")
    tensors = [addr for addr in addrs if isinstance(addr, Tensor)]
    if len(tensors) == count:
        for index, tensor in enumerate(tensors):
            wanted, got = (tuple(shape), dtype, device), (tuple(tensor.shape), tensor.dtype, tensor.device)
            if got != wanted:
                raise LLMParamInvalid(f"addrs[{index}] must be a tensor of {wanted}, as described, got {got}")
        return tensors

    size = math.prod(shape) * dtype.itemsize
    for index, addr in enumerate(addrs):
        check_int(f"addrs[{index}]", addr, UINT64)
        if addr == 0:
            raise LLMParamInvalid(f"addrs[{index}] (0) must not be 0")
        if addr + size > UINT64[1] or size > INT64[1]:
            raise LLMParamInvalid(f"addrs[{index}] ({addr}) plus {size} bytes runs past the last address")
    if device.type == "cpu":
        memory = (ctypes.c_char * size).from_address
        return [torch.frombuffer(memory(addr), dtype=dtype).view(tuple(shape)) for addr in addrs]
    import torch_npu

    # torch's own function of that name makes a storage that lacks what torch_npu keeps in its own.
    storages = [torch_npu._C._construct_storage_from_data_pointer(as_int64(addr), device, size) for addr in addrs]
    return [torch.empty(0, dtype=dtype, device=device).set_(storage).view(tuple(shape)) for storage in storages]
