# SPDX-License-Identifier: Apache-2.0
"""Every benchmark runs, and writes the same form of JSON. Their times are not tested."""

import json
from pathlib import Path

import pytest
from utils import ROOT, run

FOLDER = ROOT / "benchmarks"
ON_CPU = ["compiled", "copy_cache", "copy_cache_batch", "growth", "remote", "tail"]
ON_NPU = ["copy_cache", "kernel", "npu_work"]  # those that treat devices differently
BY_HAND = ["kernel_on_cuda", "vllm_offload"]  # with a GPU, and with vLLM

pytestmark = pytest.mark.slow


def test_every_benchmark(device: str, tmp_path: Path) -> None:
    """With this package under the name of LLM-DataDist, whose names it has; LLM-DataDist is timed on NPUs alone."""
    assert sorted({*ON_CPU, *ON_NPU, *BY_HAND, "bench", "machine"}) == sorted(path.stem for path in FOLDER.glob("*.py"))
    (tmp_path / "llm_datadist.py").write_text("from llm_datadist_torch import *\n")
    file, picture, ways = tmp_path / "figures.json", tmp_path / "growth.svg", set()
    for name in ON_CPU if device == "cpu" else ON_NPU:
        arguments = ["--tiny", "--device", device, "--json", file]
        arguments += ["--picture", picture] if name == "growth" else []
        done = run("python", FOLDER / f"{name}.py", *arguments, PYTHONPATH=f"{tmp_path}:{ROOT}")
        written = json.loads(file.read_text())
        assert (written["benchmark"], written["device"]) == (name, device)
        assert bool(written["environment"]["npus"]) == (device == "npu")
        for title, rows in written["tables"].items():
            assert f"\n{title}\n" in done.stdout
            for row in rows:
                assert "error" not in row
                assert min(value for column, value in row.items() if column.endswith("us") or column == "calls") > 0
                ways.add(row["way"])
    assert ("LLM-DataDist" in ways) == (device == "npu")
    assert picture.exists() == (device == "cpu")


def test_wrong_bytes(device: str) -> None:
    """A way that copies nothing is reported, and not timed."""
    program = f"""
import sys, copy_cache
sys.argv = ["copy_cache.py", "--tiny", "--device", "{device}"]
copy_cache.numpy_loop = copy_cache.pattern = lambda dst, src: lambda: None
sys.exit(copy_cache.main())
"""
    printed = run("python", "-c", program, code=1, PYTHONPATH=f"{FOLDER}:{ROOT}").stdout
    way = "NumPy loop" if device == "cpu" else "LLM-DataDist's pattern"
    lines = [line for line in printed.splitlines() if f"  {way} " in line]
    assert lines and all(line.rstrip().endswith("  wrong bytes") for line in lines)
