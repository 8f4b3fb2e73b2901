# SPDX-License-Identifier: Apache-2.0
"""Pinned buffers for the caches of a device, because the engine reaches host memory only.

There are two slots: while the engine transfers one piece, the device copies the next or the last one.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..datadist import memory as _memory
from ..datadist.status import LLMStatusCode, llm_error, param_invalid
from .layout import Indices, Numbers, Part, groups, split
from .local_caches import LocalCache
from .nixl import Engine

SLOTS, SLOT_BYTES = 2, 4 << 20


class Staging:
    """The pinned buffer of one direction of a link: ``SLOTS`` slots of ``SLOT_BYTES`` each.

    Args:
        engine: The engine to register it with.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._buffer = _memory.allocate((SLOTS, SLOT_BYTES), torch.uint8, torch.device("cpu"))
        self.memory = engine.register([self._buffer])
        self.addresses = [slot.data_ptr() for slot in self._buffer]

    def close(self) -> None:
        """Releases the buffer."""
        self._engine.deregister(self.memory)

    def copy(
        self,
        cache: LocalCache,
        part: Part,
        lengths: Sequence[int],
        piece: int,
        *,
        to_device: bool,
        timeout_ms: int,
    ) -> None:
        """Copies one piece between a cache and its slot, in the order of the device's default stream, and waits.

        Raises:
            LLMException: LLM_TIMEOUT, or LLM_FAILED if the device fails.
        """
        source, begin, sizes, cuts = pieces(part.planes[1] - part.planes[0], tuple(lengths))
        cut = cuts[piece]
        starts = (part.addresses(cache.layout)[source[cut]] + begin[cut]).astype(np.int64)
        staged, own = _views(self._buffer[piece % SLOTS], cache.tensors, starts, sizes[cut].astype(np.int64))
        dst, src = (own, staged) if to_device else (staged, own)
        try:
            done = ops.copy_cache_blocking(dst, src, 0, 0, 0, -1, None, batch_dim=1, timeout_ms=timeout_ms)
        except ValueError as error:
            raise param_invalid(str(error)) from error
        except (RuntimeError, MemoryError) as error:
            raise llm_error(LLMStatusCode.LLM_FAILED, str(error)) from error
        if not done:
            raise llm_error(LLMStatusCode.LLM_TIMEOUT, f"the device has not copied a piece within {timeout_ms} ms")


@functools.lru_cache(maxsize=8)
def pieces(planes: int, lengths: tuple[int, ...]) -> tuple[Indices, Numbers, Numbers, list[slice]]:
    """Cuts a part into pieces that fit a slot. Both ends of a link get the same pieces.

    Returns:
        The ranges of all pieces, as ``layout.split`` returns them, and the ranges of each piece.
    """
    flat = np.tile(np.array(lengths, dtype=np.uint64), planes)
    source, begin, sizes = split(flat, SLOT_BYTES)
    return source, begin, sizes, groups(sizes, SLOT_BYTES)


def _views(
    slot: Tensor, tensors: Sequence[Tensor], starts: Indices, sizes: Indices
) -> tuple[list[Tensor], list[Tensor]]:
    """Views ``[n, 1, bytes]`` of the slot and of the cache: ranges of one size at equal distances are one view."""
    wholes = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        wholes[storage.data_ptr()] = storage
    bases = np.array(sorted(wholes), dtype=np.int64)
    owner = np.searchsorted(bases, starts, side="right") - 1
    steps = np.diff(starts)
    staged, own, first, position = [], [], 0, 0
    while first < len(starts):
        last = first
        step = int(steps[first]) if first < len(steps) else 0
        while (
            last + 1 < len(starts)
            and owner[last + 1] == owner[first]
            and sizes[last + 1] == sizes[first]
            and steps[last] == step
            and step > 0
        ):
            last += 1
        count, size = last - first + 1, int(sizes[first])
        storage = wholes[int(bases[owner[first]])]
        whole = torch.empty(0, dtype=torch.uint8, device=tensors[0].device).set_(storage)
        own.append(
            whole.as_strided((count, 1, size), (max(step, size), size, 1), int(starts[first] - bases[owner[first]]))
        )
        staged.append(slot[position : position + count * size].view(count, 1, size))
        position += count * size
        first = last + 1
    return staged, own
