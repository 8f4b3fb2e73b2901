# SPDX-License-Identifier: Apache-2.0
"""Transfers the bytes of one call: directly between host memory, or through staging slots if a side is on a device."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from .layout import Numbers, Part, groups, merged, split
from .link import Link
from .link_request import link_request
from .local_caches import LocalCache
from .nixl import Addresses
from .peer_cache import PeerCache
from .staging import SLOTS, pieces

_REQUEST_BYTES = 64 << 20
"""The most bytes of one request to the engine. The deadline is checked between requests."""


@dataclass(frozen=True)
class TransferJob:
    """The bytes of one call. ``Link.use`` is held.

    Attributes:
        link: The link.
        local: The cache of this process.
        local_part: The part of it.
        remote: The cache of the peer.
        remote_part: The part of it, with as many slices.
        lengths: The bytes of each slice.
        write: Whether the peer's cache is written.
        deadline: When to give up, by ``time.monotonic``.
        timeout_ms: The timeout of the call, for messages.
    """

    link: Link
    local: LocalCache
    local_part: Part
    remote: PeerCache
    remote_part: Part
    lengths: Sequence[int]
    write: bool
    deadline: float
    timeout_ms: int

    def run(self) -> None:
        """Transfers all bytes.

        Raises:
            LLMException: LLM_TIMEOUT, LLM_LINK_FAILED, or LLM_FAILED if a device fails. What the destination holds is
                undefined then.
        """
        local, remote = self.local_part.addresses(self.local.layout), self.remote_part.addresses(self.remote.layout)
        if self.local.memory is not None and not self.remote.slots:
            self._run_directly(local, remote)
        else:
            _StagedRun(self, local, remote).run()

    def request(self, local: Addresses, remote: Addresses, owner: object) -> AbstractContextManager[None]:
        """One request to the engine. See ``link_request``."""
        operation = "WRITE" if self.write else "READ"
        return link_request(self.link, operation, local, remote, owner, self.deadline, self.timeout_ms)

    def _run_directly(self, local: Numbers, remote: Numbers) -> None:
        planes = self.local_part.planes[1] - self.local_part.planes[0]
        local, remote, lengths = merged(local, remote, np.tile(np.array(self.lengths, dtype=np.uint64), planes))
        source, begin, sizes = split(lengths, _REQUEST_BYTES)
        local, remote = local[source] + begin, remote[source] + begin
        for cut in groups(sizes, _REQUEST_BYTES):
            with self.request(_ranges(local[cut], sizes[cut]), _ranges(remote[cut], sizes[cut]), self.local):
                pass


class _StagedRun:
    """A job in pieces: while the engine transfers one piece, the device of either side copies another."""

    def __init__(self, job: TransferJob, local: Numbers, remote: Numbers) -> None:
        self._job = job
        self._source, self._begin, self._sizes, self._cuts = pieces(
            job.local_part.planes[1] - job.local_part.planes[0], tuple(job.lengths)
        )
        self._local, self._remote = local[self._source] + self._begin, remote[self._source] + self._begin
        self._staging = job.link.staging() if job.local.memory is None else None

    def run(self) -> None:
        (self._write if self._job.write else self._read)()

    def _read(self) -> None:
        job, count = self._job, len(self._cuts)
        for piece in range(min(SLOTS, count)):
            self._send_stage(piece)
        for piece in range(count):
            self._await_staged()
            with job.request(*self._ranges_of(piece), (job.local, self._staging)):
                if piece > 0:
                    self._copy(piece - 1)
            if piece + SLOTS < count:
                self._send_stage(piece + SLOTS)
        self._copy(count - 1)

    def _write(self) -> None:
        job, count = self._job, len(self._cuts)
        self._copy(0)
        for piece in range(count):
            if piece >= SLOTS:
                self._await_staged()
            with job.request(*self._ranges_of(piece), (job.local, self._staging)):
                if piece + 1 < count:
                    self._copy(piece + 1)
            self._send_stage(piece)
        for _ in range(min(SLOTS, count)):
            self._await_staged()

    def _ranges_of(self, piece: int) -> tuple[Addresses, Addresses]:
        """The ranges of a piece on both sides. In a slot, each begins where the last one ends."""
        cut, job = self._cuts[piece], self._job
        sizes = self._sizes[cut]
        in_slot = np.cumsum(sizes) - sizes
        slots = self._staging.addresses if self._staging else ()
        local = in_slot + np.uint64(slots[piece % SLOTS]) if slots else self._local[cut]
        remote = in_slot + np.uint64(job.remote.slots[piece % SLOTS]) if job.remote.slots else self._remote[cut]
        local, remote, sizes = merged(local, remote, sizes)
        return _ranges(local, sizes), _ranges(remote, sizes)

    def _copy(self, piece: int) -> None:
        """Copies a piece between the device of this process and its slot."""
        if self._staging is not None:
            job, left = self._job, self._milliseconds_left()
            self._staging.copy(job.local, job.local_part, job.lengths, piece, to_device=not job.write, timeout_ms=left)

    def _send_stage(self, piece: int) -> None:
        """Asks the peer to copy a piece between its device and its slot."""
        job, part = self._job, self._job.remote_part
        if job.remote.slots:
            where = {"planes": part.planes, "rows": part.rows, "offsets": part.offsets, "lengths": job.lengths}
            message = {"do": "stage", "export": job.remote.export, "piece": piece, **where}
            job.link.send({**message, "timeout": self._milliseconds_left()}, job.deadline)

    def _await_staged(self) -> None:
        if self._job.remote.slots:
            self._job.link.receive(self._job.deadline)

    def _milliseconds_left(self) -> int:
        return max(1, int((self._job.deadline - time.monotonic()) * 1000))


def _ranges(starts: Numbers, sizes: Numbers) -> Addresses:
    return np.stack((starts, sizes, np.zeros_like(starts)), axis=1)
