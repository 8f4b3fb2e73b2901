# SPDX-License-Identifier: Apache-2.0
"""Builds the compiled libraries. Everything else about the package is in pyproject.toml."""

import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

# `import torch` would import torch_npu too, which needs CANN. Building needs only its headers.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent


def library(name: str, folders: list[str], **kwargs: list[str]) -> Extension:
    """A library of the C++ files in the given folders of csrc/.

    No Python module: it is for torch.ops.load_library, and for dlopen in C++ programs.
    """
    files = [path.relative_to(ROOT) for folder in folders for path in (ROOT / "csrc" / folder).glob("*.cpp")]
    return CppExtension(
        f"llm_datadist_torch.{name}",
        sorted(map(str, files)),
        # OpenMP is what at::parallel_for is made of. It is not linked: the symbols come from the libgomp that torch
        # brings, and a second one would not know of torch.set_num_threads.
        extra_compile_args=["-O3", "-g0", "-std=c++20", "-fopenmp", "-fvisibility=hidden", "-Wall"],
        py_limited_api=True,  # keeps libtorch_python out
        **kwargs,
    )


extensions = [library("libllm_datadist", [".", "plan", "ad_inplace_or_view", "composite", "cpu", "meta"])]
torch_npu = find_spec("torch_npu")
if torch_npu is not None:
    package = Path(torch_npu.origin).parent
    extensions.append(
        library(
            "libllm_datadist_npu",
            ["plan", "npu"],
            include_dirs=[str(package / "include")],
            library_dirs=[str(package / "lib")],
            libraries=["torch_npu"],
        )
    )
    # torch_npu's C++ API changes between versions; _library.py compares this with what it finds.
    (ROOT / "llm_datadist_torch/torch_npu.version").write_text(version("torch_npu"))

setup(
    # The libraries use torch's C++ ABI, which changes with every minor version.
    install_requires=[f"torch=={torch.__version__.split('+')[0]}", "numpy"],
    ext_modules=extensions,
    cmdclass={"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)},
)
