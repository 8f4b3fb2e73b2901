# SPDX-License-Identifier: Apache-2.0
"""The operators of the simulated runtime: right results, as tasks of a stream, on memory of its device alone."""

import ctypes
from collections.abc import Callable, Iterator

import pytest
import torch
import torch_npu  # noqa: F401  registers torch.npu
from torch import Tensor

import ascend_sim
from ascend_sim.acl_utils import acl, made, reason

FLOAT, ND = 0, 2
AICORE_EXCEPTION, INVALID = 507015, 107000


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


class TestDirectCalls:
    """The two calls without torch_npu, which would not make these mistakes."""

    opapi = ctypes.CDLL("libopapi.so")
    opapi.aclCreateTensor.restype = ctypes.c_void_p

    def tensor(self, address: int, count: int) -> ctypes.c_void_p:
        sizes, strides = (ctypes.c_int64 * 1)(count), (ctypes.c_int64 * 1)(1)
        numbers = (ctypes.c_int64(0), ND, sizes, 1, ctypes.c_void_p(address))
        return ctypes.c_void_p(self.opapi.aclCreateTensor(sizes, 1, FLOAT, strides, *numbers))

    def copy(self, dst: ctypes.c_void_p, src: ctypes.c_void_p) -> int:
        size, executor = ctypes.c_uint64(), ctypes.c_void_p()
        prepare = self.opapi.aclnnInplaceCopyGetWorkspaceSize
        assert prepare(dst, src, ctypes.byref(size), ctypes.byref(executor)) == 0
        for described in (dst, src):
            assert self.opapi.aclDestroyTensor(described) == 0
        return self.opapi.aclnnInplaceCopy(None, size, executor, None)

    @pytest.fixture
    def memory(self) -> Iterator[int]:
        address = made("aclrtMalloc", 24, 0)
        yield address
        acl("aclrtFree", address)

    def test_past_the_end_of_the_allocation(self, memory: int) -> None:
        assert self.copy(self.tensor(memory, 6), self.tensor(memory, 6)) == 0
        assert self.copy(self.tensor(memory, 6), self.tensor(memory, 7)) == INVALID
        assert "runs past the allocation of 24 bytes" in reason()
        assert acl("aclrtSynchronizeStream", None) == 0

    @pytest.mark.parametrize("device", ["cpu", "npu:1"])
    def test_memory_elsewhere(self, memory: int, device: str) -> None:
        there = torch.zeros(6).to(device)
        assert self.copy(self.tensor(memory, 6), self.tensor(there.data_ptr(), 6)) == INVALID
        assert "is not memory of device 0" in reason()

    def test_memory_that_is_freed_before_the_task_runs(self) -> None:
        address = made("aclrtMalloc", 24, 0)
        with ascend_sim.stall_device():
            assert self.copy(self.tensor(address, 6), self.tensor(address, 6)) == 0
            assert acl("aclrtFree", address) == 0
        assert acl("aclrtSynchronizeStream", None) == AICORE_EXCEPTION
        assert "aclnnInplaceCopy: at execution" in (text := reason())
        assert "is freed memory" in text
