# SPDX-License-Identifier: Apache-2.0
"""Waiting for another thread, also in a signal handler that interrupts a thread which waits."""

import copy
import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Result(Generic[T]):
    """What a function in another thread returns or raises, for the threads that wait for it.

    A waiting thread may be interrupted by a signal handler that waits too. So no lock is shared: each thread waits for a lock
    of its own.
    """

    def __init__(self) -> None:
        self._value: T | None = None
        self._error: BaseException | None = None
        self._waiting: list[threading.Lock] = []
        self.done = False

    def wait(self, seconds: float | None = None) -> bool:
        """Whether the function has ended, at the latest after so many seconds."""
        mine = threading.Lock()
        mine.acquire()
        self._waiting.append(mine)
        return self.done or mine.acquire(timeout=-1 if seconds is None else max(seconds, 0)) or self.done

    def get(self) -> T:
        """Waits for the end, and returns or raises the outcome."""
        self.wait()
        if self._error is not None:
            # A copy: the frames of the callers, which know this object, are added to the traceback of what is raised.
            error, cause = copy.copy(self._error), self._error.__cause__
            try:
                raise error.with_traceback(self._error.__traceback__) from cause
            finally:
                del error
        return self._value  # type: ignore[return-value]

    def set(self, value: T | None, error: BaseException | None = None) -> None:
        """Ends the wait of all threads."""
        self._value, self._error, self.done = value, error, True
        while self._waiting:
            self._waiting.pop().release()
