# SPDX-License-Identifier: Apache-2.0
"""What differs between versions of CANN and between chips."""

import ctypes
import signal
import tempfile

import pytest
from fresh_process import run_code

from ascend_sim.acl_utils import D2D, D2H, H2D, Runtime, acl, exists, in_process


@pytest.mark.parametrize(
    ("cann", "version", "batch", "launch"),
    [
        ("8.1", b"8.1.RC1", False, False),
        ("8.3", b"8.3.RC1", True, False),
        ("8.5", b"8.5.0", True, True),
        ("9.0", b"9.0.0", True, True),
        ("9.1", b"9.1.0", True, True),
    ],
)
def test_functions_and_versions(cann: str, version: bytes, batch: bool, launch: bool) -> None:
    in_process(ASCEND_SIM_CANN=cann)(check_functions)(version=version, batch=batch, launch=launch)


def check_functions(version: bytes, batch: bool, launch: bool) -> None:
    found = ctypes.create_string_buffer(4096)
    assert acl("aclsysGetCANNVersion", 0, found) == 0
    assert found.value == version
    assert exists("aclrtMemcpyBatchAsync") == batch
    assert exists("aclrtLaunchKernelWithHostArgs") == launch
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
        ("8.5", "Ascend910B3", 100000),
        *(("9.0", chip, 0) for chip in ("Ascend910B4-1", "Ascend910_9391", "Ascend950PR_9589")),
        *(("9.1", chip, 100000) for chip in ("Ascend910B", "Ascend910", "Ascend310P3")),
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
    assert runtime.batch([runtime.device], [runtime.pinned], H2D)[0] == 207000


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
