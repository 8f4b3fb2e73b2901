# SPDX-License-Identifier: Apache-2.0
"""Builds the compiled libraries. Everything else about the package is in pyproject.toml."""

import json
import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

# `import torch` would import torch_npu too, which needs CANN. Building needs only its headers.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).resolve().parent
PACKAGES = {name: Path(spec.origin).parent for name in ("torch", "torch_npu") if (spec := find_spec(name))}
# Versions are compared without what follows the +, as in 2.13.0+cpu: builds of one version have one C++ API.
VERSIONS = {name: version(name).split("+")[0] for name in PACKAGES}


class Build(BuildExtension):
    """Leaves beside each library the versions it was built against, for _library.py to compare with what it finds."""

    def run(self) -> None:
        super().run()
        for extension in self.extensions:
            built_with = Path(self.get_ext_fullpath(extension.name)).with_suffix(".built_with.json")
            built_with.write_text(json.dumps({name: VERSIONS[name] for name in extension.built_with}))

    def build_extension(self, extension: Extension) -> None:
        # A folder each for object files: the libraries share sources, which are compiled with other flags for each.
        shared = self.build_temp
        self.build_temp = os.path.join(shared, extension.name)
        super().build_extension(extension)
        self.build_temp = shared


def library(name: str, folders: list[str], built_with: list[str], **kwargs: list[str]) -> Extension:
    """A library of the C++ files in the given folders of csrc/.

    No Python module: it is for torch.ops.load_library, and for dlopen in C++ programs.
    """
    files = [path.relative_to(ROOT) for folder in folders for path in (ROOT / "csrc" / folder).glob("*.cpp")]
    extension = CppExtension(
        f"llm_datadist_torch.{name}",
        sorted(map(str, files)),
        # OpenMP is what at::parallel_for is made of. It is not linked: the symbols come from the libgomp that torch
        # brings, and a second one would not know of torch.set_num_threads.
        extra_compile_args=["-O3", "-g0", "-std=c++20", "-fopenmp", "-fvisibility=hidden", "-Wall"]
        # __FILE__ is in error texts. Where this machine keeps its files has no place there.
        + [f"-ffile-prefix-map={folder}/=" for folder in (ROOT, *(path.parent for path in PACKAGES.values()))],
        py_limited_api=True,  # keeps libtorch_python out
        **kwargs,
    )
    extension.built_with = built_with
    return extension


extensions = [
    library("libllm_datadist", [".", "plan", "host", "ad_inplace_or_view", "cpu", "meta", "unsupported"], ["torch"])
]
if "torch_npu" in PACKAGES:
    extensions.append(
        library(
            "libllm_datadist_npu",
            ["plan", "host", "npu"],
            ["torch", "torch_npu"],
            include_dirs=[str(PACKAGES["torch_npu"] / "include")],
            library_dirs=[str(PACKAGES["torch_npu"] / "lib")],
            libraries=["torch_npu"],
        )
    )

setup(
    # The libraries use torch's C++ ABI, which changes with every minor version.
    install_requires=[f"torch=={VERSIONS['torch']}"],
    ext_modules=extensions,
    cmdclass={"build_ext": Build.with_options(no_python_abi_suffix=True)},
    # No library uses Python's C API, so one wheel serves every Python.
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
