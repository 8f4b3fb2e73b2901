# SPDX-License-Identifier: Apache-2.0
"""examples/disaggregated.py runs as documented, on the CPU and the NPU, and its check can fail."""

import importlib.util
import re
import sys

import pytest
import torch
from utils import ROOT, run

EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.slow


def test_as_a_user_runs_it(device: str) -> None:
    sizes = ("--requests=5", "--prompt=24", "--decode=4")
    lines = run("python", EXAMPLES / "disaggregated.py", *sizes, HF_HUB_OFFLINE="1").stdout.splitlines()
    assert f"5 requests of 24 tokens on {device}: 2 prompt processes, 2 decoders" in lines
    found = re.match(r"OK: logits equal those of one process \(max abs diff (\S+)\)", lines[-1])
    assert found, lines
    assert float(found[1]) <= 1e-5
    pulled = [float(size) for line in lines for size in re.findall(r"([\d.]+) MiB pulled", line)]
    assert pulled[1] == pytest.approx(5 * pulled[0], abs=0.3)


def test_its_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    spec = importlib.util.spec_from_file_location("disaggregated", EXAMPLES / "disaggregated.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "disaggregated", module)
    spec.loader.exec_module(module)
    tokens, logits = torch.zeros(2, 4, dtype=torch.int64), torch.rand(2, 4, 8)
    assert module.check((tokens[:1], logits[:1]), (tokens, logits), [0]) == 0
    with pytest.raises(AssertionError):
        module.check((tokens[:1], logits[1:]), (tokens, logits), [0])
