# SPDX-License-Identifier: Apache-2.0
"""The transfer engine NIXL. Another engine would have the same interface.

Note [Progress]: NIXL's own progress thread polls without a pause, which costs a core for as long as the process lives. So it is
off, and NIXL makes progress only when it is called. The I/O thread calls it while a transfer is in flight or a cache is leased.

Note [Registrations]: each registration has a number, which NIXL takes as the number of a device. NIXL looks a range up among the
registrations of one device. So memory that is registered again, or overlaps what a peer has not forgotten yet, is no other
registration's.

Note [Peers]: UCX keeps a descriptor or two for each agent that is removed while its process lives. So the engine is one for the
process, and keeps the peers of links that have ended, up to ``_IDLE_PEERS``.
"""

import ctypes
import functools
import importlib.util
import itertools
import logging
import os
import uuid
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..datadist.remote_api import NIXL

Addresses = npt.NDArray[np.int64]
"""``[n, 3]``: the address of each range, its length in bytes, and the number of the registration that it is in."""

Soon = Callable[[Callable[[], None]], object]

_IDLE_PEERS = 16


@dataclass(eq=False, frozen=True)
class Memory:
    """Memory that is registered with the engine, as long as this object is referenced.

    Attributes:
        number: The number of the registration, the device number of its ranges.
        metadata: What a peer has to know to reach the memory.
    """

    number: int
    metadata: bytes


class Engine:
    """One NIXL agent over UCX. Every method is thread-safe, but those for peers and requests are for the I/O thread."""

    def __init__(self) -> None:
        nixl = _import_nixl()
        # NIXL writes what it does to stdout, at level INFO.
        logging.getLogger("nixl").setLevel(logging.WARNING)
        self._agent = nixl.nixl_agent(
            uuid.uuid4().hex,
            nixl.nixl_agent_config(
                enable_prog_thread=False,
                backends=["UCX"],
                sync_mode=nixl.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT,
            ),
        )
        self._numbers = itertools.count(1)
        self._users: dict[str, int] = {}  # the links to each peer, the peers without one in the order of their end
        # How a peer reaches this agent, without any memory.
        none = nixl.nixlBind.nixlRegDList(nixl.nixlBind.DRAM_SEG)
        self.metadata: bytes = self._agent.get_partial_agent_metadata(none, inc_conn_info=True)

    def add_peer(self, metadata: bytes) -> str:
        """Adds a peer by the metadata that it has sent, for one link.

        Returns:
            The name of its agent.

        Raises:
            ValueError: The metadata is not of an agent, or not of one that can be reached.
        """
        try:
            name: str = self._agent.add_remote_agent(metadata).decode()
        except Exception as error:  # NIXL's errors have no base of their own
            raise ValueError(f"NIXL refuses the agent: {error}") from error
        self._users[name] = self._users.pop(name, 0) + 1
        return name

    def add_memory(self, metadata: bytes) -> None:
        """Adds memory of a peer. Raises ValueError as ``add_peer``."""
        try:
            self._agent.add_remote_agent(metadata)
        except Exception as error:
            raise ValueError(f"NIXL refuses the memory: {error}") from error

    def leave_peer(self, name: str, *, ended: bool) -> None:
        """Ends the use of a peer by one link. See Note [Peers].

        Args:
            name: The name of its agent.
            ended: Whether its process has ended.
        """
        users = self._users.pop(name) - 1
        self._users[name] = users
        idle = [peer for peer, count in self._users.items() if count == 0]
        for peer in [name] if ended and users == 0 else idle[:-_IDLE_PEERS]:
            self.forget_peer(peer)
            del self._users[peer]

    def forget_peer(self, name: str) -> None:
        """Disconnects from a peer, and forgets its memory."""
        try:
            self._agent.remove_remote_agent(name)
        except Exception:
            logging.getLogger(__name__).debug("cannot remove agent %s", name, exc_info=True)

    def has_one_user(self, name: str) -> bool:
        """Whether a single link uses a peer."""
        return self._users[name] == 1

    def register(self, tensors: Sequence[Tensor], soon: Soon) -> Memory:
        """Registers the memory of host tensors: from the first to the last byte of each. Ranges that touch become one.

        Args:
            soon: Runs a function that ends the registration, in the I/O thread. Takes no lock: a destructor calls it.
        """
        number = next(self._numbers)
        ranges: list[tuple[int, int]] = []
        for begin, end in sorted((tensor.data_ptr(), tensor.data_ptr() + extent(tensor)) for tensor in tensors):
            if ranges and begin <= ranges[-1][1]:
                begin, before = ranges.pop()
                end = max(before, end)
            ranges.append((begin, end))
        descriptors = self._agent.register_memory([(b, e - b, number, "") for b, e in ranges], "DRAM")
        memory = Memory(number, self._agent.get_partial_agent_metadata(descriptors, inc_conn_info=False))
        deregister = functools.partial(self._deregister, descriptors, os.getpid())
        weakref.finalize(memory, soon, deregister).atexit = False
        return memory

    def _deregister(self, descriptors: Any, pid: int) -> None:
        if os.getpid() == pid:  # and not a forked child
            self._agent.deregister_memory(descriptors)

    def keep_for_ever(self, used: object) -> None:
        """Keeps an object until the process ends, because the engine uses it, and cannot be stopped."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(used))

    def progress(self) -> None:
        """Lets NIXL answer what peers ask of this agent. See Note [Progress]."""
        self._agent.update_notifs()

    def start(self, operation: str, peer: str, local: Addresses, remote: Addresses) -> "Request":
        """Starts to read from a peer, or to write to it.

        Args:
            operation: "READ" or "WRITE".
            peer: The name of the agent.
            local: Ranges of registered memory of this process.
            remote: As many ranges of the peer, of the same lengths.
        """
        agent: Any = self._agent
        descriptors = [agent.get_xfer_descs(ranges.view(np.uint64), "DRAM") for ranges in (local, remote)]
        return Request(agent, agent.initialize_xfer(operation, *descriptors, peer))


class Request:
    """A read or write in flight."""

    def __init__(self, agent: Any, handle: Any) -> None:
        self._agent, self._handle = agent, handle
        self._state: str = agent.transfer(handle)

    def has_ended(self) -> bool:
        """Whether the request has ended, or failed. Frees it then. Nothing more is read or written."""
        if self._state == "PROC":
            try:
                self._state = self._agent.check_xfer_state(self._handle)
            except Exception:  # the peer is gone
                self._state = "ERR"
        if self._state == "PROC":
            return False
        if self._handle is not None:
            handle, self._handle = self._handle, None
            try:
                handle.release()
            except Exception:
                logging.getLogger(__name__).debug("cannot release a request", exc_info=True)
        return True

    @property
    def failed(self) -> bool:
        """Whether the request has failed."""
        return self._state == "ERR"


def extent(tensor: Tensor) -> int:
    """The bytes from the first byte of a tensor to its last one."""
    last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(last + 1) * tensor.element_size()


def _import_nixl() -> Any:
    wheel = next(name for name in NIXL if importlib.util.find_spec(name) is not None)
    return importlib.import_module(f"{wheel}._api")


@functools.cache
def engine_of_process(pid: int) -> Engine:
    """The engine of the process with this id. A forked child has one of its own."""
    return Engine()
