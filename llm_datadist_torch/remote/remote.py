# SPDX-License-Identifier: Apache-2.0
"""The entrance: what ``datadist`` asks, handed to the I/O thread."""

import atexit
import os
import threading
import time
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

from ..datadist.cluster_info import Address, LLMClusterInfo
from ..datadist.fork import ForkSafeLock
from ..datadist.rank_table import RankTable
from ..datadist.registry import CacheRegistry
from ..datadist.remote_api import LayerwiseCall, Remote, Row, TransferCall, TransferCounters
from ..datadist.result import Result
from ..datadist.status import LLMStatusCode, llm_error, param_invalid
from ..datadist.transfer_types import CacheTask, cluster_of
from ..datadist.unserved import RegisterMemStatus
from . import layerwise
from .counters import Counters
from .groups import Groups
from .io_thread import Steps
from .links import Links
from .local_caches import keep
from .transfers import Transfers

T = TypeVar("T")

_CACHE_ARGUMENTS = {
    "pull_cache": "cache",
    "pull_blocks": "dst_cache",
    "push_cache": "src_cache",
    "push_blocks": "src_cache",
}

_open: "set[RemoteCaches]" = set()
_closing: set[Result[None]] = set()
os.register_at_fork(after_in_child=_closing.clear)


class RemoteCaches(Remote):
    """See ``Remote``."""

    def __init__(self, cluster_id: int, registry: CacheRegistry, timeout_ms: int) -> None:
        self._timeout_ms = timeout_ms
        self._links = Links(cluster_id, registry)
        self._counters = Counters()
        self._groups = Groups(self._links)
        self._transfers = Transfers(self._links, timeout_ms, self._counters)
        self._changing_addresses = ForkSafeLock()  # no destructor changes them
        self._listening: list[Address] = []
        self._group_addresses: list[Address] = []
        _open.add(self)

    def listen(self, addresses: Sequence[Address]) -> None:
        for closed in list(_closing):
            closed.wait()
        with self._changing_addresses.current:
            self._links.sockets.listen([*addresses, *self._group_addresses])
            self._listening = list(addresses)

    def link(
        self, clusters: Sequence[LLMClusterInfo], timeout_ms: int, tries: int, total_seconds: int
    ) -> list[LLMStatusCode]:
        linking = [
            self._start(
                self._links.link(c.remote_cluster_id, c.remote_ip_info_list, timeout_ms / 1000, tries, total_seconds)
            )
            for c in clusters
        ]
        codes = []
        for cluster, result in zip(clusters, linking, strict=True):
            code, found = result.get()
            codes.append(code)
            if cluster.remote_cluster_id is None and found is not None:
                cluster.remote_cluster_id = found
        return codes

    def unlink(self, cluster_ids: Sequence[int], timeout_ms: int, *, force: bool) -> list[LLMStatusCode]:
        ending = [self._start(self._links.unlink(cluster, timeout_ms, force=force)) for cluster in cluster_ids]
        return [result.get() for result in ending]

    def link_group(self, name: str, table: RankTable, total_seconds: int, tries: int) -> int:
        own = self._links.cluster_id
        if any(rank > table.ranks[own] for rank in table.ranks.values()):
            address = table.addresses[own]
            with self._changing_addresses.current:
                if address not in [*self._listening, *self._group_addresses]:
                    self._links.sockets.listen([*self._listening, *self._group_addresses, address])
                    self._group_addresses.append(address)
        return self._groups.begin(name, table, total_seconds, tries)

    def unlink_group(self, comm_id: int) -> None:
        self._start(self._groups.end(comm_id)).get()

    def group_status(self, comm_id: int) -> RegisterMemStatus:
        return self._groups.status(comm_id)

    def has_link(self, cluster_id: int | None = None) -> bool:
        return self._links.any if cluster_id is None else self._links.has(cluster_id)

    def start(self, call: TransferCall) -> Result[None]:
        name = _CACHE_ARGUMENTS[call.method]
        kept = keep(name, call.cache)
        write = call.method.startswith("push")
        if not write and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in kept.tensors):
            raise param_invalid(
                f"{name} requires grad, and a copy into it would be lost to autograd: detach it, or call under torch.no_grad()"
            )
        if isinstance(call.what, Row):
            steps = self._transfers.copy_row(call.key, kept, *call.what, call.layers, write=write)
        else:
            src, dst = (np.array(blocks, np.int64) for blocks in call.what)
            if write or len(src):
                steps = self._transfers.copy_blocks(call.key, kept, src, dst, call.layers, write=write)
            else:
                steps = self._transfers.pull_row_to_blocks(call.key, kept, dst, call.layers)
        return self._start(steps)

    def cancel(self, result: Result[None]) -> None:
        self._links.thread.cancel(result, llm_error(LLMStatusCode.LLM_FAILED, "the transfer was cancelled"))

    def start_layerwise(self, call: LayerwiseCall) -> CacheTask:
        keep("src_cache", call.cache)
        for config in call.configs:
            self._links.find(cluster_of(config))
        return layerwise.start(self._links.thread, self._transfers, call, self._timeout_ms)

    def counters(self) -> dict[int, TransferCounters]:
        return self._counters.snapshot()

    def close(self) -> None:
        _open.discard(self)
        self._links.close(time.monotonic() + self._timeout_ms / 1000)

    def close_in_thread(self) -> None:
        closed: Result[None] = Result()
        _closing.add(closed)

        def close() -> None:
            try:
                self.close()
            finally:
                _closing.discard(closed)
                closed.set(None)

        threading.Thread(target=close, name="llm_datadist close", daemon=True).start()

    def _start(self, steps: Steps[T]) -> Result[T]:
        """Starts a function in the I/O thread. Its caller will wait, so it must not be that thread."""
        if self._links.thread.is_current:
            raise llm_error(
                LLMStatusCode.LLM_LINK_BUSY,
                "the thread of the links runs the caller, a destructor, and would wait for itself: call this elsewhere",
            )
        return self._links.thread.start(steps)


def open_remote(cluster_id: int, registry: CacheRegistry, timeout_ms: int) -> Remote:
    """See ``datadist.remote_api.open_remote``."""
    return RemoteCaches(cluster_id, registry, timeout_ms)


@atexit.register
def _close_at_exit() -> None:
    """Ends the links of a program that does not, before the modules that they need are gone."""
    for remote in list(_open):
        remote.close()
