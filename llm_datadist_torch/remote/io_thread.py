# SPDX-License-Identifier: Apache-2.0
"""The I/O thread: it owns all sockets and links, and runs every transfer.

Note [One thread]: links, leases and transfers are touched by the I/O thread alone, so they need no lock. Other threads hand it
functions, and wait for a ``Result``. A signal handler runs in the main thread, and cannot interrupt a transfer half way. No
thread waits for the I/O thread while it holds a lock: the I/O thread may run a destructor that takes the same lock.
"""

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import zmq

from ..datadist.result import Result
from ..datadist.status import LLMException, LLMStatusCode, llm_error

T = TypeVar("T")
Steps = Generator[tuple[Callable[[], object], float], bool, T]
"""A function that the I/O thread runs in steps. It yields what it waits for, and when it wants to go on without it, by
``time.monotonic``. It is sent whether what it waited for has come."""

_SPIN_SECONDS = 300e-6  # after anything has happened: a reply comes sooner than a thread wakes. Then sleep
_PAUSE_SECONDS = 50e-6
LONGEST_WAIT_MS = 60_000

logger = logging.getLogger(__name__)


class _Task:
    """A function that runs in steps."""

    def __init__(self, steps: Steps[Any], result: Result[Any]) -> None:
        self.steps, self.result = steps, result
        self.ready: Callable[[], object] = lambda: True
        self.deadline = 0.0


