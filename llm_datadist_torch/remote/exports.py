# SPDX-License-Identifier: Apache-2.0
"""The caches of this process that one peer uses: it reads or writes their memory.

Note [Exports]: a cache that a peer uses keeps its memory, whatever happens to the cache here, until the peer releases it or
the connection ends. The peer closes the connection only when none of its requests is in flight. So memory that a peer still
writes to never gets another owner. If a peer stops, its exports stay until it goes on or is killed.
"""

import base64
import itertools
import time
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..datadist.fork import ForkSafeLock
from ..datadist.registry import CacheReference, CacheRegistry
from ..datadist.status import LLMException, LLMStatusCode, llm_error, param_invalid
from .layout import Layout, Part
from .local_caches import LocalCache, LocalCaches
from .nixl import Engine, Memory
from .staging import Staging

_DRAIN_SECONDS = 0.2


@dataclass
class _Export:
    references: list[CacheReference]
    cache: LocalCache
    write: bool


class Exports:
    """The caches that the peer of one link uses. Answers its requests.

    Args:
        registry: The caches of this process, by id and key.
        caches: The same, registered with the engine.
        engine: The engine.
    """

    def __init__(self, registry: CacheRegistry, caches: LocalCaches, engine: Engine) -> None:
        self._registry, self._caches, self._engine = registry, caches, engine
        self._lock = ForkSafeLock()
        self._numbers = itertools.count(1)
        self._exports: dict[int, _Export] = {}
        self._staging: Staging | None = None
        self._announced: weakref.WeakSet[Memory] = weakref.WeakSet()
        self._closing = False

    @property
    def active(self) -> bool:
        """Whether the peer uses a cache."""
        return bool(self._exports)

    def stop(self) -> bool:
        """Refuses requests for more caches. Returns whether the peer uses none."""
        with self._lock.current:
            self._closing = True
            return not self._exports

    def answer(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """The reply to a request of the peer; None for one without a reply."""
        try:
            if message["do"] == "release":
                self._release(message["export"], message["pulled"])
                return None
            return self._acquire(message) if message["do"] == "acquire" else self._stage(message)
        except LLMException as error:
            text = str(error).removesuffix(f" [{error.status_code.name}]")
            return {"error": [error.status_code.name, text]}
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            return {"error": [LLMStatusCode.LLM_FAILED.name, f"a request of another version: {error!r}"]}

    def end(self) -> None:
        """Releases all caches, because the connection has ended."""
        if any(export.write for export in self._exports.values()):
            # Over TCP, UCX may hold bytes of a peer that has died. Its next calls write them, so let it do that first.
            until = time.monotonic() + _DRAIN_SECONDS
            while time.monotonic() < until:
                self._engine.progress()
                time.sleep(1e-3)
        for number in list(self._exports):
            self._release(number, None)
        if self._staging is not None:
            self._staging.close()
            self._staging = None

    def _acquire(self, message: dict[str, Any]) -> dict[str, Any]:
        references: list[CacheReference] = []
        try:
            caches, reply = self._find(message["key"], references)
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
            with self._lock.current:
                if self._closing:
                    raise llm_error(LLMStatusCode.LLM_NOT_YET_LINK, "the cluster has unlinked")
                number = next(self._numbers)
                self._exports[number] = _Export(references, caches[0], message["write"])
        except BaseException:
            for reference in references:
                self._registry.release(reference, None)
            raise
        return {**reply, "export": number}

    def _find(self, key: list[Any], references: list[CacheReference]) -> tuple[list[LocalCache], dict[str, Any]]:
        """The cache of a key, or a range of memory in caches as a cache. Adds the references to the list."""
        if key[0] != "addresses":
            references.append(self._registry.acquire(key))
            [found] = references
            return [self._caches.of(found.cache, found.tensors)], {"cache": found.cache.cache_id, "row": found.row}
        _, addresses, row_bytes, rows, dtype = key
        for address in addresses:
            references.append(self._registry.acquire_memory(address, row_bytes * rows))
        owners = [self._caches.of(found.cache, found.tensors) for found in references]
        bases, on_host = np.array(addresses, np.uint64), owners[0].layout.on_host
        layout = Layout(bases, row_bytes, row_bytes, rows, len(addresses), dtype, is_blocks=True, on_host=on_host)
        if any(owner.layout.dtype != dtype or owner.layout.on_host != on_host for owner in owners):
            raise param_invalid(f"dst_addrs are not all of caches of {dtype} on one device")
        tensors = [tensor for owner in owners for tensor in owner.tensors]
        memories = {owner.memory: None for owner in owners}
        caches = [LocalCache(tensors, layout, memory) for memory in memories]
        return caches, {"cache": 0, "row": 0}  # 0 is never the id of a cache

    def _stage(self, message: dict[str, Any]) -> dict[str, Any]:
        """Copies one piece between the device and the pinned buffer."""
        export = self._exports[message["export"]]
        assert self._staging is not None
        part = Part(tuple(message["planes"]), message["rows"], message["offsets"])
        lengths = message["lengths"]
        _check_part(part, export.cache.layout, lengths)
        self._staging.copy(
            export.cache, part, lengths, message["piece"], to_device=export.write, timeout_ms=message["timeout"]
        )
        return {}

    def _release(self, number: int, pulled: list[int] | None) -> None:
        with self._lock.current:
            export = self._exports.pop(number)
        for reference in export.references:
            self._registry.release(reference, pulled)


def _check_part(part: Part, layout: Layout, lengths: list[int]) -> None:
    """Refuses bytes outside the cache. A peer of this version checks them too, before it asks."""
    begin, end = part.planes
    inside = 0 <= begin <= end <= len(layout.bases) and all(0 <= row < layout.batch_size for row in part.rows)
    ends = (o + n <= layout.row_bytes and o >= 0 and n > 0 for o, n in zip(part.offsets, lengths, strict=True))
    if not inside or not all(ends) or len(part.rows) != len(part.offsets):
        raise param_invalid("the part is not in the cache")
