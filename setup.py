# SPDX-License-Identifier: Apache-2.0
"""Builds the compiled libraries against the torch that is installed. The rest of the package is in pyproject.toml."""

import json
import os
import re
import runpy
import site
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

# `import torch` would import torch_npu too, which needs CANN. Building needs only its headers.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

# pip builds in an environment of its own, where the packages of the one it installs into are hidden. A torch installed
# there anew would be another one: what is built against that does not load into the torch that is used.
if find_spec("torch") is None:
    for folder in (*site.getsitepackages(), site.getusersitepackages()):
        site.addsitedir(folder)
if find_spec("torch") is None:
    sys.exit(
        "llm_datadist_torch is built against the torch that is installed, and there is none: install torch first. If it is "
        "installed, the installer (uv, say) hides it: pass --no-build-isolation, with setuptools>=77 and ninja installed"
    )

from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension, get_cxx_compiler

ROOT = Path(__file__).resolve().parent
release = runpy.run_path(str(ROOT / "llm_datadist_torch/_native/library.py"))["release"]
PACKAGES = {name: Path(spec.origin).parent for name in ("torch", "torch_npu") if (spec := find_spec(name))}
VERSIONS = {name: release(version(name)) for name in PACKAGES}

if VERSIONS.get("torch_npu", VERSIONS["torch"]).split(".")[:2] != VERSIONS["torch"].split(".")[:2]:
    sys.exit("torch_npu {torch_npu} is for another torch than {torch}, which is installed".format(**VERSIONS))

LEAST_GCC = 10


def check_compiler() -> None:
    """Says what is missing, where the build would end in errors within torch's headers, or in a library that is slow."""
    cxx = get_cxx_compiler()
    try:
        macros = subprocess.run([cxx, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"llm_datadist_torch needs g++ {LEAST_GCC} or newer, and `{cxx}` does not run ({error}): set CXX")
    defined = dict(re.findall(r"#define (\w+) (.+)", macros.stdout))
    if "__clang__" in defined:
        # Its OpenMP is another library than the one that torch brings, and would not know of torch's threads.
        sys.exit(f"llm_datadist_torch needs g++ {LEAST_GCC} or newer, and `{cxx}` is clang: set CXX")
    if int(defined["__GNUC__"]) < LEAST_GCC:
        sys.exit(f"llm_datadist_torch needs g++ {LEAST_GCC} or newer, and `{cxx}` is {defined['__VERSION__']}: set CXX")


class Build(BuildExtension):
    """Leaves beside each library the versions it was built against, for _native/library.py to compare with what it finds."""

    def run(self) -> None:
        check_compiler()
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
        # As system headers they give no warnings. torch_npu has the headers of ACL in a folder of their own.
        + [
            f"-isystem{PACKAGES[package] / 'include' / folder}"
            for package, folder in (
                ("torch", ""),
                ("torch", "torch/csrc/api/include"),
                ("torch_npu", ""),
                ("torch_npu", "third_party/acl/inc"),
            )
            if package in built_with
        ]
        # __FILE__ is in error texts. Where this machine keeps its files has no place there.
        + [f"-ffile-prefix-map={folder}/=" for folder in (ROOT, *(path.parent for path in PACKAGES.values()))],
        py_limited_api=True,  # keeps libtorch_python out
        **kwargs,
    )
    extension.built_with = built_with
    return extension


extensions = [
    library(
        "libllm_datadist",
        [".", "plan", "host", "boxed", "cpu", "meta"],
        ["torch"],
    )
]
if "torch_npu" in PACKAGES:
    extensions.append(
        library(
            "libllm_datadist_npu",
            ["plan", "host", "npu"],
            ["torch", "torch_npu"],
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
