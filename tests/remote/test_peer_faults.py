# SPDX-License-Identifier: Apache-2.0
"""Peers that die, stop, or unlink in the middle of a transfer, and caches that end. Each row of the table in docs/remote.md.

In the middle of a transfer: over TCP it takes tens of milliseconds, and needs the peer to go on.
"""

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from remote_utils import PEER, SELF, Pair, Peer, cluster, desc, linked, wait_until

from llm_datadist_torch import CacheKey, CacheKeyByIdAndIndex, LLMException, LLMStatusCode

ELEMENTS = 64 << 20  # 256 MiB in one row


@pytest.fixture(autouse=True)
def over_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp")


@pytest.fixture
def slow_peer() -> Iterator[Peer]:
    started = Peer(UCX_TLS="tcp")
    yield started
    started.process.kill()
    started.process.join()


def code_of(call: Callable[[], object]) -> LLMStatusCode:
    try:
        call()
    except LLMException as error:
        return error.status_code
    return LLMStatusCode.LLM_SUCCESS


def in_the_middle(pair: Pair, act: Callable[[], object], *, write: bool = False) -> LLMStatusCode:
    """Acts while a transfer of row 1 is in flight. Checks that no other row changes. Returns the code of the transfer."""
    pair.peer.do(f"held = manager.allocate_cache(desc(1, 3, {ELEMENTS}))\nheld.tensors[0].fill_(7)")
    own = pair.manager.allocate_cache(desc(1, 3, ELEMENTS))
    own.tensors[0].fill_(3)
    codes = []
    key = CacheKeyByIdAndIndex(PEER, pair.peer.get("held.cache_id"), 1)

    def move() -> None:
        call = (
            (lambda: pair.manager.push_cache(key, own, 1)) if write else (lambda: pair.manager.pull_cache(key, own, 1))
        )
        codes.append(code_of(call))

    thread = threading.Thread(target=move)
    thread.start()
    time.sleep(0.06)
    assert thread.is_alive(), "the transfer was over before anything happened"
    act()
    thread.join(30)
    assert not thread.is_alive()
    host = own.tensors[0].cpu()
    assert bool((host[:, [0, 2]] == 3).all())
    return codes[0]


def works(pair: Pair) -> None:
    """Links anew, and transfers."""
    pair.link()
    works_once(pair)


