# SPDX-License-Identifier: Apache-2.0
"""Locks in forked children."""

import os
import threading
import weakref
from typing import Any

_owners: weakref.WeakSet[Any] = weakref.WeakSet()


def renew_lock_in_children(owner: Any) -> None:
    """Replaces ``owner._lock`` in every forked child, where the thread that may hold it does not exist."""
    _owners.add(owner)


def _renew() -> None:
    for owner in _owners:
        owner._lock = threading.RLock()


os.register_at_fork(after_in_child=_renew)
