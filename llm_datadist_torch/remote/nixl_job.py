# SPDX-License-Identifier: Apache-2.0
"""One request to the engine over a link."""

import contextlib

from ..datadist.status import LLMException, LLMStatusCode, llm_error
from .nixl import Addresses
from .peer import Link


class Move:
    """Reads or writes over a link in flight. As a context manager, it waits at the end of the block, whatever happens there.

    Args:
        link: The link, of which ``use`` is held.
        operation: "READ" or "WRITE".
        local: The ranges of this process.
        remote: The ranges of the peer.
        keep: Kept until nothing is in flight any more: the owner of the local memory.
        deadline: When to give up.
        timeout_ms: The timeout, for messages.
    """

    def __init__(
        self,
        link: Link,
        operation: str,
        local: Addresses,
        remote: Addresses,
        keep: object,
        deadline: float,
        timeout_ms: int,
    ) -> None:
        self._link, self._keep, self._deadline, self._timeout_ms = link, keep, deadline, timeout_ms
        self._transfer = link.post(operation, local, remote)

    def __enter__(self) -> "Move":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        else:  # the slot that it reads or writes is used again
            with contextlib.suppress(LLMException):
                self.wait()

    def wait(self) -> None:
        """Waits for the end.

        Raises:
            LLMException: LLM_TIMEOUT, or LLM_LINK_FAILED if the peer is gone. The link has ended then.
        """
        link, gone = self._link, None
        try:
            if self._transfer.wait(self._deadline, lambda: link.lost):
                self._transfer.release()
                return
        except Exception as error:  # NIXL's errors have no base of their own
            gone = error
        except BaseException:  # Ctrl-C
            link.park(self._transfer, self._keep)
            raise
        timed_out = gone is None and not link.lost
        link.park(self._transfer, self._keep)
        undefined = "what the destination range holds is undefined"
        if timed_out:
            raise llm_error(
                LLMStatusCode.LLM_TIMEOUT,
                f"not done after sync_kv_timeout, {self._timeout_ms} ms; {undefined}, and the link to cluster "
                f"{link.cluster_id} has ended, and has to be made again",
            )
        raise llm_error(
            LLMStatusCode.LLM_LINK_FAILED, f"the link to cluster {link.cluster_id} was lost; {undefined}"
        ) from gone