class IoThread:
    """The I/O thread of a process, which runs until ``stop``.

    Args:
        progress: Called again and again. Returns the milliseconds until it wants to be called again, or 0 for at once,
            because a transfer is in flight.
        at_end: Called at the end, in the I/O thread.
    """

    def __init__(self, progress: Callable[[], int], at_end: Callable[[], None]) -> None:
        self._progress, self._at_end = progress, at_end
        self._poller = zmq.Poller()
        self._readers: dict[Any, Callable[[], None]] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._tasks: list[_Task] = []
        self._worker: ThreadPoolExecutor | None = None
        self._stopping = False
        self._pid = os.getpid()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._wake).atexit = False
        self.add_reader(self._wake, self._drain_wake)
        self._thread = threading.Thread(target=self._run, name="llm_datadist I/O", daemon=True)
        self._thread.start()

    @property
    def runs_here(self) -> bool:
        """Whether this is the process of the thread. A forked child has none."""
        return os.getpid() == self._pid and not self._stopping

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in the I/O thread: a destructor, which must not wait for it."""
        return threading.current_thread() is self._thread

    def call(self, function: Callable[[], None]) -> None:
        """Runs a function in the I/O thread, soon. Takes no lock. Does nothing after ``stop`` and in a forked child."""
        if self.runs_here:
            self._calls.append(function)
            os.eventfd_write(self._wake, 1)

    def start(self, steps: Steps[T], result: Result[T] | None = None) -> Result[T]:
        """Runs a function in steps. Can be called from any thread.

        Returns:
            The result, new unless one is given. Without the thread it is an LLM_ENGINE_FINALIZED.
        """
        task = _Task(steps, Result() if result is None else result)
        if not self.runs_here:
            self._finish(task, None, _finalized())
        elif self.is_current:
            self._begin(task)
        else:
            self.call(lambda: self._begin(task))
            if self._stopping:  # since the question above
                self._finish(task, None, _finalized())
        return task.result

    def cancel(self, result: Result[T], error: BaseException) -> None:
        """Raises an error in the function with a result, where it waits. Can be called from any thread."""

        def throw() -> None:
            found = next((task for task in self._tasks if task.result is result), None)
            if found is not None:
                self._go_on(found, lambda: found.steps.throw(error))

        self.call(throw)

    def in_worker(self, function: Callable[[], T]) -> Result[T]:
        """Runs a function that blocks, a copy of a device, in a thread for such functions. One at a time."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="llm_datadist staging")
        result: Result[T] = Result()

        def run() -> None:
            try:
                result.set(function())
            except BaseException as error:
                result.set(None, _without_traceback(error))
            self.call(lambda: None)

        self._worker.submit(run)
        return result

    def add_reader(self, socket: Any, function: Callable[[], None]) -> None:
        """Calls a function whenever a socket or descriptor can be read. For the I/O thread."""
        self._readers[socket] = function
        self._poller.register(socket, zmq.POLLIN)

    def remove_reader(self, socket: Any) -> None:
        """Ends ``add_reader``. For the I/O thread."""
        if self._readers.pop(socket, None) is not None:
            self._poller.unregister(socket)

    def stop(self) -> None:
        """Ends the thread, and every function that has not ended. Can be called from any thread."""
        if self.runs_here:
            self._calls.append(self._end)
            os.eventfd_write(self._wake, 1)
            if not self.is_current:
                self._thread.join()

    def _end(self) -> None:
        self._stopping = True

    def _drain_wake(self) -> None:
        os.eventfd_read(self._wake)

    def _run(self) -> None:
        idle_since, stepped = time.monotonic(), 0
        while not self._stopping:
            longest = self._guarded(self._progress)
            active = longest == 0
            # After a step of one task, another one may have what it waits for.
            spins = active or stepped or self._calls or (self._tasks and time.monotonic() < idle_since + _SPIN_SECONDS)
            timeout = 0 if spins else min(self._milliseconds(), longest or LONGEST_WAIT_MS)
            ready = self._poller.poll(timeout)
            for socket, _ in ready:
                if socket in self._readers:  # another reader may have removed it
                    self._guarded(self._readers[socket])
            calls = len(self._calls)
            for _ in range(calls):
                self._guarded(self._calls.popleft())
            stepped = sum(self._step(task) for task in list(self._tasks))
            if ready or calls or stepped:
                idle_since = time.monotonic()
            elif active and time.monotonic() > idle_since + _SPIN_SECONDS:
                time.sleep(_PAUSE_SECONDS)
            else:
                os.sched_yield()
        while self._calls:
            self._guarded(self._calls.popleft())
        for task in list(self._tasks):
            self._guarded(task.steps.close)
            self._finish(task, None, _finalized())
        if self._worker is not None:
            self._worker.shutdown()
        self._guarded(self._at_end)

    def _milliseconds(self) -> int:
        """How long the thread may sleep: until the first deadline."""
        first = min((task.deadline for task in self._tasks), default=float("inf"))
        return int(max(0, min(LONGEST_WAIT_MS, (first - time.monotonic()) * 1000 + 1)))

    def _guarded(self, function: Callable[[], Any]) -> Any:
        """Calls a function. Its error must not end the thread."""
        try:
            return function()
        except Exception:
            logger.exception("error in the I/O thread")
            return None

    def _begin(self, task: _Task) -> None:
        self._tasks.append(task)
        self._step(task)

    def _step(self, task: _Task) -> bool:
        """Lets a task go on, if what it waits for has come, or will not. Returns whether it has."""
        try:
            came = bool(task.ready())
        except Exception as error:
            thrown = error
            self._go_on(task, lambda: task.steps.throw(thrown))
            return True
        if task.result.done or not (came or time.monotonic() >= task.deadline):
            return False
        self._go_on(task, lambda: task.steps.send(came) if task.deadline else next(task.steps))
        return True

    def _go_on(self, task: _Task, step: Callable[[], tuple[Callable[[], object], float]]) -> None:
        try:
            task.ready, task.deadline = step()
        except StopIteration as end:
            self._finish(task, end.value, None)
        except BaseException as error:
            self._finish(task, None, _without_traceback(error))

    def _finish(self, task: _Task, value: Any, error: BaseException | None) -> None:
        if task in self._tasks:
            self._tasks.remove(task)
        task.result.set(value, error)


def _finalized() -> LLMException:
    return llm_error(LLMStatusCode.LLM_ENGINE_FINALIZED, "the links have been finalized")


def _without_traceback(error: BaseException | None) -> BaseException | None:
    """Drops the tracebacks of an error that a result will hold: their frames know the result, and the cycle keeps caches."""
    if error is not None and not isinstance(error, LLMException):
        logger.error("error in the I/O thread", exc_info=error)
    link = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error
