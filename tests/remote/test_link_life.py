# SPDX-License-Identifier: Apache-2.0
"""The life of links: what an idle one costs, forked and restarted processes, and what many leave behind."""

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from remote_utils import PEER, SELF, Pair, Peer, desc, linked, wait_until
from utils import free_port

from llm_datadist_torch import LLMRole, LLMStatusCode


@contextlib.contextmanager
def at_once(peer: Peer, code: str, later: float = 0.0) -> Iterator[None]:
    """The peer runs the code when the block begins, or so many seconds later."""
    at = time.time() + 0.05
    end = peer.start(f"while time.time() < {at + later}: pass\n{code}")
    while time.time() < at:
        pass
    yield
    end()


def test_an_idle_link_uses_no_processor(pair: Pair) -> None:
    begin, theirs = time.process_time(), pair.peer.get("time.process_time()")
    time.sleep(1)
    assert time.process_time() - begin < 0.05
    assert pair.peer.get("time.process_time()") - theirs < 0.05


def test_a_forked_child_does_not_hold_the_link(pair: Pair) -> None:
    """The peer notices the end of this side though a child of it lives."""
    pair.peer.do("child = os.fork()\nif child == 0:\n    time.sleep(60)\n    os._exit(0)")
    pair.peer.do("datadist.finalize()")
    wait_until(lambda: pair.datadist.check_link_status(PEER) is LLMStatusCode.LLM_NOT_YET_LINK, "the link is held")
    pair.peer.do("os.kill(child, 9)\nos.waitpid(child, 0)")


def test_restart_with_the_same_id() -> None:
    """A new process with the id of one that was killed can be linked at once, and its caches are those that are read."""
    with linked(Peer()) as pair:
        pair.works()
        pair.peer.signal(signal.SIGKILL)
        pair.peer = Peer()
        pair.peer.do(f"datadist = make_datadist({PEER}, {pair.port})\nmanager = datadist.cache_manager")
        pair.link()
        pair.peer.do("held = manager.allocate_cache(desc(1, 1, 8))\nheld.tensors[0].fill_(2)")
        own = pair.manager.allocate_cache(desc(1, 1, 8))
        pair.manager.pull_cache(pair.key(), own)
        assert own.tensors[0].tolist() == [[[2.0] * 8]]
        pair.peer.process.kill()


def test_calls_that_cross_make_one_link(pair: Pair) -> None:
    """Both processes listen, and call each other at the same time, or nearly."""
    port = free_port()
    threads = "sum(thread.name.startswith('llm_datadist') for thread in threading.enumerate())"
    theirs = f"[cluster({SELF}, {port})]"
    pair.unlink()
    pair.datadist.switch_role(LLMRole.MIX, {"llm.listenIpInfo": f"127.0.0.1:{port}"})
    for later in (0.0, 0.0, 0.0, 0.001, -0.001, 0.002, -0.002):
        with at_once(pair.peer, f"codes = datadist.link_clusters({theirs}, 5000)[1]", later):
            codes = pair.datadist.link_clusters(pair.clusters, 5000)[1]
        codes += pair.peer.get("codes")
        assert set(codes) == {LLMStatusCode.LLM_SUCCESS, LLMStatusCode.LLM_ALREADY_LINK}
        assert codes.count(LLMStatusCode.LLM_SUCCESS) == 1
        assert eval(threads) == pair.peer.get(threads) == 1
        assert pair.is_linked()
        assert pair.peer.get(f"datadist.unlink_clusters({theirs})[0]") is LLMStatusCode.LLM_SUCCESS
        wait_until(lambda: not pair.is_linked(), "linked here")
        assert pair.peer.get(f"datadist.check_link_status({SELF})") is LLMStatusCode.LLM_NOT_YET_LINK


def test_both_sides_unlink_at_the_same_time(pair: Pair) -> None:
    """Neither takes the other one's call for a transfer, and waits for it."""
    for _ in range(5):
        begin = time.monotonic()
        with at_once(pair.peer, f"code = datadist.unlink_clusters([cluster({SELF}, 1)], 10_000)[0]"):
            code = pair.datadist.unlink_clusters(pair.clusters, 10_000)[0]
        assert code is pair.peer.get("code") is LLMStatusCode.LLM_SUCCESS
        assert time.monotonic() < begin + 5
        pair.link()


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, pytest.param(1000, marks=pytest.mark.exhaustive)])
def test_links_leave_nothing_behind(peer: Peer, count: int) -> None:
    """Threads and descriptors, here and there, after many links."""

    def used() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    theirs = "(gc.collect(), len(os.listdir('/proc/self/fd')), threading.active_count())[1:]"
    before = used(), (0, 0)
    for number in range(count):
        with linked(peer) as pair:
            for _ in range(8):
                pair.works()
                pair.unlink()
                pair.link()
        del pair
        peer.do("del datadist, manager, held")
        peer.do("datadist = LLMDataDist(LLMRole.MIX, 0)")
        if number == 2:
            before = used(), peer.get(theirs)
    wait_until(lambda: used() <= before[0], f"more than {before[0]} here: {used()}")
    wait_until(lambda: peer.get(theirs) <= before[1], f"more than {before[1]} there: {peer.get(theirs)}")
