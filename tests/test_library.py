# SPDX-License-Identifier: Apache-2.0
"""Loading from Python and from C++, and the errors when it fails."""

import re
from pathlib import Path

import pytest
import torch
from fresh_process import run_code
from torch.utils import cpp_extension
from utils import TESTS, run

import llm_datadist_torch
from llm_datadist_torch._native import library

MIB = 2**20


def test_names() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", llm_datadist_torch.__version__)
    assert all(hasattr(llm_datadist_torch, name) for name in llm_datadist_torch.__all__)


class TestImport:
    @pytest.mark.parametrize(
        ("built_with", "text"),
        [
            ("{}", "built against another version"),
            # Checked before the library is opened.
            ('{"torch": "2.6.0"}', r"built against torch 2\.6\.0, and torch \d+\.\S* is installed"),
        ],
    )
    def test_library_that_does_not_load(
        self, built_with: str, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        broken = tmp_path / "libbroken.so"
        broken.write_text("not a library")
        library.built_with(broken).write_text(built_with)
        monkeypatch.setattr(library, "LIBRARY", broken)
        with pytest.raises(ImportError, match=text) as failure:
            library.load()
        assert built_with != "{}" or isinstance(failure.value.__cause__, OSError)

    def test_post_release_counts_as_its_release(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for version in ("2.9.0", "2.9.0+cpu", "2.9.0.post9", "2.9.0.post9+cpu"):
            assert library.release(version) == "2.9.0"
        assert (library.release("2.9.1"), library.release("2.15.0rc1+cpu")) == ("2.9.1", "2.15.0rc1")
        installed = library.version
        monkeypatch.setattr(library, "version", lambda name: library.release(installed(name)) + ".post9")
        library.load()


@pytest.mark.parametrize(
    ("threads", "size", "before", "added"),
    [
        (1, 64 * MIB, "", 0),
        (2, 2 * MIB - 1, "", 0),
        (2, 2 * MIB, "", 1),
        (3, 64 * MIB, "", 2),
        (64, 8 * MIB - 1, "", 0),
        (64, 8 * MIB, "", 63),
        (320, 39 * MIB, "", 0),
        (3, 64 * MIB, "a.add_(1)", 0),  # the pool is shared with torch
    ],
)
def test_intra_op_threads(threads: int, size: int, before: str, added: int) -> None:
    """The op uses torch's threads. torch creates, and wakes, all of them or none: none for less than 128 KiB each."""
    code = f"""
import os, torch, llm_datadist_torch
def tasks(): return len(os.listdir("/proc/self/task"))
torch.set_num_threads({threads})
a, b = torch.empty(1, 1 << 26, dtype=torch.uint8), torch.empty(1, 1 << 26, dtype=torch.uint8)
{before}
n = tasks()
llm_datadist_torch.copy_cache([a], [b], size={size})
print(tasks() - n)
"""
    assert int(run_code(code).stdout) == added


@pytest.mark.slow
def test_loads_without_python(tmp_path: Path) -> None:
    """For C++ serving and AOTInductor: the library needs no symbol of libtorch_python or libpython."""
    program = tmp_path / "without_python"
    lib = str(Path(torch.__file__).parent / "lib")
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    link = (f"-L{lib}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl", f"-Wl,-rpath,{lib}")
    run("g++", "-std=c++20", "-O0", *includes, TESTS / "cpp/without_python.cpp", "-o", program, *link)
    printed = run(program, library.LIBRARY).stdout
    assert printed == "copy_cache: expected dst[1] to be a tensor, got an undefined one (req_id 7)\nOK\n"


def test_every_op_has_the_boxed_kernels() -> None:
    """csrc/boxed/call.h lists the ops once more: an op that is missing there has no version counters and no refusals."""
    ops = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("llm_datadist::")]
    assert len(ops) == 6
    for key in ("ADInplaceOrView", "Autograd", "CompositeExplicitAutograd"):
        assert [op for op in ops if not torch._C._dispatch_has_kernel_for_dispatch_key(op, key)] == []
