# SPDX-License-Identifier: Apache-2.0
"""One request to the engine over a link."""

import contextlib
from collections.abc import Iterator

from ..datadist.status import LLMException, LLMStatusCode, llm_error
from .link import Link
from .nixl import Addresses, Request


@contextlib.contextmanager
def link_request(
    link: Link, operation: str, local: Addresses, remote: Addresses, owner: object, deadline: float, timeout_ms: int
) -> Iterator[None]:
    """Reads or writes while the block runs, and waits for the end after it, also if the block raises.

    Args:
        link: The link, of which ``use`` is held.
        operation: "READ" or "WRITE".
        local: The ranges of this process.
        remote: The ranges of the peer.
        owner: The owner of the local memory, kept alive until the request has ended.
        deadline: When to give up.
        timeout_ms: The timeout, for messages.

    Raises:
        LLMException: LLM_TIMEOUT, or LLM_LINK_FAILED if the peer is gone. The link has ended then.
    """
    request = link.start_request(operation, local, remote)
    try:
        yield
    except BaseException:
        with contextlib.suppress(LLMException):  # the caller will use the staging slot again
            _wait(link, request, owner, deadline, timeout_ms)
        raise
    _wait(link, request, owner, deadline, timeout_ms)


def _wait(link: Link, request: Request, owner: object, deadline: float, timeout_ms: int) -> None:
    failure = None
    try:
        if request.wait(deadline, lambda: link.lost):
            request.release()
            return
    except Exception as error:  # NIXL's errors have no base of their own
        failure = error
    except BaseException:  # Ctrl-C
        link.abandon(request, owner)
        raise
    timed_out = failure is None and not link.lost
    link.abandon(request, owner)
    undefined = "what the destination range holds is undefined"
    if timed_out:
        raise llm_error(
            LLMStatusCode.LLM_TIMEOUT,
            f"not done after sync_kv_timeout, {timeout_ms} ms; {undefined}, and the link to cluster {link.cluster_id} has "
            "ended, and has to be made again",
        )
    raise llm_error(
        LLMStatusCode.LLM_LINK_FAILED, f"the link to cluster {link.cluster_id} was lost; {undefined}"
    ) from failure
