# SPDX-License-Identifier: Apache-2.0
"""Operators as tasks of a stream, and what the two calls of an operator refuse."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch_npu  # noqa: F401  registers torch.npu

import ascend_sim

FLOAT, ND, FRACTAL_NZ = 0, 2, 29
AICORE_EXCEPTION, INVALID = 507015, 107000


class TestTasks:
    """An operator is a task of its stream, like a copy."""

    def test_runs_late_and_in_order(self) -> None:
        total = torch.zeros(100).npu()
        one, doubled = torch.ones(100).npu(), torch.empty(100).npu()
        torch.npu.synchronize()
        with ascend_sim.stall_device():
            for _ in range(5):
                total.add_(one)
                doubled.copy_(total)
                doubled.mul_(2)
                total.copy_(doubled)
            assert not torch.npu.current_stream().query()
        assert total.cpu().unique().tolist() == [62]

    def test_streams_are_ordered_by_events_alone(self) -> None:
        x, y = torch.ones(100).npu(), torch.empty(100).npu()
        side, main = torch.npu.Stream(), torch.npu.current_stream()
        torch.npu.synchronize()
        with ascend_sim.stall_stream(side.npu_stream):
            with torch.npu.stream(side):
                x.add_(1)
                written = side.record_event()
            y.copy_(x)
            main.synchronize()
            assert y.cpu().unique().tolist() == [1]
            main.wait_event(written)
            y.copy_(x)
        assert y.cpu().unique().tolist() == [2]

    def test_captured_and_replayed_on_new_data(self) -> None:
        x, y = torch.zeros(100).npu(), torch.zeros(100).npu()
        graph = torch.npu.NPUGraph()
        ascend_sim.reset()
        with torch.npu.graph(graph):
            y.copy_(x * 2 + 1)
        captured = {"aclnnMuls", "aclnnAdds"}
        assert captured < ascend_sim.call_counts().keys()
        assert not y.cpu().any()
        for value in (3, 4):
            x.fill_(value)
            torch.npu.synchronize()
            ascend_sim.reset()
            graph.replay()
            assert y.cpu().unique().tolist() == [2 * value + 1]
            assert not captured & ascend_sim.call_counts().keys()

    def test_a_task_that_fails_writes_nothing_and_is_raised_by_the_next_synchronise(self) -> None:
        x = torch.ones(100).npu()
        ascend_sim.fail_task("aclnnInplaceAdds", code=507018)
        x.add_(1)
        with pytest.raises(RuntimeError, match="507018"):
            torch.npu.synchronize()
        x.add_(2)
        assert x.cpu().unique().tolist() == [3]

    @pytest.mark.parametrize("name", ["aclnnInplaceAdds", "aclnnInplaceAddsGetWorkspaceSize"])
    def test_a_call_that_fails(self, name: str) -> None:
        """In a process of its own, and with no queue: torch_npu drops everything after an error in it."""
        code = f"""
import torch, torch_npu, ascend_sim
x = torch.ones(100).npu()
ascend_sim.fail_call("{name}", code=507018)
try:
    x.add_(1)
except RuntimeError as error:
    print("{name}: failure injected by a test" in str(error))
