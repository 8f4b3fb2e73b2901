# SPDX-License-Identifier: Apache-2.0
"""The devices of caches and their memory: allocated by torch, or wrapped in place."""

import ctypes
import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import INT64, UINT64, as_int64, check_int, check_type
from .status import LLMStatusCode, llm_error, param_invalid

# The chips of A2, A3, 950PR and 950DT. LLM-DataDist's pages exclude training machines of A2, but those have the same chips as
# inference machines of A2, so both are served. Ascend910B without a digit is a chip of the first generation.
SERVED = re.compile("Ascend(910B[0-9]|910_93|950)")


@functools.cache
def check_served(device: torch.device) -> None:
    """Refuses an NPU that LLM-DataDist does not serve.

    Raises:
        LLMException: LLM_FEATURE_NOT_ENABLED, naming the chip and those that are served.
    """
    if device.type == "npu":
        name = torch.get_device_module(device).get_device_name(device)
        if not SERVED.match(name):
            raise llm_error(
                LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
                f"{device} is an {name}, which is not served; served are Ascend910B1 to B4-1, Ascend910_93*, Ascend950*",
            )


def has_npu() -> bool:
    """Whether there is an NPU. Importing torch_npu adds torch.npu."""
    return hasattr(torch, "npu") and bool(torch.npu.is_available())


def make_current(device_id: int | list[int] | tuple[int, ...] | None) -> None:
    """Makes an NPU the current one, as LLM-DataDist's init does. Does nothing for None, without NPUs, or for one too many."""
    index = device_id[0] if isinstance(device_id, list | tuple) else device_id
    if index is not None and has_npu():
        npu = torch.get_device_module("npu")
        if index < npu.device_count():
            npu.set_device(index)


def device_of(on_device: bool, device_id: int | None) -> torch.device:
    """The device of a cache.

    Args:
        on_device: Whether the cache belongs on the NPU. If there is no NPU, it goes to the CPU.
        device_id: The index of the NPU, or None for the current one.

    Raises:
        LLMException: LLM_PARAM_INVALID for an index that no NPU has, LLM_FEATURE_NOT_ENABLED for a chip that is not
            served.
    """
    if not on_device or not has_npu():
        return torch.device("cpu")
    npu = torch.get_device_module("npu")
    if device_id is not None and device_id >= npu.device_count():
        raise param_invalid(f"device_id ({device_id}) out of range [0, {npu.device_count()}), the NPUs that there are")
    device = torch.device("npu", npu.current_device() if device_id is None else device_id)
    check_served(device)
    return device


# In torch_npu's cache of pinned memory, their address 0 would be returned again when there is memory.
_not_pinned: list[Tensor] = []


