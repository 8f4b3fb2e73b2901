# SPDX-License-Identifier: Apache-2.0
"""The ACL copies and waits that the NPU kernels use, called directly: what the runtime does, without the op."""

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .registry import DoesNotHold, NotTried

HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE = 1, 2, 3
KINDS = {HOST_TO_DEVICE: "host to device", DEVICE_TO_HOST: "device to host", DEVICE_TO_DEVICE: "within the device"}
SYNC_TIMEOUT = 507046  # ACL_ERROR_RT_STREAM_SYNC_TIMEOUT

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_size_t
_ARGUMENTS: dict[str, list[type]] = {
    "aclrtMemcpyAsync": [_POINTER, _SIZE, _POINTER, _SIZE, ctypes.c_int, _POINTER],
    "aclrtMemcpy2dAsync": [_POINTER, _SIZE, _POINTER, _SIZE, _SIZE, _SIZE, ctypes.c_int, _POINTER],
    "aclrtMemcpyBatchAsync": [*[_POINTER] * 4, _SIZE, _POINTER, _POINTER, _SIZE, _POINTER, _POINTER],
    "aclrtSynchronizeStreamWithTimeout": [_POINTER, ctypes.c_int32],
}


class _Location(ctypes.Structure):
    _fields_ = [("id", ctypes.c_uint32), ("type", ctypes.c_int)]


class _BatchAttribute(ctypes.Structure):
    """aclrtMemcpyBatchAttr."""

    _fields_ = [("dst", _Location), ("src", _Location), ("reserved", ctypes.c_uint8 * 16)]


def call(name: str, *args: object) -> int:
    """Calls a function of the runtime and returns its code.

    Raises:
        NotTried: The runtime has no such function.
    """
    try:
        function = getattr(_library(), name)
    except AttributeError:
        raise NotTried(f"the runtime has no {name}") from None
    function.argtypes = _ARGUMENTS[name]
    return int(function(*args))


def accepted(name: str, *args: object) -> None:
    """Calls a function of the runtime. Raises DoesNotHold with the code and the runtime's text if it is refused."""
    code = call(name, *args)
    if code != 0:
        raise DoesNotHold(f"{name} returned {code}: {_message()}")


def copy_2d(
    dst: Tensor, dst_pitch: int, src: Tensor, src_pitch: int, width: int, height: int, stream: int, kind: int
) -> int:
    """aclrtMemcpy2dAsync between the first bytes of two tensors."""
    return call("aclrtMemcpy2dAsync", dst.data_ptr(), dst_pitch, src.data_ptr(), src_pitch, width, height, kind, stream)


def copy_batch(dst: Sequence[Tensor], src: Sequence[Tensor], stream: int, device: torch.device, kind: int) -> None:
    """aclrtMemcpyBatchAsync of whole tensors. Raises DoesNotHold if it is refused."""
    count = len(dst)
    addresses = [(ctypes.c_void_p * count)(*(t.data_ptr() for t in tensors)) for tensors in (dst, src)]
    sizes = (_SIZE * count)(*(t.nbytes for t in dst))
    on_host, on_device = _Location(0, 0), _Location(device.index or 0, 1)
    to_device = kind == HOST_TO_DEVICE
    attribute = _BatchAttribute(on_device if to_device else on_host, on_host if to_device else on_device)
    index, failed = _SIZE(0), _SIZE(0)
    accepted(
        "aclrtMemcpyBatchAsync",
        *(addresses[0], sizes, addresses[1], sizes, count),
        *(ctypes.byref(attribute), ctypes.byref(index), 1, ctypes.byref(failed), stream),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL("libascendcl.so")


def _message() -> str:
    function = _library().aclGetRecentErrMsg
    function.restype = ctypes.c_char_p
    text = function()
    return text.decode(errors="replace").strip() if text else "no further message"
