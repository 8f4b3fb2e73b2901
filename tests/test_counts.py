# SPDX-License-Identifier: Apache-2.0
"""The machine instructions and allocations of a call. Unlike times, they are the same in every run.

Each bound is a third above the count with g++ 12 on x86-64. Other compilers differ by less than that, a repeated check
or an unnecessary sort by more.
"""

import json
import sys

import pytest
from utils import TESTS, run

pytestmark = pytest.mark.slow
Counts = dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def counts() -> Counts:
    return json.loads(run("make", "--silent", f"PYTHON={sys.executable}", "counts", cwd=TESTS / "cpp").stdout)


@pytest.mark.parametrize(
    ("call", "most"),
    [
        ("list of 1", 8_000),
        ("list of 160", 278_000),
        ("list of 160, out of order", 335_000),
        ("stacked 1", 8_000),
        ("stacked 160", 42_500),
        ("batch of 10", 50_000),
        ("batch of 100", 385_000),
    ],
)
def test_instructions(counts: Counts, call: str, most: int) -> None:
    assert counts[call][0] < most


def test_planning_a_stacked_cache_allocates_nothing(counts: Counts) -> None:
    """The dispatcher allocates: the two lists and the stack of a boxed call."""
    for call in ("list of 1", "stacked 1", "stacked 160"):
        assert counts[call][1] <= 5, call


def test_allocations_do_not_grow_with_tensors_or_copies(counts: Counts) -> None:
    """But for vectors that double their size."""
    assert counts["list of 160"][1] - counts["list of 1"][1] < 6
    assert counts["list of 160, out of order"][1] - counts["list of 1"][1] < 10
    assert counts["batch of 100"][1] - counts["batch of 10"][1] < 10


def test_growth_is_linear(counts: Counts) -> None:
    for few, many in (("list of 80", "list of 160"), ("batch of 50", "batch of 100")):
        assert counts[many][0] < 2.2 * counts[few][0]
