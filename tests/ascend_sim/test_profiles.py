# SPDX-License-Identifier: Apache-2.0
"""What differs between versions of CANN and between chips."""

import ctypes
import signal
import tempfile

import pytest
from fresh_process import run_code
from utils import run

import ascend_sim
from ascend_sim.acl_utils import D2D, D2H, H2D, Runtime, acl, exists, in_process


@pytest.mark.parametrize(
    ("cann", "version", "batch", "batch_v2"),
    [
        ("8.1", b"8.1.RC1", False, False),
        ("8.3", b"8.3.RC1", True, False),
        ("8.5", b"8.5.0", True, False),
        ("9.0", b"9.0.0", True, False),
        ("9.1", b"9.1.0", True, True),
    ],
)
def test_functions_and_versions(cann: str, version: bytes, batch: bool, batch_v2: bool) -> None:
    in_process(ASCEND_SIM_CANN=cann)(check_functions)(version=version, batch=batch, batch_v2=batch_v2)


def check_functions(version: bytes, batch: bool, batch_v2: bool) -> None:
    found = ctypes.create_string_buffer(4096)
    assert acl("aclsysGetCANNVersion", 0, found) == 0
    assert found.value == version
    assert exists("aclrtMemcpyBatchAsync") == batch
    assert exists("aclrtMemcpyBatchAsyncV2") == batch_v2
    assert exists("aclrtMemcpy2dAsync")
    assert not exists("aclrtThereIsNoSuchFunction")


def test_an_unknown_version_ends_the_process() -> None:
    code = "import ctypes; ctypes.CDLL('libascendcl.so').aclrtGetSocName()"
    assert (
        "ASCEND_SIM_CANN is 7.0, known are 8.1, 8.3," in run_code(code, -signal.SIGABRT, ASCEND_SIM_CANN="7.0").stderr
    )


@pytest.mark.parametrize(
    ("cann", "soc", "code"),
    [
        *(("8.1", "Ascend910B3", 100000), ("8.3", "Ascend910B3", 100000), ("8.5", "Ascend910B3", 100000)),
        *(("9.0", f"Ascend910{chip}", 0) for chip in ("B1", "B2C", "B3", "B4-1", "_9391")),
        ("9.1", "Ascend950PR_9589", 0),
        *(("9.1", chip, 100000) for chip in ("Ascend910B", "Ascend910A", "Ascend910", "Ascend310P3")),
    ],
)
def test_strided_copies_within_a_device(cann: str, soc: str, code: int) -> None:
    """Those between host and device are everywhere."""
    in_process(ASCEND_SIM_CANN=cann, ASCEND_SIM_SOC=soc)(check_strided)(code=code)


def check_strided(code: int) -> None:
    runtime = Runtime()
    assert runtime.strided(runtime.device, 64, runtime.other, 64, 32, 4, D2D) == code
    assert runtime.strided(runtime.device, 64, runtime.pinned, 64, 32, 4, H2D) == 0
    assert runtime.strided(runtime.pinned, 64, runtime.device, 64, 32, 4, D2H) == 0
    assert runtime.synchronize() == 0


@in_process(ASCEND_SIM_SOC="Ascend910B")
def test_batches_need_a_digit_after_ascend910b():
    """The chip of that name is of the first generation."""
    runtime = Runtime()
    assert runtime.batch([runtime.device], [runtime.pinned], [H2D])[0] == 207000


@pytest.mark.parametrize("profile", ascend_sim.PROFILES)
def test_torch_npu_copies(profile: str) -> None:
    """From pageable and from pinned memory to the device, and back."""
    code = """
import torch
numbers = torch.arange(512)
for there in (numbers.npu(), numbers.pin_memory().to("npu", non_blocking=True)):
    assert torch.equal(there.cpu(), numbers)
"""
    run_code(code, **ascend_sim.PROFILES[profile])


@in_process()
def test_a_default_device():
    """Since CANN 8.3, torch_npu names one, and sets none."""
    device = ctypes.c_int()
    assert acl("aclrtGetDevice", ctypes.byref(device)) == 107002
    with tempfile.NamedTemporaryFile("w") as file:
        file.write('{"defaultDevice": {"default_device": "0"}}')
        file.flush()
        assert acl("aclInit", file.name.encode()) == 0
    assert (acl("aclrtGetDevice", ctypes.byref(device)), device.value) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("cann", ["8.1", "9.1"])
def test_torch_npu_accepts_the_version(cann: str) -> None:
    """torch_npu reads it while it is imported, which is before ``run_code`` sets it."""
    run("python", "-c", "import torch; torch.ones(64).npu().fill_(2).cpu()", ASCEND_SIM_CANN=cann)
