# SPDX-License-Identifier: Apache-2.0
"""The caches of this process that take part in transfers: their layouts, and their registrations with the engine."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..datadist.cache import Cache
from ..datadist.fork import ForkSafeLock
from ..datadist.memory import check_served
from ..datadist.status import LLMStatusCode, llm_error, param_invalid
from .layout import Layout, layout_of
from .nixl import Engine, Memory

_NO_COPIES = torch.empty((0, 4), dtype=torch.int64)


@dataclass(frozen=True)
class LocalCache:
    """A cache of this process during a transfer. Keeps its memory alive.

    Attributes:
        tensors: The tensors of the cache.
        layout: Where they are.
        memory: Their registration with the engine, or None for memory of a device.
    """

    tensors: Sequence[Tensor]
    layout: Layout
    memory: Memory | None


class LocalCaches:
    """Looks caches up and registers them, each once. Thread-safe.

    Args:
        engine: The engine to register them with.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = ForkSafeLock()
        # Without the tensors: an ended cache must not keep its memory.
        self._known: weakref.WeakKeyDictionary[Cache, tuple[list[int], Layout, Memory | None]]
        self._known = weakref.WeakKeyDictionary()

    def find(self, name: str, cache: Cache) -> LocalCache:
        """A cache that a call was given.

        Args:
            name: The name of the argument, for messages.
            cache: The cache.

        Raises:
            LLMException: LLM_KV_CACHE_NOT_EXIST for a cache that has ended, LLM_PARAM_INVALID for tensors that the ops
                refuse, LLM_FEATURE_NOT_ENABLED on a chip that is not served.
        """
        tensors = cache.tensors
        if not tensors:
            raise llm_error(
                LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, f"{name}: cache {cache.cache_id} was deallocated or unregistered"
            )
        return self.of(cache, tensors)

    def of(self, cache: Cache, tensors: Sequence[Tensor]) -> LocalCache:
        """A cache that may have ended, whose tensors the caller has kept. Raises the errors of ``find``."""
        addresses = [tensor.data_ptr() for tensor in tensors]
        with self._lock.current:
            known = self._known.get(cache)
            if known is None or known[0] != addresses:
                check_served(tensors[0].device)
                try:
                    # Copies nothing. Refuses what the ops refuse, such as rows that are not contiguous.
                    unversioned = [tensor.data for tensor in tensors]
                    ops.copy_cache_batch(unversioned, unversioned, _NO_COPIES, batch_dim=cache.batch_dim)
                except ValueError as error:
                    raise param_invalid(str(error).removeprefix("copy_cache_batch: ")) from error
                layout = layout_of(tensors, cache)
                if known is not None and known[2] is not None:
                    self._engine.deregister(known[2])
                known = (addresses, layout, self._engine.register(tensors) if layout.on_host else None)
                self._known[cache] = known
        return LocalCache(tensors, known[1], known[2])

    def deregister(self, cache: Cache) -> None:
        """Ends the registration of a cache whose memory is about to be released."""
        with self._lock.current:
            known = self._known.pop(cache, None)
        if known is not None and known[2] is not None:
            self._engine.deregister(known[2])
