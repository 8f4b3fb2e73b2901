# SPDX-License-Identifier: Apache-2.0
"""Counts what has been transferred, for metrics."""

import copy

from ..datadist.remote_api import TransferCounters
from ..datadist.status import LLMStatusCode


class Counters:
    """Counters of each cluster. They only grow, and stay after the end of a link. For the I/O thread, but ``snapshot``."""

    def __init__(self) -> None:
        self._of: dict[int, TransferCounters] = {}

    def moved(self, cluster_id: int, nbytes: int, seconds: float, *, write: bool) -> None:
        """Counts a transfer that has succeeded."""
        of = self._of.setdefault(cluster_id, TransferCounters())
        if write:
            of.pushes += 1
            of.pushed_bytes += nbytes
            of.pushing_seconds += seconds
        else:
            of.pulls += 1
            of.pulled_bytes += nbytes
            of.pulling_seconds += seconds

    def failed(self, cluster_id: int, code: LLMStatusCode) -> None:
        """Counts a transfer that has failed."""
        failures = self._of.setdefault(cluster_id, TransferCounters()).failures
        failures[code] = failures.get(code, 0) + 1

    def snapshot(self) -> dict[int, TransferCounters]:
        """A copy, by cluster. For any thread."""
        return {cluster_id: copy.deepcopy(of) for cluster_id, of in list(self._of.items())}
