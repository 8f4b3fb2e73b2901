# SPDX-License-Identifier: Apache-2.0
"""The tests with the marker profiles, on runtimes of other versions of CANN and other chips than the test run has."""

import ascend_sim
import pytest
from fresh_process import run_code
from utils import TESTS


@pytest.mark.simulated
@pytest.mark.slow
@pytest.mark.parametrize("profile", [name for name in ascend_sim.PROFILES if name != "CANN 8.5"])
def test_profile(profile: str) -> None:
    files = [str(TESTS / "npu" / f"test_{name}.py") for name in ("calls", "directions", "runtime_copies")]
    selection = "profiles and not unaligned" if profile == "CANN 8.1" else "profiles"
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", selection]
    done = run_code(f"import pytest, sys; sys.exit(pytest.main({options + files!r}))", **ascend_sim.PROFILES[profile])
    assert "passed" in done.stdout and "skipped" not in done.stdout