@pytest.mark.slow
class TestInTheMiddle:
    @pytest.mark.parametrize("write", [False, True])
    def test_killed(self, slow_peer: Peer, write: bool) -> None:
        with linked(slow_peer) as pair:
            begin = time.monotonic()
            code = in_the_middle(pair, lambda: slow_peer.signal(signal.SIGKILL), write=write)
            assert code is LLMStatusCode.LLM_LINK_FAILED
            assert time.monotonic() - begin < 10  # noticed, and not waited for until sync_kv_timeout
            held = pair.manager.allocate_cache(desc(1, 1, 8))
            again = code_of(lambda: pair.manager.pull_cache(CacheKeyByIdAndIndex(PEER, 1), held))
            assert again is LLMStatusCode.LLM_NOT_YET_LINK
            assert pair.datadist.check_link_status(PEER) is LLMStatusCode.LLM_NOT_YET_LINK

    @pytest.mark.parametrize("write", [False, True])
    def test_stopped(self, slow_peer: Peer, write: bool) -> None:
        """The transfer is parked: a link waits for its end, and memory of this process until then."""
        with linked(slow_peer, timeout_ms=4000) as pair:
            begin = time.monotonic()
            code = in_the_middle(pair, lambda: slow_peer.signal(signal.SIGSTOP), write=write)
            assert code is LLMStatusCode.LLM_TIMEOUT
            assert time.monotonic() - begin < 15
            busy = LLMStatusCode.LLM_LINK_BUSY
            if not torch.accelerator.is_available():  # with an NPU, only a staging buffer is written
                assert pair.datadist.link_clusters([cluster(PEER, pair.port)], 1000) == (busy, [busy])
            slow_peer.signal(signal.SIGCONT)
            link = [cluster(PEER, pair.port)]
            wait_until(lambda: pair.datadist.link_clusters(link, 5000)[0] is LLMStatusCode.LLM_SUCCESS, "no new link")
            assert pair.datadist.unlink_clusters(link)[0] is LLMStatusCode.LLM_SUCCESS
            works(pair)
            wait_until(
                lambda: slow_peer.get("sum(e.references for e in manager._registry._entries.values())") == 0, "in use"
            )

    def test_unlinked_by_force_here(self, slow_peer: Peer) -> None:
        with linked(slow_peer) as pair:
            unlink = lambda: pair.datadist.unlink_clusters([cluster(PEER, pair.port)], force=True)  # noqa: E731
            assert in_the_middle(pair, unlink) is LLMStatusCode.LLM_LINK_FAILED
            wait_until(lambda: slow_peer.get(f"datadist.check_link_status({SELF})") != 0, "the peer has a link")
            wait_until(lambda: code_of(lambda: works(pair)) is LLMStatusCode.LLM_SUCCESS, "no new link")

    def test_unlinked_by_force_there(self, slow_peer: Peer) -> None:
        with linked(slow_peer) as pair:
            unlink = lambda: slow_peer.do(f"datadist.unlink_clusters([cluster({SELF}, 1)], force=True)")  # noqa: E731
            assert in_the_middle(pair, unlink) in (LLMStatusCode.LLM_LINK_FAILED, LLMStatusCode.LLM_SUCCESS)

    def test_unlink_waits(self, slow_peer: Peer) -> None:
        """Without force the call ends first. If it takes too long, the link stays."""
        with linked(slow_peer) as pair:
            link, codes = [cluster(PEER, pair.port)], []
            first = lambda: codes.extend(pair.datadist.unlink_clusters(link, 1)[1])  # noqa: E731
            assert in_the_middle(pair, first) is LLMStatusCode.LLM_SUCCESS
            assert codes == [LLMStatusCode.LLM_LINK_BUSY]
            then = lambda: codes.extend(pair.datadist.unlink_clusters(link, 20_000)[1])  # noqa: E731
            assert in_the_middle(pair, then) is LLMStatusCode.LLM_SUCCESS
            assert codes[1:] == [LLMStatusCode.LLM_SUCCESS]

    @pytest.mark.parametrize("write", [False, True])
    def test_cache_deallocated_there(self, slow_peer: Peer, write: bool) -> None:
        with linked(slow_peer) as pair:
            end = lambda: slow_peer.do("manager.deallocate_cache(held)\ndel held")  # noqa: E731
            assert in_the_middle(pair, end, write=write) is LLMStatusCode.LLM_SUCCESS
            wait_until(lambda: slow_peer.get("len(manager._registry._entries)") == 0, "the memory is still there")

    def test_finalized_there(self, slow_peer: Peer) -> None:
        """finalize waits for the peer."""
        with linked(slow_peer) as pair:
            code = in_the_middle(pair, lambda: slow_peer.do("datadist.finalize()"))
            assert code in (LLMStatusCode.LLM_LINK_FAILED, LLMStatusCode.LLM_SUCCESS)
            assert slow_peer.get("datadist._links is None")


def test_stopped_before_the_request(peer: Peer) -> None:
    """Nothing is in flight then, and nothing is written."""
    with linked(peer, timeout_ms=2000) as pair:
        own = pair.manager.allocate_cache(desc(1, 1, 8))
        own.tensors[0].fill_(3)
        peer.do("held = manager.allocate_cache(desc(1, 1, 8), [CacheKey(1, 7)])\nheld.tensors[0].fill_(5)")
        peer.signal(signal.SIGSTOP)
        try:
            code = code_of(lambda: pair.manager.pull_cache(CacheKey(PEER, 7), own))
        finally:
            peer.signal(signal.SIGCONT)
        assert code is LLMStatusCode.LLM_TIMEOUT
        assert own.tensors[0].tolist() == [[[3.0] * 8]]
        pair.link()
        pair.manager.pull_cache(CacheKey(PEER, 7), own)  # the key is still there
        assert own.tensors[0].tolist() == [[[5.0] * 8]]


