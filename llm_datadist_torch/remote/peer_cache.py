# SPDX-License-Identifier: Apache-2.0
"""A cache of a peer during a transfer."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .layout import Layout


@dataclass(frozen=True)
class Borrowed:
    """A cache of the peer, which keeps its memory for the time being.

    Attributes:
        number: The loan.
        row: The row that the key names.
        layout: Where the cache is.
        slots: The addresses of the peer's staging slots, if the engine does not reach the cache itself.
    """

    number: int
    row: int
    layout: Layout
    slots: Sequence[int]
    tensors_pulled: list[int] = field(default_factory=list)

    def pulled(self, planes: tuple[int, int]) -> None:
        """Notes that planes of the row have been read: see ``CacheTable.take_back``."""
        each = len(self.layout.bases) // self.layout.num_tensors
        self.tensors_pulled.extend(range(planes[0] // each, planes[1] // each))
