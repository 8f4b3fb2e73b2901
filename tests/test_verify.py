# SPDX-License-Identifier: Apache-2.0
"""``python -m llm_datadist_torch verify``: every check on the device of the tests; checks that crash or hang."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from utils import run

from llm_datadist_torch.verify import runner
from llm_datadist_torch.verify.registry import all_checks
from llm_datadist_torch.verify.verdict import Verdict

VERIFY = ("python", "-m", "llm_datadist_torch", "verify")


@pytest.mark.slow
def test_every_check_holds(device: str, tmp_path: Path) -> None:
    """All but one is tried: a row of more than 4 GiB would take 9 GiB of the host's memory."""
    file = tmp_path / "verify.json"
    done = run(*VERIFY, "--device", device, "--memory", "1", "--json", file)
    written = json.loads(file.read_text())
    results = {result["check"]: result for result in written["results"]}
    assert list(results) == [name for name, check in all_checks().items() if device in check.devices]
    missing = {name: result["detail"] for name, result in results.items() if result["verdict"] != "holds"}
    assert missing == {"limits.over_4_gib": "needs 9.0 GiB; the limit of --memory is 1.0 GiB"}
    assert written["counts"] == {"holds": len(results) - 1, "does not hold": 0, "not tried": 1}
    for name, result in results.items():
        assert f" {device} {name}: {result['verdict']} (" in done.stdout
    environment = written["environment"]
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["host"]["cores"] > 0
    assert len(environment["npus"]) == (torch.npu.device_count() if device == "npu" else 0)


def test_list_runs_nothing() -> None:
    lines = run(*VERIFY, "refusals", "batch.cycles", "--list").stdout.splitlines()
    names = [line.split(" ")[0] for line in lines]
    assert names == [name for name in all_checks() if name.startswith("refusals.") or name == "batch.cycles"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(["orders"], "no check is named 'orders'"), (["order", "--device", "cpu"], "none of these checks is for cpu")],
)
def test_wrong_arguments(arguments: list[str], text: str) -> None:
    assert text in run(*VERIFY, *arguments, code=2).stderr


def test_a_crash_is_one_verdict() -> None:
    """The process does not know the first check, and ends. The second one runs in another process."""
    known = all_checks()["bytes.stacked"]
    results = list(runner.run([replace(known, name="unknown"), known], "cpu", deadline=120, memory=None))
    assert [result.verdict for result in results] == [Verdict.DOES_NOT_HOLD, Verdict.HOLDS]
    assert results[0].detail.startswith("the process ended: exit status 1; ")
    assert "KeyError: 'unknown'" in results[0].detail


def test_a_hang_is_a_verdict() -> None:
    """No process starts in a millisecond."""
    [result] = runner.run([all_checks()["bytes.stacked"]], "cpu", deadline=0.001, memory=None)
    assert result.verdict is Verdict.DOES_NOT_HOLD
    assert result.detail.startswith("no result after 0 s; exit status -9")


def test_every_assumption_is_said_once() -> None:
    assumptions = Counter(check.assumes for check in all_checks().values())
    assert max(assumptions.values()) == 1
    assert all(check.used_by for check in all_checks().values())