def test_memory_of_a_cache_is_released_with_it(pair: Pair) -> None:
    """Transfers hold neither tensors nor registrations of caches that have ended."""
    pair.peer.do("held = manager.allocate_cache(desc(1, 1, 8))")
    own = pair.manager.allocate_cache(desc(1, 1, 8))
    pair.manager.pull_cache(CacheKeyByIdAndIndex(PEER, pair.peer.get("held.cache_id")), own)
    alive = weakref.ref(own.tensors[0])
    pair.manager.deallocate_cache(own)
    gc.collect()
    assert alive() is None
    assert own not in pair.manager._transfers._links.caches._known


@pytest.mark.slow
def test_nothing_is_leaked(pair: Pair, device: str) -> None:
    """10,000 pulls of caches that live for one pull each, and one in ten is refused."""

    def used() -> tuple[int, int, int]:
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * 4096
        return resident, len(os.listdir("/proc/self/fd")), threading.active_count()

    pair.peer.do("used = None")
    pair.peer.do("import threading")
    pulls = 10_000 if device == "cpu" else 1000
    before: tuple[int, int, int] = (0, 0, 0)
    for number in range(pulls):
        if number % 100 == 0:
            pair.peer.do(
                "for request in range(100):\n"
                "    held = manager.allocate_cache(desc(2, 1, 1 << 10), [CacheKey(1, request)])\n"
                "    manager.deallocate_cache(held)"
            )
        own = pair.manager.allocate_cache(desc(2 + (number % 10 == 9), 1, 1 << 10))
        code = code_of(lambda: pair.manager.pull_cache(CacheKey(PEER, number % 100), own))  # noqa: B023
        assert (code is LLMStatusCode.LLM_SUCCESS) == (number % 10 != 9)
        pair.manager.deallocate_cache(own)
        if number % 100 == 99:
            pair.peer.do("for request in range(9, 100, 10): manager.remove_cache_key(CacheKey(1, request))")
        if number == pulls // 5:
            gc.collect()
            before = used()
    gc.collect()
    after = used()
    assert after[1:] == before[1:]
    assert after[0] - before[0] < 16 << 20
    wait_until(lambda: pair.peer.get("len(manager._registry._entries)") == 0, "the peer keeps caches")


def test_a_call_that_interrupts_another_is_refused(pair: Pair) -> None:
    """A signal handler pulls over the link that its thread is using. Both processes go on."""
    pair.peer.do("held = manager.allocate_cache(desc(1, 1, 8))\nheld.tensors[0].fill_(5)")
    key = CacheKeyByIdAndIndex(PEER, pair.peer.get("held.cache_id"))
    own, other = (pair.manager.allocate_cache(desc(1, 1, 8)) for _ in range(2))
    link, codes = pair.manager._transfers._links.find(PEER), []
    real = link.receive

    def interrupted(deadline: float) -> object:
        link.receive = real
        codes.append(code_of(lambda: pair.manager.pull_cache(key, other)))
        return real(deadline)

    link.receive = interrupted
    pair.manager.pull_cache(key, own)
    assert codes == [LLMStatusCode.LLM_LINK_BUSY]
    pair.manager.pull_cache(key, other)
    assert own.tensors[0].tolist() == other.tensors[0].tolist() == [[[5.0] * 8]]


def works_once(pair: Pair) -> None:
    pair.peer.do("small = manager.allocate_cache(desc(1, 1, 8))\nsmall.tensors[0].fill_(5)")
    own = pair.manager.allocate_cache(desc(1, 1, 8))
    pair.manager.pull_cache(CacheKeyByIdAndIndex(PEER, pair.peer.get("small.cache_id")), own)
    assert own.tensors[0].tolist() == [[[5.0] * 8]]
