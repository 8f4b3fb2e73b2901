# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the compiled libraries, and explains failures."""

import ctypes
import functools
import json
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARY = Path(__file__).parents[1] / "libllm_datadist.so"
NPU_LIBRARY = Path(__file__).parents[1] / "libllm_datadist_npu.so"

_BUILD = "build it, in a checkout, with `pip install --no-build-isolation --force-reinstall --no-deps .`"


def load() -> None:
    """Registers the ops and their kernels with torch. Loads the NPU kernels only if torch_npu has been imported.

    torch imports an installed torch_npu itself, unless TORCH_DEVICE_BACKEND_AUTOLOAD=0.

    Raises:
        ImportError: torch or a library cannot be loaded, or is of another version than was built against; the text
            lists the likely causes and the versions found, and the original error is the cause.
    """
    try:
        import torch  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        # `import torch` imports an installed torch_npu, and fails if that does not find the Ascend runtime. The cause
        # names the missing library.
        reason = f"{error}\n{error.__cause__}" if error.__cause__ else f"{error}"
        raise _failure(
            f"llm_datadist_torch needs torch, and importing torch failed: {reason}\n"
            "If torch_npu is installed, likely causes are:\n"
            "  - the Ascend runtime (CANN) is not on the loader's path: source its set_env.sh, then try again\n"
            "  - torch_npu was made for another version of torch\n"
            "  - this machine has no NPU: set TORCH_DEVICE_BACKEND_AUTOLOAD=0 to go on with the CPU alone"
        ) from error
    _load(LIBRARY, f"To have it, {_BUILD}")
    if "torch_npu" in sys.modules:
        _load(NPU_LIBRARY, f"It was built without torch_npu: with that installed, {_BUILD}")


def built_with(library: Path) -> Path:
    """The file beside a library that records the versions it was built against, by package. Written by setup.py."""
    return library.with_suffix(".built_with.json")


def release(version: str) -> str:
    """The version that decides whether a library fits: 2.9.0 for 2.9.0+cpu and 2.9.0.post9.

    What follows the + names a build of the same sources, and post releases of torch_npu keep the C++ API.
    """
    return re.sub(r"(\.post\d+)?(\+.*)?$", "", version, count=1)


@functools.cache
def npu_functions() -> ctypes.CDLL:
    """The functions of the NPU library that are no ops."""
    library = ctypes.CDLL(str(NPU_LIBRARY))
    library.llm_datadist_npu_load_kernel.restype = ctypes.c_char_p
    library.llm_datadist_npu_load_kernel.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    library.llm_datadist_npu_skipped_rows.restype = ctypes.c_int64
    return library


def environment() -> str:
    """The versions that a problem report needs, in one line."""
    packages = ("llm_datadist_torch", "torch", "torch_npu")
    return ", ".join((*map(_found, packages), f"Python {platform.python_version()}", platform.platform()))


def _found(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} not installed"


def _failure(text: str) -> ImportError:
    return ImportError(f"{text}\nFound: {environment()}")


def _load(library: Path, how_to_get_it: str) -> None:
    import torch

    for file in (library, built_with(library)):
        if not file.exists():
            raise _failure(f"llm_datadist_torch has no {file.name}: {file} does not exist. {how_to_get_it}")
    # Compared before the library is opened: what the loader says of another version is an undefined symbol, or nothing.
    for package, built in json.loads(built_with(library).read_text()).items():
        if release(version(package)) != built:
            raise _failure(
                f"llm_datadist_torch: {library.name} was built against {package} {built}, and {_found(package)} is "
                f"installed: {_BUILD}"
            )
    try:
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise _failure(
            f"llm_datadist_torch could not load {library.name} into torch {torch.__version__}: {error}\n"
            f"The likely cause is that it was built against another version: {_BUILD}"
        ) from error
