# SPDX-License-Identifier: Apache-2.0
"""Loading from Python and from C++, and the errors when it fails."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension
from utils import TESTS, run

import llm_datadist_torch
from llm_datadist_torch._native import library

MIB = 2**20


class TestImport:
    def test_version(self) -> None:
        assert re.fullmatch(r"\d+\.\d+\.\d+", llm_datadist_torch.__version__)

    def test_all_names_exist(self) -> None:
        assert all(hasattr(llm_datadist_torch, name) for name in llm_datadist_torch.__all__)

    def test_missing_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(library, "LIBRARY", TESTS / "libnone.so")
        with pytest.raises(ImportError, match=r"has no libnone\.so: .*libnone\.so does not exist"):
            library.load()

    def test_library_that_does_not_load(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        broken = tmp_path / "libbroken.so"
        broken.write_text("not a library")
        library.built_with(broken).write_text("{}")
        monkeypatch.setattr(library, "LIBRARY", broken)
        with pytest.raises(ImportError, match="built against another version") as failure:
            library.load()
        assert isinstance(failure.value.__cause__, OSError)

    def test_built_against_another_torch(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Checked before the library is opened."""
        old = tmp_path / "libold.so"
        old.write_text("not a library")
        library.built_with(old).write_text('{"torch": "2.6.0"}')
        monkeypatch.setattr(library, "LIBRARY", old)
        installed = re.escape(torch.__version__.partition("+")[0])
        with pytest.raises(ImportError, match=rf"built against torch 2\.6\.0, and torch {installed}\S* is installed"):
            library.load()

    @pytest.mark.parametrize(
        ("version", "release"),
        [
            ("2.9.0", "2.9.0"),
            ("2.9.0+cpu", "2.9.0"),
            ("2.9.0.post9", "2.9.0"),
            ("2.9.0.post9+cpu", "2.9.0"),
            ("2.9.1", "2.9.1"),
            ("2.15.0rc1+cpu", "2.15.0rc1"),
        ],
    )
    def test_release(self, version: str, release: str) -> None:
        assert library.release(version) == release

    def test_post_release_counts_as_its_release(self, monkeypatch: pytest.MonkeyPatch) -> None:
        installed = library.version
        monkeypatch.setattr(library, "version", lambda name: library.release(installed(name)) + ".post9")
        library.load()

    @pytest.mark.slow
    def test_broken_torch_npu(self, tmp_path: Path) -> None:
        """A torch_npu that cannot load makes `import torch` fail. The error says what to do."""
        (tmp_path / "torch_npu").mkdir()
        (tmp_path / "torch_npu/__init__.py").write_text("raise ImportError('libascendcl.so: cannot open')")
        (tmp_path / "torch_npu-0.dist-info").mkdir()
        (tmp_path / "torch_npu-0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 0\n")
        (tmp_path / "torch_npu-0.dist-info/entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:f\n")
        path = {"PYTHONPATH": str(tmp_path)}
        failed = run("python", "-c", "import llm_datadist_torch", code=1, **path)
        for part in ("importing torch failed", "libascendcl.so", "set_env.sh", "TORCH_DEVICE_BACKEND_AUTOLOAD=0"):
            assert part in failed.stderr
        run("python", "-c", "import llm_datadist_torch", TORCH_DEVICE_BACKEND_AUTOLOAD="0", **path)


class TestThreads:
    """The op uses torch's intra-op threads, and respects torch.set_num_threads."""

    CODE = """
import os, torch, llm_datadist_torch
def tasks(): return len(os.listdir("/proc/self/task"))
torch.set_num_threads({threads})
a, b = torch.empty(1, 1 << 26, dtype=torch.uint8), torch.empty(1, 1 << 26, dtype=torch.uint8)
{before}
n = tasks()
llm_datadist_torch.copy_cache([a], [b], size={size})
print(tasks() - n)
"""

    def threads_added(self, threads: int, size: int = -1, before: str = "") -> int:
        return int(run("python", "-c", self.CODE.format(threads=threads, size=size, before=before)).stdout)

    @pytest.mark.parametrize(
        ("threads", "size", "added"),
        [
            (1, 64 * MIB, 0),
            (2, 2 * MIB - 1, 0),
            (2, 2 * MIB, 1),
            (3, 64 * MIB, 2),
            (64, 8 * MIB - 1, 0),
            (64, 8 * MIB, 63),
            (320, 39 * MIB, 0),
        ],
    )
    def test_threads_are_bounded_by_bytes(self, threads: int, size: int, added: int) -> None:
        """torch creates, and wakes, all of its threads or none: none for less than 128 KiB each."""
        assert self.threads_added(threads, size) == added

    def test_thread_pool_is_shared_with_torch(self) -> None:
        assert self.threads_added(3, before="a.add_(1)") == 0


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
    """csrc/boxed_call.h lists the ops once more: an op that is missing there has no version counters and no refusals."""
    ops = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("llm_datadist::")]
    assert len(ops) == 4
    for key in ("ADInplaceOrView", "Autograd", "CompositeExplicitAutograd", "CompositeImplicitAutogradNestedTensor"):
        assert [op for op in ops if not torch._C._dispatch_has_kernel_for_dispatch_key(op, key)] == []
