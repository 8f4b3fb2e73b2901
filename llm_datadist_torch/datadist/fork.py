# SPDX-License-Identifier: Apache-2.0
"""A lock for processes that fork."""

import os
import threading
import weakref


class ForkSafeLock:
    """A lock that is free in every forked child, because the thread that held it does not exist there.

    Attributes:
        current: The lock. It is reentrant, because Python may run a destructor or a signal handler, which takes the lock
            too, in the thread that holds it. A forked child gets another one: release the one that was acquired. Take it
            in a with statement, which releases it wherever a signal handler raises. CopyExecutor.copy has the way to do
            that with a timeout.
    """

    def __init__(self) -> None:
        self.renew()
        _locks.add(self)

    def renew(self) -> None:
        """Replaces the lock by a free one."""
        self.current = threading.RLock()


_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


def _renew_all() -> None:
    for lock in _locks:
        lock.renew()


os.register_at_fork(after_in_child=_renew_all)
