# SPDX-License-Identifier: Apache-2.0
"""The transfer engine NIXL. Another engine would have the same interface.

Note [Progress]: NIXL's own progress thread polls without a pause, which costs a core for as long as the process lives. So
it is off, and NIXL makes progress only when it is called. The process that reads or writes calls it in ``Request.wait``, its
peer in ``Link._serve`` for as long as it has exports. An idle process polls nothing.
"""

import logging
import time
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..datadist.status import LLMStatusCode, llm_error

Addresses = npt.NDArray[np.uint64]
"""``[n, 3]``: the address of each range, its length in bytes, and 0, NIXL's number of a device."""

_SPIN_SECONDS = 300e-6  # then sleep: a wait may be long
_SHORTEST_SLEEP, _LONGEST_SLEEP = 20e-6, 1e-3


class Memory:
    """Memory that has been registered with the engine, until ``deregister``."""

    def __init__(self, descriptors: Any, metadata: bytes) -> None:
        self.descriptors, self.metadata = descriptors, metadata


class Engine:
    """One NIXL agent over UCX. Every method is thread-safe.

    Args:
        cluster_id: The cluster of this process. The name of the agent begins with it, and is new in every process.

    Raises:
        LLMException: LLM_FEATURE_NOT_ENABLED without NIXL.
    """

    def __init__(self, cluster_id: int) -> None:
        try:
            from nixl_cu12 import _api as nixl
        except ImportError as error:
            raise llm_error(
                LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
                f"caches of other processes need NIXL ({error}): pip install 'llm_datadist_torch[remote]'",
            ) from error
        # NIXL writes what it does to stdout, at level INFO.
        logging.getLogger("nixl").setLevel(logging.WARNING)
        self.name = f"{cluster_id}-{uuid.uuid4().hex}"
        self._agent = nixl.nixl_agent(
            self.name,
            nixl.nixl_agent_config(
                enable_prog_thread=False,
                backends=["UCX"],
                sync_mode=nixl.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT,
            ),
        )
        self._registered: weakref.WeakSet[Memory] = weakref.WeakSet()

    @property
    def metadata(self) -> bytes:
        """How a peer reaches this agent. Does not cover memory that is registered later."""
        metadata: bytes = self._agent.get_agent_metadata()
        return metadata

    def add_peer(self, metadata: bytes) -> str:
        """Adds an agent, or memory of an agent, by the metadata that it sent.

        Returns:
            The name of the agent.

        Raises:
            ValueError: The metadata is not of an agent, or not of one that can be reached.
        """
        try:
            name: Any = self._agent.add_remote_agent(metadata)  # bytes, which NIXL calls a str
        except Exception as error:  # NIXL's errors have no base of their own
            raise ValueError(f"NIXL refuses the agent: {error}") from error
        return str(name.decode())

    def remove_peer(self, name: str) -> None:
        """Disconnects from an agent. Does nothing for an unknown one."""
        try:
            self._agent.remove_remote_agent(name)
        except Exception:
            logging.getLogger(__name__).debug("cannot remove agent %s", name, exc_info=True)

    def register(self, tensors: Sequence[Tensor]) -> Memory:
        """Registers the storages of host tensors."""
        storages = {(s.data_ptr(), s.nbytes()) for s in (tensor.untyped_storage() for tensor in tensors)}
        ranges = [(address, size, 0, "") for address, size in sorted(storages)]
        descriptors = self._agent.register_memory(ranges, "DRAM")
        memory = Memory(descriptors, self._agent.get_partial_agent_metadata(descriptors, inc_conn_info=False))
        self._registered.add(memory)
        return memory

    def deregister(self, memory: Memory) -> None:
        """Ends a registration."""
        if memory in self._registered:
            self._registered.discard(memory)
            self._agent.deregister_memory(memory.descriptors)

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
        descriptors = [agent.get_xfer_descs(ranges, "DRAM") for ranges in (local, remote)]
        return Request(agent, agent.initialize_xfer(operation, *descriptors, peer))


class Request:
    """A read or write in flight."""

    def __init__(self, agent: Any, handle: Any) -> None:
        self._agent, self._handle = agent, handle
        self._state: str = agent.transfer(handle)

    def done(self) -> bool:
        """Whether the request has ended. Raises RuntimeError if it failed."""
        if self._state == "PROC":
            self._state = self._agent.check_xfer_state(self._handle)
        if self._state == "ERR":
            raise RuntimeError("the transfer failed")
        return self._state == "DONE"

    def wait(self, deadline: float, lost: Callable[[], bool]) -> bool:
        """Waits for the end.

        Args:
            deadline: When to give up, by ``time.monotonic``.
            lost: Whether the peer is gone.

        Returns:
            False if the request is still in flight.
        """
        begin, pause = time.monotonic(), _SHORTEST_SLEEP
        while not self.done():
            now = time.monotonic()
            if now > deadline or lost():
                return False
            if now > begin + _SPIN_SECONDS:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_SLEEP)
        return True

    def release(self) -> None:
        """Frees the handle. Call it only after the end: NIXL may report a request as cancelled that still writes."""
        self._handle.release()
