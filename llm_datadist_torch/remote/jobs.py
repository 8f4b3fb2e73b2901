# SPDX-License-Identifier: Apache-2.0
"""Moves the bytes of one call: directly between host memory, or in pieces through staging slots where there is a device."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .layout import Numbers, Part, groups, merged, split
from .local_caches import LocalCache
from .nixl import Addresses
from .nixl_job import Move
from .peer import Link
from .peer_cache import Borrowed
from .staging import SLOTS, pieces

_REQUEST_BYTES = 64 << 20
"""What one request to the engine moves at most: deadlines are looked at in between."""


@dataclass(frozen=True)
class Job:
    """What to move, over which link, until when. ``Link.use`` is held.

    Attributes:
        link: The link.
        local: The cache of this process.
        own: The part of it.
        borrowed: The cache of the peer.
        theirs: The part of it, as many slices.
        lengths: The bytes of each slice.
        write: Whether the peer's cache is written.
        deadline: When to give up, by ``time.monotonic``.
        timeout_ms: The same for messages, in milliseconds from the begin of the call.
    """

    link: Link
    local: LocalCache
    own: Part
    borrowed: Borrowed
    theirs: Part
    lengths: Sequence[int]
    write: bool
    deadline: float
    timeout_ms: int

    def run(self) -> None:
        """Moves everything.

        Raises:
            LLMException: LLM_TIMEOUT, LLM_LINK_FAILED, or LLM_FAILED if a device fails. What the destination holds is
                undefined then.
        """
        own, theirs = self.own.addresses(self.local.layout), self.theirs.addresses(self.borrowed.layout)
        if self.local.memory is not None and not self.borrowed.slots:
            self._directly(own, theirs)
        else:
            _Pieces(self, own, theirs).run()

    def move(self, own: Addresses, theirs: Addresses, keep: object) -> Move:
        """Starts one request to the engine."""
        operation = "WRITE" if self.write else "READ"
        return Move(self.link, operation, own, theirs, keep, self.deadline, self.timeout_ms)

    def _directly(self, own: Numbers, theirs: Numbers) -> None:
        planes = self.own.planes[1] - self.own.planes[0]
        own, theirs, lengths = merged(own, theirs, np.tile(np.array(self.lengths, dtype=np.uint64), planes))
        source, begin, sizes = split(lengths, _REQUEST_BYTES)
        own, theirs = own[source] + begin, theirs[source] + begin
        for cut in groups(sizes, _REQUEST_BYTES):
            self.move(_ranges(own[cut], sizes[cut]), _ranges(theirs[cut], sizes[cut]), self.local).wait()


class _Pieces:
    """A job in pieces: while one is moved, the device of either side copies another."""

    def __init__(self, job: Job, own: Numbers, theirs: Numbers) -> None:
        self._job = job
        self._source, self._begin, self._sizes, self._cuts = pieces(
            job.own.planes[1] - job.own.planes[0], tuple(job.lengths)
        )
        self._own, self._theirs = own[self._source] + self._begin, theirs[self._source] + self._begin
        self._staging = job.link.staging() if job.local.memory is None else None

    def run(self) -> None:
        (self._write if self._job.write else self._read)()

    def _read(self) -> None:
        job, count = self._job, len(self._cuts)
        for piece in range(min(SLOTS, count)):
            self._ask(piece)
        for piece in range(count):
            self._answered()
            with job.move(*self._both(piece), (job.local, self._staging)):
                if piece > 0:
                    self._copy(piece - 1)
            if piece + SLOTS < count:
                self._ask(piece + SLOTS)
        self._copy(count - 1)

    def _write(self) -> None:
        job, count = self._job, len(self._cuts)
        self._copy(0)
        for piece in range(count):
            if piece >= SLOTS:
                self._answered()
            with job.move(*self._both(piece), (job.local, self._staging)):
                if piece + 1 < count:
                    self._copy(piece + 1)
            self._ask(piece)
        for _ in range(min(SLOTS, count)):
            self._answered()

    def _both(self, piece: int) -> tuple[Addresses, Addresses]:
        """The ranges of a piece on both sides. In a slot they follow one another."""
        cut, job = self._cuts[piece], self._job
        sizes = self._sizes[cut]
        staged = np.cumsum(sizes) - sizes
        slots = self._staging.addresses if self._staging else ()
        own = staged + np.uint64(slots[piece % SLOTS]) if slots else self._own[cut]
        theirs = staged + np.uint64(job.borrowed.slots[piece % SLOTS]) if job.borrowed.slots else self._theirs[cut]
        own, theirs, sizes = merged(own, theirs, sizes)
        return _ranges(own, sizes), _ranges(theirs, sizes)

    def _copy(self, piece: int) -> None:
        """Copies a piece between the device of this process and its slot."""
        if self._staging is not None:
            job = self._job
            self._staging.copy(
                job.local, job.own, job.lengths, piece, to_device=not job.write, timeout_ms=self._milliseconds_left()
            )

    def _ask(self, piece: int) -> None:
        """Asks the peer to do the same."""
        job, part = self._job, self._job.theirs
        if job.borrowed.slots:
            where = {"planes": part.planes, "rows": part.rows, "offsets": part.offsets, "lengths": job.lengths}
            message = {"do": "stage", "loan": job.borrowed.number, "piece": piece, **where}
            job.link.tell({**message, "timeout": self._milliseconds_left()}, job.deadline)

    def _answered(self) -> None:
        if self._job.borrowed.slots:
            self._job.link.reply(self._job.deadline)

    def _milliseconds_left(self) -> int:
        return max(1, int((self._job.deadline - time.monotonic()) * 1000))


def _ranges(starts: Numbers, sizes: Numbers) -> Addresses:
    return np.stack((starts, sizes, np.zeros_like(starts)), axis=1)
