# SPDX-License-Identifier: Apache-2.0
"""What this process asks of a peer, step by step. All for the I/O thread."""

import time

from ..datadist.log import logger
from ..datadist.status import LLMException, LLMStatusCode, llm_error
from .held_leases import Lease
from .io_thread import Steps
from .link import Link
from .messages import Done, Granted, Key, Unlink
from .nixl import Addresses


def acquire(link: Link, key: Key, deadline: float, *, write: bool) -> Steps[Lease]:
    """Acquires a lease, which ``HeldLeases.release`` ends. Raises the errors of ``reply``."""
    number, leases = link.next_number(), link.held_leases
    link.send(leases.request(number, key, write=write))
    try:
        reply = yield from link.reply(number, Granted, deadline)
        try:
            return leases.received(reply)
        except ValueError as error:
            link.drop()
            raise llm_error(LLMStatusCode.LLM_LINK_FAILED, f"{link}: {error}") from error
    except BaseException:
        leases.release(number, None)
        raise


def move(
    link: Link, operation: str, local: Addresses, remote: Addresses, lease: int, owner: object, deadline: float
) -> Steps[None]:
    """Reads or writes.

    Args:
        operation: "READ" or "WRITE".
        owner: The owner of the local memory, kept alive until the request has ended.

    Raises:
        LLMException: LLM_TIMEOUT, or LLM_LINK_FAILED if the peer is gone. The link has ended then.
    """
    leases = link.held_leases
    try:
        request = leases.start(operation, local, remote, lease, owner)
    except Exception as error:  # NIXL's errors have no base of their own
        link.drop()
        raise link.failure() from error
    if not request.has_ended():
        yield (lambda: request.has_ended() or link.has_ended), deadline
    if not request.has_ended():
        failure = link.failure() if link.has_ended else link.timeout()
    elif request.failed:
        failure = link.failure()
    else:
        leases.check_in_flight()
        return
    link.drop()
    link.check_in_flight()
    raise failure


def unlink(link: Link, timeout_ms: int) -> Steps[LLMStatusCode]:
    """Ends the link on both sides, when no call of either uses it."""
    deadline = time.monotonic() + timeout_ms / 1000
    link.unlinking = True
    try:
        yield (lambda: link.has_ended or not link.transfers), deadline
        if link.transfers and not link.has_ended:
            logger.error("unlink_clusters: a call uses the link to cluster %d", link.cluster_id)
            return LLMStatusCode.LLM_LINK_BUSY
        left = (deadline - time.monotonic()) * 1000
        number = link.next_number()
        link.send(Unlink(number, int(left * 0.9)))  # so that its refusal arrives in time
        yield from link.reply(number, Done, deadline)
    except LLMException as error:
        if error.status_code in (LLMStatusCode.LLM_LINK_FAILED, LLMStatusCode.LLM_NOT_YET_LINK):
            link.drop()
            return LLMStatusCode.LLM_SUCCESS  # the peer has ended it too, or is gone
        logger.error("unlink_clusters: %s", error)
        busy = error.status_code is LLMStatusCode.LLM_LINK_BUSY
        return LLMStatusCode.LLM_LINK_BUSY if busy else LLMStatusCode.LLM_NOTIFY_PROMPT_UNLINK_FAILED
    finally:
        link.unlinking = False
    link.drop()
    return LLMStatusCode.LLM_SUCCESS
