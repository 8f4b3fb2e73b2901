# SPDX-License-Identifier: Apache-2.0
"""Transfers the bytes of one call: directly between host memory, or through staging slots if a side is on a device."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..datadist.result import Result
from .held_leases import Lease
from .io_thread import IoThread, Steps
from .layout import Numbers, Part, groups, merged, of_planes, split
from .link import Link
from .link_calls import move
from .local_caches import LocalCache
from .messages import Done, Plan, Stage
from .staging import SLOTS, Pieces, Staged, Staging

_REQUEST_BYTES = 16 << 20
"""The most bytes of one request to the engine. Over shared memory it copies them at once, while the I/O thread waits."""


@dataclass(frozen=True)
class Move:
    """What a call moves: the same slices of both caches.

    Attributes:
        local: The cache of this process.
        local_part: The part of it.
        remote_part: The part of the peer's cache, with as many slices.
        lengths: The bytes of each slice.
        pulled: The tensors whose row is read. See ``CacheRegistry.release``.
    """

    local: LocalCache
    local_part: Part
    remote_part: Part
    lengths: Numbers
    pulled: list[int]

    @property
    def planes(self) -> int:
        """How many planes of each cache."""
        return self.local_part.planes[1] - self.local_part.planes[0]

    @property
    def nbytes(self) -> int:
        """The bytes of all slices."""
        return int(self.lengths.sum()) * self.planes


class TransferJob:
    """The bytes of one call. For the I/O thread.

    Args:
        write: Whether the peer's cache is written.
        deadline: When to give up, by ``time.monotonic``.
    """

    def __init__(self, link: Link, remote: Lease, what: Move, *, write: bool, deadline: float) -> None:
        self.link, self.remote, self.what, self.write, self.deadline = link, remote, what, write, deadline
        self.local_starts = what.local_part.addresses(what.local.layout)
        self.remote_starts = what.remote_part.addresses(remote.layout)
        # A list has a registration for each tensor, or one for all. A tensor has several planes.
        memory = np.array(remote.memory).repeat(len(remote.layout.bases) // len(remote.memory))
        self.remote_memory = memory[slice(*what.remote_part.planes)].repeat(len(what.lengths))

    def run(self, thread: IoThread, make_staging: Callable[[], Staging]) -> Steps[None]:
        """Transfers all bytes.

        Raises:
            LLMException: LLM_TIMEOUT, LLM_LINK_FAILED, or LLM_FAILED if a device fails. What the destination holds is
                undefined then.
        """
        memory = self.what.local.memory
        if memory is not None and not self.remote.slots:
            yield from self._run_directly(memory.number)
            return
        yield (lambda: not self.link.staging_in_use or self.link.has_ended), self.deadline
        if self.link.staging_in_use:
            raise self.link.timeout()
        self.link.staging_in_use = True
        try:
            staging = self.link.held_leases.staging(make_staging) if memory is None else None
            yield from _StagedRun(self, thread, staging).run()
        finally:
            self.link.staging_in_use = False

    def move(self, local: Numbers, remote: Numbers, owner: object) -> Steps[None]:
        """Reads or writes ranges: ``[n, 3]`` for both sides, as ``nixl.Addresses``."""
        if time.monotonic() >= self.deadline:
            self.link.drop()
            raise self.link.timeout()
        operation = "WRITE" if self.write else "READ"
        yield from move(self.link, operation, local, remote, self.remote.number, owner, self.deadline)

    def _run_directly(self, memory: int) -> Steps[None]:
        lengths = of_planes(self.what.lengths, self.what.planes)
        local, remote, of, lengths = merged(self.local_starts, self.remote_starts, self.remote_memory, lengths)
        source, begin, sizes = split(lengths, _REQUEST_BYTES)
        local, remote, of = local[source] + begin, remote[source] + begin, of[source]
        for cut in groups(sizes, _REQUEST_BYTES):
            if cut.start:  # the I/O thread has other work too
                yield (lambda: True), self.deadline
            yield from self.move(
                ranges(local[cut], sizes[cut], memory), ranges(remote[cut], sizes[cut], of[cut]), self.what.local
            )


class _StagedRun:
    """A job in pieces: while the engine transfers one piece, the device of either side copies another."""

    def __init__(self, job: TransferJob, thread: IoThread, staging: Staging | None) -> None:
        self._job, self._thread, self._staging = job, thread, staging
        self._pieces = Pieces(job.what.planes, job.what.lengths)
        self._count = len(self._pieces.cuts)
        what, self._staged = job.what, None
        if staging is not None:
            self._staged = Staged(what.local, what.local_part, what.lengths, to_device=not job.write)
        self._copying: Result[None] | None = None
        self._asked: dict[int, int] = {}  # the number of the request for each piece

    def run(self) -> Steps[None]:
        job, what = self._job, self._job.what
        if job.remote.slots:
            numbers = (what.remote_part.rows, what.remote_part.offsets, what.lengths)
            rows, offsets, lengths = (np.ascontiguousarray(each, np.int64).tobytes() for each in numbers)
            job.link.send_plan(Plan(job.remote.number, what.remote_part.planes, rows, offsets, lengths))
        try:
            yield from self._push() if job.write else self._pull()
        except GeneratorExit:
            raise
        except BaseException:
            # What still uses a slot ends before the next transfer gets it.
            yield (lambda: self._is_quiet() or job.link.has_ended), float("inf")
            yield (lambda: self._copying is None or self._copying.done), float("inf")
            raise

    def _pull(self) -> Steps[None]:
        for piece in range(min(SLOTS, self._count)):
            self._ask(piece)
        for piece in range(self._count):
            yield from self._answer(piece)
            yield from self._move(piece)
            yield from self._copied()  # of the piece before, whose slot is the next one
            self._copy(piece)
            if piece + SLOTS < self._count:
                self._ask(piece + SLOTS)
        yield from self._copied()

    def _push(self) -> Steps[None]:
        self._copy(0)
        for piece in range(self._count):
            yield from self._copied()
            if piece + 1 < self._count:
                self._copy(piece + 1)  # into the slot of the piece before, which is there
            if piece >= SLOTS:
                yield from self._answer(piece - SLOTS)
            yield from self._move(piece)
            self._ask(piece)
        for piece in range(max(self._count - SLOTS, 0), self._count):
            yield from self._answer(piece)
        yield from self._copied()

    def _move(self, piece: int) -> Steps[None]:
        """Transfers a piece. In a slot, each range begins where the last one ends."""
        cut, job, pieces = self._pieces.cuts[piece], self._job, self._pieces
        sizes, in_slot = pieces.sizes[cut], pieces.in_slot[cut]
        source, begin = pieces.source[cut], pieces.begin[cut]
        if self._staging:
            local, memory = in_slot + self._staging.addresses[piece % SLOTS], self._staging.memory.number
        else:
            assert job.what.local.memory is not None
            local, memory = job.local_starts[source] + begin, job.what.local.memory.number
        remote = job.remote_starts[source] + begin
        of = job.remote_memory[source]
        if job.remote.slots:
            remote = in_slot + job.remote.slots[piece % SLOTS]
        local, remote, of, sizes = merged(local, remote, of, sizes)
        yield from job.move(ranges(local, sizes, memory), ranges(remote, sizes, of), (job.what.local, self._staging))

    def _copy(self, piece: int) -> None:
        """Starts to copy a piece between the device of this process and its slot."""
        staging, staged, left = self._staging, self._staged, self._milliseconds_left()
        if staging is not None and staged is not None:
            self._copying = self._thread.in_worker(lambda: staging.copy(staged, piece, left))

    def _copied(self) -> Steps[None]:
        """Waits for the copy that runs."""
        copying = self._copying
        if copying is not None:
            yield (lambda: copying.done), float("inf")
            copying.get()

    def _ask(self, piece: int) -> None:
        """Asks the peer to copy a piece between its device and its slot."""
        if self._job.remote.slots:
            self._asked[piece] = number = self._job.link.next_number()
            self._job.link.send(Stage(number, self._job.remote.number, piece, self._milliseconds_left()))

    def _answer(self, piece: int) -> Steps[None]:
        """Waits until the peer has."""
        if piece in self._asked:
            yield from self._job.link.reply(self._asked.pop(piece), Done, self._job.deadline)

    def _is_quiet(self) -> bool:
        link = self._job.link
        return not link.uses(self._job.remote.number) and all(map(link.has_reply, self._asked.values()))

    def _milliseconds_left(self) -> int:
        return max(1, int((self._job.deadline - time.monotonic()) * 1000))


def ranges(starts: Numbers, sizes: Numbers, memory: Numbers | int) -> Numbers:
    """Ranges as ``nixl.Addresses``."""
    made = np.empty((len(starts), 3), np.int64)
    made[:, 0], made[:, 1], made[:, 2] = starts, sizes, memory
    return made
