# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the compiled libraries, and says what is wrong where that fails."""

import sys
from importlib.metadata import version
from pathlib import Path

LIBRARY = Path(__file__).with_name("libllm_datadist.so")
NPU_LIBRARY = Path(__file__).with_name("libllm_datadist_npu.so")
TORCH_NPU_VERSION = Path(__file__).with_name("torch_npu.version")  # written by setup.py with the NPU library

_INSTALL = "pip install --no-build-isolation --force-reinstall --no-deps"


def load() -> None:
    """Registers the ops and their kernels with torch: the NPU's only where torch_npu has been imported.

    torch imports torch_npu by itself where that is installed, unless TORCH_DEVICE_BACKEND_AUTOLOAD=0.

    Raises:
        ImportError: torch or a library cannot be loaded; the text lists the likely causes, and the original error is
            the cause.
    """
    try:
        import torch  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        # With torch_npu installed, `import torch` imports that too, and fails where the Ascend runtime is not found.
        raise ImportError(
            f"llm_datadist_torch needs torch, and importing torch failed: {error}\n"
            "If torch_npu is installed, likely causes are:\n"
            "  - the Ascend runtime (CANN) is not on the loader's path: source its set_env.sh, then try again\n"
            "  - torch_npu was made for another version of torch\n"
            "  - this machine has no NPU: set TORCH_DEVICE_BACKEND_AUTOLOAD=0 to go on with the CPU alone"
        ) from error
    _load(LIBRARY, f"In a checkout, build it with `{_INSTALL} -e .`")
    if "torch_npu" in sys.modules:
        _check_torch_npu_version()
        _load(NPU_LIBRARY, f"It was built without torch_npu. Build it again, with `{_INSTALL}`")


def _check_torch_npu_version() -> None:
    if TORCH_NPU_VERSION.exists() and TORCH_NPU_VERSION.read_text() != version("torch_npu"):
        raise ImportError(
            f"llm_datadist_torch was built against torch_npu {TORCH_NPU_VERSION.read_text()}, and torch_npu "
            f"{version('torch_npu')} is installed. Build it again, with `{_INSTALL}`"
        )


def _load(library: Path, how_to_get_it: str) -> None:
    import torch

    if not library.exists():
        raise ImportError(f"llm_datadist_torch has no {library.name}: {library} does not exist. {how_to_get_it}")
    try:
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(
            f"llm_datadist_torch could not load {library.name} into torch {torch.__version__}: {error}\n"
            f"The likely cause is that it was built against another version. Build it again, with `{_INSTALL}`"
        ) from error
