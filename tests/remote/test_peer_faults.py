# SPDX-License-Identifier: Apache-2.0
"""Peers that die, stop, or unlink in the middle of a transfer, and caches that end. Each row of the table in docs/remote.md.

In the middle of a transfer: over TCP it takes tens of milliseconds, and needs the peer to go on.
"""

import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
from remote_utils import PEER, SELF, Pair, Peer, code_of, desc, linked, wait_until

from llm_datadist_torch import CacheKey, CacheKeyByIdAndIndex, LLMStatusCode
from llm_datadist_torch.remote.held_leases import HeldLeases

ELEMENTS = 16 << 20  # 64 MiB in one row
DONE, FAILED = LLMStatusCode.LLM_SUCCESS, LLMStatusCode.LLM_LINK_FAILED


@pytest.fixture
def slow_peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    """A process of its own, with transfers over TCP."""
    monkeypatch.setenv("UCX_TLS", "tcp")
    started = Peer(UCX_TLS="tcp")
    yield started
    started.process.kill()
    started.process.join()


def in_the_middle(pair: Pair, act: Callable[[], object], *, write: bool = False) -> LLMStatusCode:
    """Acts while a transfer of row 1 is in flight. Checks that row 0 does not change. Returns the transfer's code."""
    # Both are filled before the time of the transfer begins: on an NPU, filling is asynchronous.
    pair.peer.do(f"held = manager.allocate_cache(desc(1, 2, {ELEMENTS}))\nheld.tensors[0].fill_(7).view(-1)[0].item()")
    own = pair.manager.allocate_cache(desc(1, 2, ELEMENTS))
    own.tensors[0].fill_(3).view(-1)[0].item()
    codes, key = [], pair.key(1)
    transfer = pair.manager.push_cache if write else pair.manager.pull_cache
    thread = threading.Thread(target=lambda: codes.append(code_of(transfer, key, own, 1)))
    started, start_request = threading.Event(), HeldLeases.start

    def start(*args: object) -> object:
        request = start_request(*args)
        started.set()
        return request

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeldLeases, "start", start)
        thread.start()
        assert started.wait(30)
    assert thread.is_alive(), "the transfer was over before anything happened"
    act()
    thread.join(30)
    assert not thread.is_alive()
    assert bool((own.tensors[0].cpu()[:, 0] == 3).all())
    return codes[0]


@pytest.mark.slow
class TestInTheMiddle:
    @pytest.mark.parametrize("write", [False, True])
    def test_killed(self, slow_peer: Peer, write: bool, device: str) -> None:
        with linked(slow_peer) as pair:
            # Noticed, and not waited for until sync_kv_timeout: that would be LLM_TIMEOUT.
            assert in_the_middle(pair, lambda: slow_peer.signal(signal.SIGKILL), write=write) is FAILED
            held = pair.manager.allocate_cache(desc(1, 1, 8))
            again = code_of(pair.manager.pull_cache, CacheKeyByIdAndIndex(PEER, 1), held)
            assert again is pair.datadist.check_link_status(PEER) is LLMStatusCode.LLM_NOT_YET_LINK

    @pytest.mark.parametrize("write", [False, True])
    def test_stopped(self, slow_peer: Peer, write: bool, device: str) -> None:
        """The transfer is parked: a link waits for its end, and memory of this process until then."""
        with linked(slow_peer, timeout_ms=5000) as pair:
            code = in_the_middle(pair, lambda: slow_peer.signal(signal.SIGSTOP), write=write)
            assert code is LLMStatusCode.LLM_TIMEOUT
            busy = LLMStatusCode.LLM_LINK_BUSY
            if device == "cpu":  # with an NPU, only a staging buffer is written
                assert pair.datadist.link_clusters(pair.clusters, 500) == (busy, [busy])
            slow_peer.signal(signal.SIGCONT)
            wait_until(lambda: pair.datadist.link_clusters(pair.clusters, 5000)[0] is DONE, "no new link")
            pair.unlink()
            pair.their_memory_is_released()
            pair.link()
            pair.works()

    def test_unlinked_by_force_here(self, slow_peer: Peer) -> None:
        with linked(slow_peer) as pair:
            assert in_the_middle(pair, lambda: pair.datadist.unlink_clusters(pair.clusters, force=True)) is FAILED
            wait_until(lambda: slow_peer.get(f"datadist.check_link_status({SELF})") != 0, "the peer has a link")
            wait_until(lambda: pair.datadist.link_clusters(pair.clusters, 5000)[0] is DONE, "no new link")
            pair.works()

    def test_unlinked_by_force_there(self, slow_peer: Peer) -> None:
        unlink = f"datadist.unlink_clusters([cluster({SELF}, 1)], force=True)"
        with linked(slow_peer) as pair:
            assert in_the_middle(pair, lambda: slow_peer.do(unlink)) in (FAILED, DONE)

    def test_unlink_waits(self, slow_peer: Peer) -> None:
        """Without force the call ends first. If it takes too long, the link stays."""
        with linked(slow_peer) as pair:
            codes = []
            for timeout_ms in (1, 20_000):
                unlink = lambda: codes.extend(pair.datadist.unlink_clusters(pair.clusters, timeout_ms)[1])  # noqa: B023, E731
                assert in_the_middle(pair, unlink) is DONE
            assert codes == [LLMStatusCode.LLM_LINK_BUSY, DONE]

    @pytest.mark.parametrize("write", [False, True])
    def test_cache_deallocated_there(self, slow_peer: Peer, write: bool) -> None:
        end = "alive = weakref.ref(held.tensors[0])\nmanager.deallocate_cache(held)\ndel held"
        with linked(slow_peer) as pair:
            assert in_the_middle(pair, lambda: slow_peer.do(end), write=write) is DONE
            wait_until(lambda: slow_peer.get("alive() is None"), "the memory is still there")

    def test_finalized_there(self, slow_peer: Peer) -> None:
        """finalize waits for the peer, and leaves nothing that a later init would meet."""
        with linked(slow_peer) as pair:
            assert in_the_middle(pair, lambda: slow_peer.do("datadist.finalize()")) in (FAILED, DONE)
            slow_peer.do(f"datadist = make_datadist({PEER}, {pair.port})\nmanager = datadist.cache_manager")
            wait_until(lambda: pair.datadist.link_clusters(pair.clusters, 5000)[0] is DONE, "no new link")
            pair.works()


