# SPDX-License-Identifier: Apache-2.0
"""Lends caches of this process to one peer, which then reads or writes their memory. Answers the peer's requests.

Note [Loans]: a cache that is lent keeps its memory, whatever happens to it here, until the peer gives it back or its
connection ends. The peer closes the connection only when nothing of it is in flight any more. So no memory that a peer
still writes to gets another owner. A stopped peer keeps its loans until it goes on or is killed.
"""

import base64
import itertools
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..datadist.fork import renew_lock_in_children
from ..datadist.registry import CacheTable, Loan
from ..datadist.status import LLMException, LLMStatusCode, llm_error
from .layout import Layout, Part
from .local_caches import LocalCache, LocalCaches
from .nixl import Engine, Memory
from .staging import Staging

_DRAIN_SECONDS = 0.2


@dataclass
class _Lent:
    loans: list[Loan]
    cache: LocalCache
    write: bool


class Lender:
    """What this process lends over one link.

    Args:
        table: The caches of this process, by id and key.
        caches: The same, for the engine.
        engine: The engine.
    """

    def __init__(self, table: CacheTable, caches: LocalCaches, engine: Engine) -> None:
        self._table, self._caches, self._engine = table, caches, engine
        self._lock = threading.RLock()
        renew_lock_in_children(self)
        self._numbers = itertools.count(1)
        self._lent: dict[int, _Lent] = {}
        self._staging: Staging | None = None
        self._announced: weakref.WeakSet[Memory] = weakref.WeakSet()
        self._closing = False

    @property
    def active(self) -> bool:
        """Whether the peer has loans."""
        return bool(self._lent)

    def stop(self) -> bool:
        """Refuses new loans. Returns whether there are none."""
        with self._lock:
            self._closing = True
            return not self._lent

    def answer(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """The reply to a request of the peer; None for one without a reply."""
        try:
            if message["do"] == "give back":
                self._give_back(message["loan"], message["pulled"])
                return None
            return self._lend(message) if message["do"] == "borrow" else self._stage(message)
        except LLMException as error:
            text = str(error).removesuffix(f" [{error.status_code.name}]")
            return {"error": [error.status_code.name, text]}
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            return {"error": [LLMStatusCode.LLM_FAILED.name, f"a request of another version: {error!r}"]}

    def end(self) -> None:
        """Takes all loans back: the connection has ended."""
        if any(lent.write for lent in self._lent.values()):
            # Over TCP, UCX may hold bytes of a peer that has died, which the next calls write: into memory that is ours.
            until = time.monotonic() + _DRAIN_SECONDS
            while time.monotonic() < until:
                self._engine.progress()
                time.sleep(1e-3)
        for number in list(self._lent):
            self._give_back(number, None)
        if self._staging is not None:
            self._staging.close()
            self._staging = None

    def _lend(self, message: dict[str, Any]) -> dict[str, Any]:
        loans: list[Loan] = []
        try:
            caches, reply = self._find(message["key"], loans)
            if message["known"] != reply["cache"] or not reply["cache"]:
                reply["layout"] = caches[0].layout.to_message()
            memories = [cache.memory for cache in caches if cache.memory is not None]
            if not memories:
                if self._staging is None:
                    self._staging = Staging(self._engine)
                memories = [self._staging.memory]
                reply["slots"] = self._staging.addresses
            new = [memory for memory in memories if memory not in self._announced]
            self._announced.update(new)
            reply["metadata"] = [base64.b64encode(memory.metadata).decode() for memory in new]
            with self._lock:
                if self._closing:
                    raise llm_error(LLMStatusCode.LLM_NOT_YET_LINK, "the cluster has unlinked")
                number = next(self._numbers)
                self._lent[number] = _Lent(loans, caches[0], message["write"])
        except BaseException:
            for loan in loans:
                self._table.take_back(loan, None)
            raise
        return {**reply, "loan": number}

    def _find(self, key: list[Any], loans: list[Loan]) -> tuple[list[LocalCache], dict[str, Any]]:
        """The cache of a key, or memory of caches as a cache. Adds the loans to the list."""
        if key[0] != "addresses":
            loans.append(self._table.lend(key))
            [loan] = loans
            return [self._caches.of(loan.cache, loan.tensors)], {"cache": loan.cache.cache_id, "row": loan.row}
        _, addresses, row_bytes, rows, dtype = key
        for address in addresses:
            loans.append(self._table.lend_memory(address, row_bytes * rows))
        owners = [self._caches.of(loan.cache, loan.tensors) for loan in loans]
        layout = Layout(
            np.array(addresses, np.uint64),
            row_bytes,
            row_bytes,
            rows,
            len(addresses),
            dtype,
            True,
            owners[0].layout.on_host,
        )
        if any(owner.layout.dtype != dtype or owner.layout.on_host != layout.on_host for owner in owners):
            raise llm_error(
                LLMStatusCode.LLM_PARAM_INVALID, f"dst_addrs are not all of caches of {dtype} on one device"
            )
        tensors = [tensor for owner in owners for tensor in owner.tensors]
        memories = {owner.memory: None for owner in owners}
        caches = [LocalCache(tensors, layout, memory) for memory in memories]
        return caches, {"cache": 0, "row": 0}  # 0 is never an id

    def _stage(self, message: dict[str, Any]) -> dict[str, Any]:
        """Copies one piece between the device and the pinned buffer."""
        lent = self._lent[message["loan"]]
        assert self._staging is not None
        part = Part(tuple(message["planes"]), message["rows"], message["offsets"])
        _check_part(part, lent.cache.layout, message["lengths"])
        self._staging.copy(
            lent.cache, part, message["lengths"], message["piece"], to_device=lent.write, timeout_ms=message["timeout"]
        )
        return {}

    def _give_back(self, number: int, pulled: list[int] | None) -> None:
        with self._lock:
            lent = self._lent.pop(number)
        for loan in lent.loans:
            self._table.take_back(loan, pulled)


def _check_part(part: Part, layout: Layout, lengths: list[int]) -> None:
    """A peer checks what it asks for, so this finds mistakes of its program alone."""
    begin, end = part.planes
    inside = 0 <= begin <= end <= len(layout.bases) and all(0 <= row < layout.batch_size for row in part.rows)
    ends = (o + n <= layout.row_bytes and o >= 0 and n > 0 for o, n in zip(part.offsets, lengths, strict=True))
    if not inside or not all(ends) or len(part.rows) != len(part.offsets):
        raise llm_error(LLMStatusCode.LLM_PARAM_INVALID, "the part is not in the cache")
