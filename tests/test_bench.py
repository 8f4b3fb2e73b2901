# SPDX-License-Identifier: Apache-2.0
"""``python -m llm_datadist_torch bench``: its table, its JSON file, a way that copies wrong bytes."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from utils import run

from llm_datadist_torch.bench import cases, command
from llm_datadist_torch.bench.cases import OP

BENCH = ("python", "-m", "llm_datadist_torch", "bench")


@pytest.mark.slow
def test_quick_run(device: str, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = run(*BENCH, "--quick", "--device", device, "--json", file)
    written = json.loads(file.read_text())
    assert written["device"] == device
    results = written["results"]
    assert not [result for result in results if result["error"]]
    commands = {(r["caches"], r["row_bytes"]): r["commands"] for r in results if r["way"] == OP}
    layouts = {"stacked", "views", "scattered", "batch of 64 blocks"}
    if device == "npu":
        layouts |= {f"{host} to device" for host in ("pinned", "pageable")}
        layouts |= {f"device to {host}" for host in ("pinned", "pageable")}
        assert commands["stacked", 4096] == commands["views", 4096] == commands["pinned to device", 4096] == 1
        assert commands["scattered", 4096] == 160
    else:
        assert set(commands.values()) == {None}
    assert {caches for caches, _ in commands} == layouts
    for result in results:
        assert min(result[f"{part}_seconds"] for part in ("device", "host", "total")) > 0
        assert result["gb_per_second"] == pytest.approx(result["copied_bytes"] / result["device_seconds"] / 1e9)
        assert f"{result['caches']:<20} {result['row_bytes']:>7}  {result['way']} " in done.stdout


@pytest.mark.parametrize(
    ("way", "error"),
    [(lambda: None, "wrong bytes"), (lambda: 1 // 0, "ZeroDivisionError: integer division or modulo by zero")],
)
@pytest.mark.parametrize("layout", ["stacked", "batch of 64 blocks"])
def test_bad_way(way: object, error: str, layout: str) -> None:
    case = next(case for case in cases.cases(torch.device("cpu"), (64,)) if case.name == layout)
    assert command._error(case, way) == error
    assert command._error(case, case.ways[OP]) == ""


def test_original(tmp_path: Path) -> None:
    """The package itself under the name of LLM-DataDist, whose names it has."""
    (tmp_path / "llm_datadist.py").write_text("from llm_datadist_torch import *\n")
    program = """
import torch
from llm_datadist_torch.bench import original
class OnDevice(torch.Tensor):
    is_cpu = False
dst, src = ([torch.full((4, 64), value, dtype=torch.uint8).as_subclass(OnDevice)] for value in (0, 1))
original.original_copy(dst, src, 2, 1)()
print(dst[0].sum(1).tolist())
"""
    done = run("python", "-c", program, PYTHONPATH=str(tmp_path), TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert done.stdout == "[0, 0, 64, 0]\n"


def test_load_and_plot(tmp_path: Path) -> None:
    result = {"caches": "stacked", "row_bytes": 64, "way": OP, "error": "", "device_seconds": 1e-6}
    environment = {"npus": [], "host": {"processor": "P"}, "runtime": {"simulated": False}, "versions": {"torch": "2"}}
    file, page = tmp_path / "bench.json", tmp_path / "page.svg"
    file.write_text(json.dumps({"device": "cpu", "environment": environment, "results": [result]}))
    code = 0 if find_spec("matplotlib") else 2
    done = run(*BENCH, "--load", file, "--plot", page, code=code)
    if code == 0:
        assert "</svg>" in page.read_text()
    else:
        assert "--plot needs matplotlib" in done.stderr