def test_stopped_before_the_request(peer: Peer) -> None:
    """Nothing is in flight then, and nothing is written."""
    with linked(peer, timeout_ms=500) as pair:
        own = pair.manager.allocate_cache(desc(1, 1, 8))
        own.tensors[0].fill_(3)
        peer.do("held = manager.allocate_cache(desc(1, 1, 8), [CacheKey(1, 7)])\nheld.tensors[0].fill_(5)")
        peer.signal(signal.SIGSTOP)
        try:
            code = code_of(pair.manager.pull_cache, CacheKey(PEER, 7), own)
        finally:
            peer.signal(signal.SIGCONT)
        assert code is LLMStatusCode.LLM_TIMEOUT
        assert own.tensors[0].tolist() == [[[3.0] * 8]]
        pair.link()
        pair.manager.pull_cache(CacheKey(PEER, 7), own)  # the key is still there
        assert own.tensors[0].tolist() == [[[5.0] * 8]]


def test_memory_of_a_cache_is_released_with_it(pair: Pair, device: str) -> None:
    """Transfers hold neither tensors nor registrations of caches that have ended."""
    pair.theirs("allocate_cache(desc(1, 1, 8))")
    own = pair.manager.allocate_cache(desc(1, 1, 8))
    pair.manager.pull_cache(pair.key(), own)
    alive = weakref.ref(own.tensors[0])
    pair.manager.deallocate_cache(own)
    gc.collect()
    assert alive() is None
    pair.their_memory_is_released()


@pytest.mark.slow
def test_nothing_is_leaked(pair: Pair, device: str) -> None:
    """Thousands of pulls of caches that live for one pull each, and one in ten is refused."""

    def used() -> tuple[int, int, int]:
        gc.collect()
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * 4096
        return resident, len(os.listdir("/proc/self/fd")), threading.active_count()

    pulls = 3000 if device == "cpu" else 500
    before: tuple[int, int, int] = (0, 0, 0)
    pair.peer.do("alive = []")
    for number in range(pulls):
        if number % 100 == 0:
            pair.peer.do(
                "for request in range(100):\n"
                "    held = manager.allocate_cache(desc(2, 1, 1 << 10), [CacheKey(1, request)])\n"
                "    alive.append(weakref.ref(held.tensors[0]))\n"
                "    manager.deallocate_cache(held)"
            )
        own = pair.manager.allocate_cache(desc(2 + (number % 10 == 9), 1, 1 << 10))
        assert (code_of(pair.manager.pull_cache, CacheKey(PEER, number % 100), own) is DONE) == (number % 10 != 9)
        pair.manager.deallocate_cache(own)
        if number % 100 == 99:
            pair.peer.do("for request in range(9, 100, 10): manager.remove_cache_key(CacheKey(1, request))")
        if number == pulls // 3:
            before = used()
    after = used()
    assert after[1:] == before[1:]
    assert after[0] - before[0] < 8 << 20
    wait_until(lambda: pair.peer.get("not any(memory() is not None for memory in alive)"), "the peer keeps caches")


def test_a_call_that_interrupts_another(pair: Pair) -> None:
    """A signal handler pulls over the link that its thread is using."""
    sent = pair.theirs("allocate_cache(desc(1, 1, 8))")
    own, other = (pair.manager.allocate_cache(desc(1, 1, 8)) for _ in range(2))
    key, codes = pair.key(), []

    def handler(*_: object) -> None:
        pair.peer.signal(signal.SIGCONT)
        codes.append(code_of(pair.manager.pull_cache, key, other))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        pair.peer.signal(signal.SIGSTOP)  # so that the pull waits
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        pair.manager.pull_cache(key, own)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert codes == [DONE]
    assert own.tensors[0].tolist() == other.tensors[0].tolist() == sent.tolist()
