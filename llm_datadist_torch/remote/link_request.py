# SPDX-License-Identifier: Apache-2.0
"""One request to the engine over a link."""

import contextlib

from ..datadist.status import LLMException, LLMStatusCode, llm_error
from .link import Link
from .nixl import Addresses


class LinkRequest:
    """A read or write over a link, started by the constructor. A ``with`` block waits for it, also after an error.

    Args:
        link: The link, of which ``use`` is held.
        operation: "READ" or "WRITE".
        local: The ranges of this process.
        remote: The ranges of the peer.
        owner: The owner of the local memory, kept alive until the request has ended.
        deadline: When to give up.
        timeout_ms: The timeout, for messages.
    """

    def __init__(
        self,
        link: Link,
        operation: str,
        local: Addresses,
        remote: Addresses,
        owner: object,
        deadline: float,
        timeout_ms: int,
    ) -> None:
        self._link, self._owner, self._deadline, self._timeout_ms = link, owner, deadline, timeout_ms
        self._request = link.start_request(operation, local, remote)

    def __enter__(self) -> "LinkRequest":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        else:  # the caller will use the staging slot again
            with contextlib.suppress(LLMException):
                self.wait()

    def wait(self) -> None:
        """Waits for the end.

        Raises:
            LLMException: LLM_TIMEOUT, or LLM_LINK_FAILED if the peer is gone. The link has ended then.
        """
        link, failure = self._link, None
        try:
            if self._request.wait(self._deadline, lambda: link.lost):
                self._request.release()
                return
        except Exception as error:  # NIXL's errors have no base of their own
            failure = error
        except BaseException:  # Ctrl-C
            link.abandon(self._request, self._owner)
            raise
        timed_out = failure is None and not link.lost
        link.abandon(self._request, self._owner)
        undefined = "what the destination range holds is undefined"
        if timed_out:
            raise llm_error(
                LLMStatusCode.LLM_TIMEOUT,
                f"not done after sync_kv_timeout, {self._timeout_ms} ms; {undefined}, and the link to cluster "
                f"{link.cluster_id} has ended, and has to be made again",
            )
        raise llm_error(
            LLMStatusCode.LLM_LINK_FAILED, f"the link to cluster {link.cluster_id} was lost; {undefined}"
        ) from failure