def allocate(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor from torch's allocator. Host memory is pinned if there is an NPU.

    Raises:
        LLMException: LLM_DEVICE_OUT_OF_MEMORY or, for host memory, LLM_OUT_OF_MEMORY. LLM_FAILED inside FakeTensorMode and
            transforms of torch.func, where torch makes tensors without memory.
    """
    pinned = device.type == "cpu" and has_npu()
    try:
        with torch.inference_mode(False):  # an inference tensor can be written in inference mode only
            tensor = torch.empty(shape, dtype=dtype, device=device, pin_memory=pinned)
        no_memory = _address(tensor) == 0
        if no_memory and pinned:  # torch_npu returns this when the host has no memory left to pin
            _not_pinned.append(tensor)
            raise torch.OutOfMemoryError("no pinned memory")
    except RuntimeError as error:  # torch.OutOfMemoryError, or the error of the host's allocator
        code = LLMStatusCode.LLM_OUT_OF_MEMORY if device.type == "cpu" else LLMStatusCode.LLM_DEVICE_OUT_OF_MEMORY
        raise llm_error(code, f"cannot allocate shape {tuple(shape)}, {dtype} on {device}: {error}") from error
    if no_memory:
        raise llm_error(
            LLMStatusCode.LLM_FAILED,
            f"a cache needs memory, got a {type(tensor).__name__} without: allocate it outside of FakeTensorMode and "
            "torch.func",
        )
    return tensor


def _address(tensor: Tensor) -> int:
    """The address of a tensor, 0 for one without memory."""
    try:
        return tensor.data_ptr() if type(tensor) is Tensor else 0  # a FakeTensor would warn
    except RuntimeError:  # a wrapper of torch.func
        return 0


def stack_of(tensors: Sequence[Tensor]) -> Tensor | None:
    """The tensors as one stacked view ``[tensors, ...]``, if they are views of one storage at equal distances.

    Views with version counters of their own, or with a gradient, stay apart: writing to the stack would not be seen.
    """
    first, begin = tensors[0], tensors[0].storage_offset()
    distance = tensors[1].storage_offset() - begin if len(tensors) > 1 else 0
    if distance <= 0 or not (first.is_inference() or first._is_view()):
        return None
    for index, tensor in enumerate(tensors):
        if (
            type(tensor) is not Tensor
            or tensor.requires_grad
            or tensor._base is not first._base
            or tensor.is_inference() is not first.is_inference()
            or tensor.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
            or tensor.storage_offset() != begin + index * distance
            or tensor.stride() != first.stride()
        ):
            return None
    return first.as_strided((len(tensors), *first.shape), (distance, *first.stride()), begin)


def wrap(
    addrs: Sequence[Any], count: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Tensors over memory owned by the caller, which must outlive them; or the given tensors, if they match.

    Args:
        addrs: The address of each tensor, or the tensors.
        count: How many there must be.
        shape: The shape of each tensor.
        dtype: The element type of each tensor.
        device: The device of the memory.

    Raises:
        TypeError: No sequence, or an address that is not an int, unless all are tensors.
        ValueError: An address that does not fit a uint64.
        LLMException: LLM_PARAM_INVALID for a length other than ``count``, address 0, memory beyond the last address, memory
            that torch has allocated on another device, or tensors that do not match the description.
    """
    check_type("addrs", addrs, Sequence)
    if len(addrs) != count:
        raise param_invalid(f"addrs must hold {count} addresses (num_tensors), got {len(addrs)}")
    tensors = [addr for addr in addrs if isinstance(addr, Tensor)]
    if len(tensors) == count:
        for index, tensor in enumerate(tensors):
            wanted, got = (tuple(shape), dtype, device), (tuple(tensor.shape), tensor.dtype, tensor.device)
            if got != wanted:
                raise param_invalid(f"addrs[{index}] must be a tensor of {wanted}, as described, got {got}")
        return tensors

    size = math.prod(shape) * dtype.itemsize
    addrs = [check_int(f"addrs[{index}]", addr, UINT64) for index, addr in enumerate(addrs)]
    for index, addr in enumerate(addrs):
        if addr == 0:
            raise param_invalid(f"addrs[{index}] (0) must not be 0")
        if addr + size > UINT64[1] or size > INT64[1]:
            raise param_invalid(f"addrs[{index}] ({addr}) plus {size} bytes runs past the last address")
    if has_npu():
        _check_owner(addrs, device)
    with torch.inference_mode(False):  # as in ``allocate``
        if device.type == "cpu":
            memory = (ctypes.c_char * size).from_address
            return [torch.frombuffer(memory(addr), dtype=dtype).view(tuple(shape)) for addr in addrs]
        import torch_npu

        # torch's own function of that name makes a storage without the fields that torch_npu adds to its storages.
        storages = [torch_npu._C._construct_storage_from_data_pointer(as_int64(addr), device, size) for addr in addrs]
        return [torch.empty(0, dtype=dtype, device=device).set_(storage).view(tuple(shape)) for storage in storages]


def _check_owner(addrs: Sequence[int], device: torch.device) -> None:
    """Refuses addresses that torch_npu has allocated on another device than this. Memory of others is not known here."""
    own = device.index if device.type == "npu" else None
    others = [s for s in torch.get_device_module("npu").memory_snapshot() if s["device"] != own]
    for index, addr in enumerate(addrs):
        for other in others:
            if other["address"] <= addr < other["address"] + other["total_size"]:
                raise param_invalid(
                    f"addrs[{index}] ({addr:#x}) is memory of npu:{other['device']}, but the cache is on {device}"
                )
