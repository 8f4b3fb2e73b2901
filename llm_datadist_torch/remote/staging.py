# SPDX-License-Identifier: Apache-2.0
"""Pinned buffers for the caches of a device, because the engine reaches host memory only.

There are two slots: while the engine transfers one piece, the device copies the next or the last one.
"""

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..datadist import memory as _memory
from ..datadist.status import LLMStatusCode, llm_error, param_invalid
from .layout import Numbers, Part, groups, of_planes, split
from .local_caches import LocalCache
from .nixl import Engine, Soon

SLOTS, SLOT_BYTES = 2, 4 << 20


class Pieces:
    """Cuts a part into pieces that fit a slot. Both ends of a link get the same pieces.

    Args:
        planes: How many planes the part has.
        lengths: The bytes of each slice of a plane.

    Attributes:
        source: The slice that each range is from, counted through all planes.
        begin: Where each range begins in its slice.
        sizes: The bytes of each range.
        in_slot: Where each range begins in its slot: where the last one ends.
        cuts: The ranges of each piece.
    """

    def __init__(self, planes: int, lengths: Numbers) -> None:
        self.source, self.begin, self.sizes = split(of_planes(lengths, planes), SLOT_BYTES)
        self.cuts = groups(self.sizes, SLOT_BYTES)
        before = np.cumsum(self.sizes) - self.sizes
        self.in_slot = before - np.repeat(
            before[[cut.start for cut in self.cuts]], [cut.stop - cut.start for cut in self.cuts]
        )


class Staged:
    """A part of a cache of a device that moves in pieces.

    Args:
        cache: The cache. Kept alive.
        part: The part of it.
        lengths: The bytes of each slice.
        to_device: Whether the cache is written.
    """

    def __init__(self, cache: LocalCache, part: Part, lengths: Numbers, *, to_device: bool) -> None:
        self._cache, self.to_device = cache, to_device
        pieces = Pieces(part.planes[1] - part.planes[0], lengths)
        self._cuts, self._sizes = pieces.cuts, pieces.sizes
        starts = part.addresses(cache.layout)[pieces.source] + pieces.begin
        storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in cache.tensors}
        bases = np.array(sorted(storages), dtype=np.int64)
        self._wholes = [_bytes_of(storages[base]) for base in bases.tolist()]
        self._owner = np.searchsorted(bases, starts, side="right") - 1
        self._at, self._in_slot = starts - bases[self._owner], pieces.in_slot
        to, of = (self._at, self._in_slot) if to_device else (self._in_slot, self._at)
        rows = np.zeros_like(to)
        self._copies = torch.from_numpy(np.stack((rows, rows, to, self._sizes, of), axis=1))

    def __len__(self) -> int:
        """The number of pieces."""
        return len(self._cuts)

    def calls(self, piece: int, slot: Tensor) -> list[tuple[list[Tensor], list[Tensor], Tensor]]:
        """The copies of a piece: for each call, tensors of the cache, as many of the slot, and ``copies`` of the op."""
        cut = self._cuts[piece]
        owner, copies = self._owner[cut], self._copies[cut]
        runs = _runs(owner)
        if len(runs) < len(owner) or len(runs) == 1:
            return [([self._wholes[owner[run.start]]], [slot], copies[run]) for run in runs]
        # One range of each storage: a call for all that have one size.
        calls = []
        sizes, at, in_slot = self._sizes[cut], self._at[cut], self._in_slot[cut]
        for run in _runs(sizes):
            size = int(sizes[run.start])
            own = [self._wholes[o][:, i : i + size] for o, i in zip(owner[run], at[run], strict=True)]
            slots = [slot[:, i : i + size] for i in in_slot[run]]
            calls.append((own, slots, torch.tensor([[0, 0, 0, size]], dtype=torch.int64, device="cpu")))
        return calls


class Staging:
    """The pinned buffer of one direction of a link: ``SLOTS`` slots of ``SLOT_BYTES`` each."""

    def __init__(self, engine: Engine, soon: Soon) -> None:
        self._buffer = _memory.allocate((SLOTS, 1, SLOT_BYTES), torch.uint8, torch.device("cpu"))
        self.memory = engine.register([self._buffer], soon)
        self.addresses = [slot.data_ptr() for slot in self._buffer]

    def copy(self, staged: Staged, piece: int, timeout_ms: int) -> None:
        """Copies one piece between a cache and its slot, in the order of the device's default stream, and waits.

        Raises:
            LLMException: LLM_TIMEOUT, or LLM_FAILED if the device fails.
        """
        for own, slots, copies in staged.calls(piece, self._buffer[piece % SLOTS]):
            dst, src = (own, slots) if staged.to_device else (slots, own)
            try:
                done = ops.copy_cache_batch_blocking(dst, src, copies, None, batch_dim=0, timeout_ms=timeout_ms)
            except ValueError as error:
                raise param_invalid(str(error)) from error
            except (RuntimeError, MemoryError) as error:
                raise llm_error(LLMStatusCode.LLM_FAILED, str(error)) from error
            if not done:
                raise llm_error(LLMStatusCode.LLM_TIMEOUT, f"the device has not copied a piece within {timeout_ms} ms")


def _runs(numbers: Numbers) -> list[slice]:
    """The runs of equal numbers, none of which is negative."""
    first = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
    return [slice(begin, end) for begin, end in zip(first, [*first[1:], len(numbers)], strict=True)]


def _bytes_of(tensor: Tensor) -> Tensor:
    """The storage of a tensor as one row of bytes."""
    whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
    return whole.view(1, -1)
