# SPDX-License-Identifier: Apache-2.0
"""Signal handlers that raise in a pull, calls of destructors, and processes that end in the middle."""

import gc
import signal
import socket
import threading
import weakref

import pytest
from fresh_process import run_code
from remote_utils import PEER, SELF, Pair, Peer, cluster, code_of, desc, expect, linked, make_datadist, wait_until

from llm_datadist_torch import LLMStatusCode

DONE = LLMStatusCode.LLM_SUCCESS


def interrupted(pair: Pair, call: object, *args: object) -> None:
    """Calls while the peer is stopped, and is interrupted by a handler that raises."""

    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    pair.peer.signal(signal.SIGSTOP)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            call(*args)
    finally:
        signal.signal(signal.SIGALRM, before)
        pair.peer.signal(signal.SIGCONT)


def test_a_pull_does_not_get_the_reply_of_an_interrupted_one(pair: Pair) -> None:
    """The next pull reads its own row, and the link goes on."""
    sent = pair.theirs("allocate_cache(desc(1, 2, 8))")
    own = pair.manager.allocate_cache(desc(1, 1, 8))
    first, second = pair.key(0), pair.key(1)
    for _ in range(5):
        interrupted(pair, pair.manager.pull_cache, first, own)
        pair.manager.pull_cache(second, own)
        expect(own, sent[:, 1:])
    assert pair.is_linked()


def test_what_an_interrupted_pull_has_borrowed_is_given_back(pair: Pair) -> None:
    pair.theirs("allocate_cache(desc(1, 2, 8))")
    own = pair.manager.allocate_cache(desc(1, 1, 8))
    interrupted(pair, pair.manager.pull_cache, pair.key(), own)
    pair.their_memory_is_released()


SURVIVOR = """
import os, signal
from remote_utils import *
datadist = make_datadist(SELF)
assert datadist.link_clusters([cluster(PEER, {port})], 60_000) == SUCCESS
manager = datadist.cache_manager
own = manager.allocate_cache(desc(1, 1, 1 << 26))
def handler(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.01)
try:
    manager.pull_cache(CacheKeyByIdAndIndex(PEER, {cache_id}), own)
except KeyboardInterrupt:
    pass
print("survived")
"""


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["", "tcp"])
def test_a_program_that_survives_ctrl_c_ends_cleanly(transport: str) -> None:
    """Without finalize, and perhaps with a request in flight."""
    variables = {"UCX_TLS": transport} if transport else {}
    with linked(Peer(**variables)) as pair:
        pair.peer.do("held = manager.allocate_cache(desc(1, 1, 1 << 26))")
        cache_id = pair.peer.get("held.cache_id")
        pair.datadist.finalize()
        for _ in range(2):
            code = SURVIVOR.format(port=pair.port, cache_id=cache_id)
            assert run_code(code, 0, **variables).stdout == "survived\n"


def test_an_exit_without_finalize_while_a_peer_pulls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer's pull ends one way or the other, and the exit code is that of the program."""
    monkeypatch.setenv("UCX_TLS", "tcp")
    with linked(Peer(UCX_TLS="tcp")) as pair:
        pair.theirs("allocate_cache(desc(1, 1, 1 << 24))")
        own, key, codes = pair.manager.allocate_cache(desc(1, 1, 1 << 24)), pair.key(), []
        started = threading.Event()

        def pull() -> None:
            for _ in range(1000):
                started.set()
                codes.append(code_of(pair.manager.pull_cache, key, own))
                if codes[-1] is not DONE:
                    return

        thread = threading.Thread(target=pull)
        thread.start()
        started.wait()
        pair.peer.end()
        thread.join()
        assert pair.peer.process.exitcode == 0
        assert codes[-1] in (LLMStatusCode.LLM_LINK_FAILED, LLMStatusCode.LLM_NOT_YET_LINK)


def test_a_destination_that_is_deallocated_during_the_pull(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory stays until the pull has ended, and the link goes on."""
    monkeypatch.setenv("UCX_TLS", "tcp")
    with linked(Peer(UCX_TLS="tcp")) as pair:
        pair.theirs("allocate_cache(desc(1, 1, 1 << 24))")
        own, key = pair.manager.allocate_cache(desc(1, 1, 1 << 24)), pair.key()
        alive = weakref.ref(own.tensors[0])
        handle = pair.manager.pull_cache_async(key, own)
        pair.manager.deallocate_cache(own)
        handle.result()
        assert pair.is_linked()
        del handle
        wait_until(lambda: alive() is None, "the memory is still there")


class Ends:
    """Deallocates a cache when it is collected."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.me = pair, self

    def __del__(self) -> None:
        self.pair.manager.deallocate_cache(self.pair.manager.allocate_cache(desc(1, 1, 8)))


def test_destructors_and_handlers_take_no_lock_that_waits(pair: Pair) -> None:
    """Caches end in the collector and in a signal handler, while threads pull and release caches."""
    sent = pair.theirs("allocate_cache(desc(1, 2, 8))")
    key, stop = pair.key(1), threading.Event()

    def handler(*_: object) -> None:
        held = pair.manager.allocate_cache(desc(1, 1, 8))
        pair.manager.pull_cache(key, held)
        pair.manager.deallocate_cache(held)
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    def work() -> None:
        while not stop.is_set():
            Ends(pair)
            held = pair.manager.allocate_cache(desc(1, 1, 8))
            pair.manager.pull_cache(key, held)
            expect(held, sent[:, 1:])
            pair.manager.deallocate_cache(held)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    threads = [threading.Thread(target=work) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        for _ in range(100):
            held = pair.manager.allocate_cache(desc(1, 1, 8))
            pair.manager.pull_cache(key, held)
            expect(held, sent[:, 1:])
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        stop.set()
        for thread in threads:
            thread.join()
        gc.collect()


def test_finalize_during_link() -> None:
    """The call that links ends, with an error."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        datadist, codes = make_datadist(SELF), []
        port = silent.getsockname()[1]

        def link() -> None:
            codes.append(code_of(lambda: datadist.link_clusters([cluster(PEER, port)], 60_000)))

        thread = threading.Thread(target=link)
        thread.start()
        silent.accept()
        datadist.finalize()
        thread.join(30)
        assert codes in ([LLMStatusCode.LLM_ENGINE_FINALIZED], [DONE])
