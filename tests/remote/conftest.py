# SPDX-License-Identifier: Apache-2.0
"""One peer for all tests that leave it alive. Without NIXL, which the extra `test` installs, the test run is an error."""

from collections.abc import Iterator

import nixl_cu12  # noqa: F401
import pytest
from remote_utils import Pair, Peer, linked


@pytest.fixture(scope="session")
def peer() -> Iterator[Peer]:
    started = Peer()
    yield started
    started.process.kill()


@pytest.fixture
def pair(peer: Peer) -> Iterator[Pair]:
    with linked(peer) as made:
        yield made
