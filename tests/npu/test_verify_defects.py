# SPDX-License-Identifier: Apache-2.0
"""``verify`` on runtimes that differ from the documentation: each difference turns the verdicts that name it."""

import pytest

from llm_datadist_torch._native import machine
from llm_datadist_torch.verify import runner
from llm_datadist_torch.verify.registry import all_checks
from llm_datadist_torch.verify.verdict import Verdict

pytestmark = pytest.mark.simulated

# For each defect of the simulated runtime: a check that still holds, and checks that do not, with what they find.
DEFECTS = {
    "refuses-2d": (
        "bytes.stacked",  # plain copies are issued instead
        {
            "acl.strided.within_the_device": "aclrtMemcpy2dAsync of 40 x 256 bytes within the device returned 100000",
            "commands.stacked": "Commands(plain=160, strided=0, batch=0)",
        },
    ),
    "ignores-pitch": ("acl.plain.within_the_device", {"acl.strided.within_the_device": "wrong bytes: "}),
    "ignores-waits": (
        "order.one_stream",
        {"order.two_streams": "wrong bytes: ", "manager.timeout": "no timeout"},
    ),
    "align-64": (
        "bytes.scattered",
        {"acl.plain_odd.within_the_device": "aclrtMemcpyAsync returned 107000: "},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("defect", DEFECTS)
def test_defect(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASCEND_SIM_DEFECT", defect)
    holds, found = DEFECTS[defect]
    checks = [check for name, check in all_checks().items() if name == holds or name in found]
    results = {result.check: result for result in runner.run(checks, "npu:0", deadline=120, memory=1)}
    assert results[holds].verdict is Verdict.HOLDS, results[holds].detail
    for name, text in found.items():
        assert results[name].verdict is Verdict.DOES_NOT_HOLD
        assert results[name].detail.startswith(text)


@pytest.mark.simulated
def test_the_runtime_is_called_simulated() -> None:
    """So that its figures are not taken for those of an NPU."""
    assert machine.facts()["runtime"]["simulated"]
    assert ", SIMULATED runtime" in machine.summary()