print(x.add_(2).cpu().unique().tolist())
"""
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TASK_QUEUE_ENABLE": "0"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
        assert done.stdout.splitlines()[-2:] == ["True", "[3.0]"], done.stderr

    def test_what_torch_refuses_fails_the_task(self) -> None:
        x = torch.ones(4, 3).npu()
        x.index_select(0, torch.tensor([4]).npu())
        with pytest.raises(RuntimeError, match=r"aclnnIndexSelect: at execution, .*out of (range|bounds)"):
            torch.npu.synchronize()


class TestDirectCalls:
    """The two calls without torch_npu, which would not make these mistakes."""

    opapi = ctypes.CDLL("libopapi.so")
    opapi.aclCreateTensor.restype = ctypes.c_void_p
    opapi.aclCreateScalar.restype = ctypes.c_void_p

    def tensor(self, address: int, sizes: list[int], dtype: int = FLOAT, form: int = ND) -> ctypes.c_void_p:
        shape = (ctypes.c_int64 * len(sizes))(*sizes)
        strides = (ctypes.c_int64 * len(sizes))(*torch.empty(sizes, device="meta").stride())
        described = self.opapi.aclCreateTensor(
            shape, len(sizes), dtype, strides, ctypes.c_int64(0), form, shape, len(sizes), ctypes.c_void_p(address)
        )
        return ctypes.c_void_p(described)

    def negate(self, source: ctypes.c_void_p, result: ctypes.c_void_p) -> int:
        size, executor = ctypes.c_uint64(), ctypes.c_void_p()
        assert self.opapi.aclnnNegGetWorkspaceSize(source, result, ctypes.byref(size), ctypes.byref(executor)) == 0
        assert size.value == 0
        for described in (source, result):
            assert self.opapi.aclDestroyTensor(described) == 0
        return self.opapi.aclnnNeg(None, size, executor, None)

    def error(self) -> str:
        ascend_sim.library.aclGetRecentErrMsg.restype = ctypes.c_char_p
        return ascend_sim.library.aclGetRecentErrMsg().decode()

    @pytest.fixture
    def memory(self) -> Iterator[int]:
        address = ctypes.c_void_p()
        assert ascend_sim.library.aclrtMalloc(ctypes.byref(address), ctypes.c_size_t(24), 0) == 0
        assert address.value is not None
        yield address.value
        ascend_sim.library.aclrtFree(address)

    def test_it_runs(self, memory: int) -> None:
        assert self.negate(self.tensor(memory, [2, 3]), self.tensor(memory, [2, 3])) == 0
        assert ascend_sim.library.aclrtSynchronizeStream(None) == 0

    def test_past_the_end_of_the_allocation(self, memory: int) -> None:
        assert self.negate(self.tensor(memory, [6]), self.tensor(memory, [7])) == INVALID
        assert "runs past the allocation of 24 bytes" in self.error()

    def test_host_memory(self, memory: int) -> None:
        on_host = torch.zeros(6)
        assert self.negate(self.tensor(on_host.data_ptr(), [6]), self.tensor(memory, [6])) == INVALID
        assert "is not memory of device 0" in self.error()

    def test_memory_of_another_device(self, memory: int) -> None:
        there = torch.zeros(6).to("npu:1")
        assert self.negate(self.tensor(there.data_ptr(), [6]), self.tensor(memory, [6])) == INVALID
        assert "is not memory of device 0" in self.error()

    def test_memory_that_is_freed_before_the_task_runs(self) -> None:
        address = ctypes.c_void_p()
        assert ascend_sim.library.aclrtMalloc(ctypes.byref(address), ctypes.c_size_t(24), 0) == 0
        assert address.value is not None
        with ascend_sim.stall_device():
            assert self.negate(self.tensor(address.value, [6]), self.tensor(address.value, [6])) == 0
            assert ascend_sim.library.aclrtFree(address) == 0
        assert ascend_sim.library.aclrtSynchronizeStream(None) == AICORE_EXCEPTION
        assert "aclnnNeg: at execution" in (text := self.error()) and "is freed memory" in text

    def test_an_output_of_another_shape(self, memory: int) -> None:
        assert self.negate(self.tensor(memory, [2, 3]), self.tensor(memory, [6])) == 0
        assert ascend_sim.library.aclrtSynchronizeStream(None) == AICORE_EXCEPTION
        assert "tensor 1 of its arguments is described as [6] and has to be [2, 3]" in self.error()

    def test_an_internal_format(self, memory: int) -> None:
        assert self.negate(self.tensor(memory, [6], form=FRACTAL_NZ), self.tensor(memory, [6])) == INVALID
        assert "format 29 is not simulated" in self.error()

    def test_a_data_type_that_torch_lacks(self, memory: int) -> None:
        assert self.negate(self.tensor(memory, [6], dtype=29), self.tensor(memory, [6])) == INVALID
        assert "aclDataType 29 is not simulated" in self.error()
