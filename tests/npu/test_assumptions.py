# SPDX-License-Identifier: Apache-2.0
"""The report of assumptions, on a file of tests that pass, fail, are skipped and are deselected."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from assumptions import Assumptions

TESTS = """
import pytest
assumed = pytest.mark.assumption

@assumed("one is one")
@pytest.mark.parametrize("one", [1, pytest.param(2, marks=pytest.mark.skip("two"))])
def test_one(one, record_property):
    record_property("measured", "1.0")
    assert one == 1

@assumed("two is one")
def test_two():
    assert 2 == 1, "two is more"

@assumed("three needs the handle")
@pytest.mark.simulated
def test_three():
    pass
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Assumptions:
    file, plugin = tmp_path / "test_numbers.py", Assumptions(str(tmp_path / "reports" / "junit.xml"))
    file.write_text(TESTS)
    options = ["-s", "-p", "no:faulthandler", "-p", "no:cacheprovider", "--import-mode=importlib", "-m"]
    pytest.main([*options, "not simulated", str(file)], [plugin])
    return plugin


def test_verdicts(capsys: pytest.CaptureFixture[str], plugin: Assumptions) -> None:
    printed = capsys.readouterr().out
    for line in (
        "holds     1 of  2 tests  one is one",
        "fails     1 of  1 tests  two is one",
        "not run   0 of  1 tests",
    ):
        assert f"\n{line}" in printed
    written = json.loads(plugin.file.read_text())
    assert plugin.file.name == "assumptions.json"
    assert written["environment"]["versions"]["torch"] == version("torch")
    assert [npu["chip"] for npu in written["environment"]["npus"]] == [torch.npu.get_device_name(0)] * 2
    one, two, three = written["assumptions"]
    assert (one["verdict"], two["verdict"], three["verdict"]) == ("holds", "fails", "not run")
    measured, skipped = one["tests"].values()
    assert measured["measured"] == "1.0" and "Skipped: two" in skipped["detail"]
    assert "two is more" in next(iter(two["tests"].values()))["detail"]


def test_a_test_that_ends_the_process(plugin: Assumptions) -> None:
    """Its start has been noted."""
    (test,) = plugin.tests["two is one"]
    plugin.pytest_runtest_logstart(test)
    (noted,) = json.loads(plugin.file.read_text())["assumptions"][1]["tests"].values()
    assert noted == {"outcome": "fails", "detail": "the process ended in this test"}
