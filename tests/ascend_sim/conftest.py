# SPDX-License-Identifier: Apache-2.0
"""Each test starts and ends on an idle runtime; tests that call the runtime directly have one stream and some memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import ascend_sim
from ascend_sim.acl_utils import Runtime, acl
from ascend_sim.quiet_runtime import quiet_runtime  # noqa: F401


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the simulated runtime need its handle."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("simulated")


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    ascend_sim.reset()
    runtime = Runtime()
    yield runtime
    ascend_sim.reset()
    for stream in (runtime.stream, runtime.side):
        acl("aclrtDestroyStream", stream)
