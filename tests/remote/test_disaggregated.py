# SPDX-License-Identifier: Apache-2.0
"""examples/disaggregated.py runs as documented, and its check can fail."""

import re

import pytest
import torch
from utils import ROOT, load_example, run

EXAMPLE = ROOT / "examples" / "disaggregated.py"
pytestmark = pytest.mark.slow


def test_as_a_user_runs_it() -> None:
    sizes = ("--requests=5", "--prompt=24", "--decode=4")
    lines = run("python", EXAMPLE, *sizes, HF_HUB_OFFLINE="1").stdout.splitlines()
    assert "5 requests of 24 tokens on cpu: 2 prompt processes, 2 decoders" in lines
    found = re.match(r"OK: logits equal those of one process \(max abs diff (\S+)\)", lines[-1])
    assert found, lines
    assert float(found[1]) <= 1e-5
    pulled = [float(size) for line in lines for size in re.findall(r"([\d.]+) MiB pulled", line)]
    assert pulled[1] == pytest.approx(5 * pulled[0], abs=0.3)


def test_its_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    check = load_example("disaggregated").check
    tokens, logits = torch.zeros(2, 4, dtype=torch.int64), torch.rand(2, 4, 8)
    assert check((tokens[:1], logits[:1]), (tokens, logits), [0]) == 0
    with pytest.raises(AssertionError):
        check((tokens[:1], logits[1:]), (tokens, logits), [0])
