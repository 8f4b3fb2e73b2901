# SPDX-License-Identifier: Apache-2.0
"""The caches of this process that take part in transfers: their layouts, and their registrations with the engine."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..datadist.cache import Cache
from ..datadist.memory import check_served
from ..datadist.registry import CacheReference
from ..datadist.status import LLMStatusCode, llm_error, param_invalid
from .layout import Layout, layout_of
from .nixl import Engine, Memory, Soon

_NO_COPIES = torch.empty((0, 4), dtype=torch.int64, device="cpu")


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


@dataclass(frozen=True)
class KeptCache:
    """A cache that a call was given, and its tensors, which it may lose while the call waits for the I/O thread.

    Attributes:
        name: The argument that it was given for.
    """

    name: str
    cache: Cache
    tensors: Sequence[Tensor]


def keep(name: str, cache: Cache) -> KeptCache:
    """Keeps the memory of a cache.

    Raises:
        LLMException: LLM_KV_CACHE_NOT_EXIST for a cache that has ended.
    """
    tensors = cache.tensors
    if not tensors:
        text = f"{name}: cache {cache.cache_id} was deallocated or unregistered"
        raise llm_error(LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, text)
    return KeptCache(name, cache, tensors)


class LocalCaches:
    """Looks caches up and registers them, each once. For the I/O thread, but ``forget``."""

    def __init__(self, engine: Engine, soon: Soon) -> None:
        self._engine, self._soon = engine, soon
        # By the identity of the cache. Without the tensors: an ended cache must not keep its memory.
        self._known: dict[int, tuple[list[int], Layout, Memory | None, weakref.ref[Cache]]] = {}

    def of(self, kept: KeptCache | CacheReference) -> LocalCache:
        """A cache that may have ended, with the tensors that were kept.

        Raises:
            LLMException: LLM_PARAM_INVALID for tensors that the ops refuse, LLM_FEATURE_NOT_ENABLED on a chip that is not
                served.
        """
        cache, tensors = kept.cache, kept.tensors
        addresses = [tensor.data_ptr() for tensor in tensors]
        known = self._known.get(id(cache))
        if known is None or known[0] != addresses:
            check_served(tensors[0].device)
            try:
                # Copies nothing. Refuses what the ops refuse, such as rows that are not contiguous.
                unversioned = [tensor.data for tensor in tensors]
                ops.copy_cache_batch(unversioned, unversioned, _NO_COPIES, batch_dim=cache.batch_dim)
            except ValueError as error:
                raise param_invalid(str(error).removeprefix("copy_cache_batch: ")) from error
            layout = layout_of(tensors, cache)
            memory = self._engine.register(tensors, self._soon) if layout.on_host else None
            known = (addresses, layout, memory, weakref.ref(cache, self._forget_dead(id(cache))))
            self._known[id(cache)] = known
        return LocalCache(tensors, known[1], known[2])

    def forget(self, cache: Cache) -> None:
        """Ends the registration of a cache, when the last transfer has ended. Can be called from any thread."""
        self._known.pop(id(cache), None)

    def _forget_dead(self, number: int) -> Callable[["weakref.ref[Cache]"], None]:
        def forget(reference: "weakref.ref[Cache]") -> None:
            known = self._known.get(number)
            if known is not None and known[3] is reference:
                del self._known[number]

        return forget
