# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the compiled library, and says what is wrong where that fails."""

from pathlib import Path

LIBRARY = Path(__file__).with_name("libllm_datadist.so")


def load() -> None:
    """Registers the ops and their kernels with torch.

    Raises:
        ImportError: torch or the library cannot be loaded; the text lists the likely causes, and the original error
            is the cause.
    """
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:
        # With torch_npu installed, `import torch` imports that too, and fails where the Ascend runtime is not found.
        raise ImportError(
            f"llm_datadist_torch needs torch, and importing torch failed: {error}\n"
            "If torch_npu is installed, likely causes are:\n"
            "  - the Ascend runtime (CANN) is not on the loader's path: source its set_env.sh, then try again\n"
            "  - torch_npu was made for another version of torch\n"
            "  - this machine has no NPU: set TORCH_DEVICE_BACKEND_AUTOLOAD=0 to go on with the CPU alone"
        ) from error

    if not LIBRARY.exists():
        raise ImportError(
            f"llm_datadist_torch has no compiled library: {LIBRARY} does not exist.\n"
            "In a checkout, build it with `pip install --no-build-isolation -e .`"
        )
    try:
        torch.ops.load_library(LIBRARY)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(
            f"llm_datadist_torch could not load {LIBRARY.name} into torch {torch.__version__}: {error}\n"
            "The likely cause is that it was built against another version of torch: build it again against this one, "
            "with `pip install --no-build-isolation --force-reinstall --no-deps`"
        ) from error
