# SPDX-License-Identifier: Apache-2.0
"""The kernel on the simulated runtime, where a library of the host stands in for its binary."""

import functools
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from llm_datadist_torch._native.warm_up import KernelUse, load_kernel, use_kernel


@functools.cache
def stand_in(unit: int) -> bytes:
    """The binary for elements of that many bytes."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.so"
        source = Path(__file__).parent / "kernel_stand_in.cpp"
        flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", f"-DUNIT={unit}"]
        subprocess.run(["g++", *flags, source, "-o", binary], check=True)
        return binary.read_bytes()


def load_stand_in(device: int = 0) -> None:
    with torch.npu.device(device):
        load_kernel(device, stand_in(4), stand_in(1), stand_in(1), 32_768)


@contextmanager
def kernel_in_use(use: KernelUse = KernelUse.ALWAYS) -> Iterator[None]:
    load_stand_in()
    use_kernel(0, use)
    try:
        yield
    finally:
        torch.npu.synchronize()
        use_kernel(0, KernelUse.NEVER)
