# SPDX-License-Identifier: Apache-2.0
"""Builds the compiled libraries. Everything else about the package is in pyproject.toml."""

from pathlib import Path

import torch
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent
CSRC = Path("csrc")


def sources(*folders: str) -> list[str]:
    """The C++ files of csrc/ itself and of the named folders, relative to this file as setuptools wants them."""
    return sorted(
        str(path.relative_to(ROOT)) for folder in (".", *folders) for path in (ROOT / CSRC / folder).glob("*.cpp")
    )


setup(
    # The libraries use torch's C++ ABI, which changes with every minor version.
    install_requires=[f"torch=={torch.__version__.split('+')[0]}", "numpy"],
    ext_modules=[
        CppExtension(
            # No Python module: a library for torch.ops.load_library, and for C++ programs with dlopen.
            "llm_datadist_torch.libllm_datadist",
            sources("ad_inplace_or_view", "composite", "cpu", "meta"),
            # OpenMP is what at::parallel_for is made of. It is not linked: the symbols come from the libgomp that
            # torch brings, and a second one would not know of torch.set_num_threads.
            extra_compile_args=["-O3", "-g0", "-std=c++20", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wextra"],
            py_limited_api=True,  # keeps libtorch_python out
        )
    ],
    cmdclass={"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)},
)
