# SPDX-License-Identifier: Apache-2.0
"""A cache of a peer during a transfer."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .layout import Layout


@dataclass(frozen=True)
class PeerCache:
    """A cache of a peer, which keeps its memory until this process releases it.

    Attributes:
        export: The number that the peer has given to this use of the cache.
        row: The row that the key names.
        layout: Where the cache is.
        slots: The addresses of the peer's staging slots, if the engine does not reach the cache itself.
        tensors_pulled: The tensors whose row has been read.
    """

    export: int
    row: int
    layout: Layout
    slots: Sequence[int]
    tensors_pulled: list[int] = field(default_factory=list)

    def add_pulled(self, planes: tuple[int, int]) -> None:
        """Notes that planes of the row have been read. See ``CacheRegistry.release``."""
        each = len(self.layout.bases) // self.layout.num_tensors
        self.tensors_pulled.extend(range(planes[0] // each, planes[1] // each))
