# SPDX-License-Identifier: Apache-2.0
"""The operators of the simulated runtime: right results, as tasks of a stream, on memory of its device alone."""

import ctypes
from collections.abc import Callable

import pytest
import torch
import torch_npu  # noqa: F401  registers torch.npu
from torch import Tensor

import ascend_sim
from ascend_sim.acl_utils import acl, made, reason

FLOAT, ND = 0, 2
OPAPI = ctypes.CDLL("libopapi.so")
OPAPI.aclCreateTensor.restype = ctypes.c_void_p
AICORE_EXCEPTION = 507015


@pytest.mark.parametrize(
    ("name", "compute"),
    [
        ("aclnnInplaceCopy", lambda x, y: x.to(torch.float16)),
        ("aclnnInplaceFillScalar", lambda x, y: x.clone().fill_(3)),
        ("aclnnInplaceZero", lambda x, y: x.clone().zero_()),
        ("aclnnAdd", lambda x, y: torch.add(x, y, alpha=2)),
        ("aclnnAdds", lambda x, y: torch.add(x, 1.5, alpha=2)),
        ("aclnnInplaceAdd", lambda x, y: x.clone().add_(y, alpha=2)),
        ("aclnnInplaceAdds", lambda x, y: x.clone().add_(1.5, alpha=2)),
    ],
)
def test_results(name: str, compute: Callable[[Tensor, Tensor], Tensor]) -> None:
    """On views with an offset, and with strides that are not those of a contiguous tensor."""
    x, y = torch.randn(2, 7, 9)[1, 1:6, 2:], torch.randn(7, 5).t()
    assert torch.equal(compute(x.npu(), y.npu()).cpu(), compute(x, y))
    assert ascend_sim.call_counts()[name] >= 1


def described(address: int, count: int) -> ctypes.c_void_p:
    sizes, strides = (ctypes.c_int64 * 1)(count), (ctypes.c_int64 * 1)(1)
    numbers = (ctypes.c_int64(0), ND, sizes, 1, ctypes.c_void_p(address))
    return ctypes.c_void_p(OPAPI.aclCreateTensor(sizes, 1, FLOAT, strides, *numbers))


def copied(dst: int, src: int, count: int) -> int:
    """The two calls without torch_npu, which would not make these mistakes. Returns what the stream says."""
    size, executor = ctypes.c_uint64(), ctypes.c_void_p()
    tensors = described(dst, 6), described(src, count)
    assert OPAPI.aclnnInplaceCopyGetWorkspaceSize(*tensors, ctypes.byref(size), ctypes.byref(executor)) == 0
    for tensor in tensors:
        assert OPAPI.aclDestroyTensor(tensor) == 0
    assert OPAPI.aclnnInplaceCopy(None, size, executor, None) == 0
    return acl("aclrtSynchronizeStream", None)


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("right", ""),
        ("short", "runs past the allocation of 24 bytes"),
        ("freed", "is freed memory"),
        ("cpu", "is not memory of device 0"),
        ("npu:1", "is not memory of device 0"),
    ],
)
def test_memory_is_checked_when_the_operator_runs(place: str, why: str) -> None:
    dst, src = made("aclrtMalloc", 24, 0), made("aclrtMalloc", 24, 0)
    there = torch.zeros(6).to(place) if place in ("cpu", "npu:1") else None
    if place == "freed":
        assert acl("aclrtFree", src) == 0
    code = copied(dst, src if there is None else there.data_ptr(), 7 if place == "short" else 6)
    assert code == (AICORE_EXCEPTION if why else 0)
    assert why in reason()
