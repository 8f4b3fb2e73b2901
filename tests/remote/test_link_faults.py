# SPDX-License-Identifier: Apache-2.0
"""Memory and messages that change hands at the wrong moment: what once gave wrong bytes, lost links, or leaks."""

import contextlib
import gc
import os
import random
import signal
import socket
import time
import weakref

import pytest
import torch
from remote_utils import (
    PEER,
    SELF,
    SUCCESS,
    Pair,
    Peer,
    cluster,
    code_of,
    desc,
    expect,
    linked,
    make_datadist,
    wait_until,
)
from utils import free_port, refused

from llm_datadist_torch import (
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheManager,
    ClusterLinks,
    LLMConfig,
    LLMStatusCode,
)

DONE, GONE = LLMStatusCode.LLM_SUCCESS, LLMStatusCode.LLM_KV_CACHE_NOT_EXIST


def test_the_keys_of_registered_memory_end_with_the_cache(pair: Pair) -> None:
    """The user may free the memory then. The keys can be given to another cache."""
    register = "register_cache(desc(1, 1, 8), [torch.full((1, 8), {}.)], [CacheKey(1, 7)])"
    own = pair.manager.allocate_cache(desc(1, 1, 8))
    pair.peer.do(f"held = manager.{register.format(3)}")
    pair.manager.pull_cache(CacheKey(PEER, 7), own)
    pair.peer.do("manager.unregister_cache(held.cache_id)")
    assert code_of(pair.manager.pull_cache, CacheKey(PEER, 7), own) is GONE
    pair.peer.do(f"held = manager.{register.format(4)}")
    pair.manager.pull_cache(CacheKey(PEER, 7), own)
    assert bool((own.tensors[0] == 4).all())


@pytest.mark.slow
@pytest.mark.parametrize("count", [1500, pytest.param(10_000, marks=pytest.mark.exhaustive)])
def test_pulls_of_random_lengths(pair: Pair, count: int) -> None:
    """New memory overlaps what the peer has released, and this process still knows."""
    random.seed(1)
    pair.peer.do("import random\nrandom.seed(2)")
    make = (
        "if step: manager.deallocate_cache(held)\n"
        "held = manager.allocate_cache(desc(1, 1, random.randrange(1, 60_000)))\n"
        "held.tensors[0].fill_(step)"
    )
    for step in range(count):
        pair.peer.do(f"step = {step}\n{make}")
        cache_id, length = pair.peer.get("(held.cache_id, held.tensors[0].shape[-1])")
        own = pair.manager.allocate_cache(desc(1, 1, length))
        pair.manager.pull_cache(CacheKeyByIdAndIndex(PEER, cache_id), own)
        assert bool((own.tensors[0] == step).all()), step
        pair.manager.deallocate_cache(own)


def test_private_caches_are_not_shown(pair: Pair) -> None:
    """A peer learns of the registration of a cache when it borrows that cache, and of no other memory."""
    pair.theirs("allocate_cache(desc(1, 1, 8))")
    private = pair.manager.register_cache(desc(1, 1, 8), [torch.zeros(1, 8)], remote_accessible=False)
    pair.manager.pull_cache(pair.key(), private)  # registers it with NIXL
    theirs = CacheKeyByIdAndIndex(SELF, private.cache_id)
    pair.peer.do("own = manager.allocate_cache(desc(1, 1, 8))")
    code = pair.peer.get(f"code_of(manager.pull_cache, {theirs!r}, own)")
    assert code is LLMStatusCode.LLM_PARAM_INVALID
    pair.peer.do("link = manager.remote._links._links[0]")
    assert pair.peer.get("link.held_leases._registrations") == 0
    shared = pair.manager.allocate_cache(desc(1, 1, 8))
    pair.peer.do(f"manager.pull_cache(CacheKeyByIdAndIndex({SELF}, {shared.cache_id}), own)")
    assert pair.peer.get("link.held_leases._registrations") == 1


def test_the_side_that_listens_pulls_as_soon_as_it_has_a_link(peer: Peer) -> None:
    """And so does the side that calls, as soon as its call has returned."""
    peer.do("import threading")
    for _ in range(20):
        with linked(peer) as pair:
            pair.unlink()
            own = pair.manager.allocate_cache(desc(1, 1, 8))
            own.tensors[0].fill_(6)
            pair.theirs("allocate_cache(desc(1, 1, 8))")
            key = CacheKeyByIdAndIndex(SELF, own.cache_id)
            pulling = peer.start(
                f"mine = manager.allocate_cache(desc(1, 1, 8))\n"
                f"while datadist.check_link_status({SELF}): pass\n"
                f"manager.pull_cache({key!r}, mine)\n"
            )
            time.sleep(0.01)
            pair.link()
            other = pair.manager.allocate_cache(desc(1, 1, 8))
            pulling()
            pair.manager.pull_cache(pair.key(), other)
            assert pair.peer.get("mine.tensors[0].unique().tolist()") == [6]


def test_a_timeout_holds_between_requests(peer: Peer) -> None:
    """Over shared memory each request to NIXL completes at once."""
    with linked(peer, timeout_ms=50) as pair:
        pair.peer.do("held = manager.allocate_cache(desc(1, 1, 512 << 20))")  # 2 GiB
        own = pair.manager.allocate_cache(desc(1, 1, 512 << 20))
        assert code_of(pair.manager.pull_cache, pair.key(), own) is LLMStatusCode.LLM_TIMEOUT
        assert not pair.is_linked()
        pair.link()


def test_unlink_of_a_stopped_peer_takes_its_timeout(pair: Pair) -> None:
    pair.peer.signal(signal.SIGSTOP)
    try:
        begin = time.monotonic()
        code = pair.datadist.unlink_clusters(pair.clusters, 500)[0]
        took = time.monotonic() - begin
    finally:
        pair.peer.signal(signal.SIGCONT)
    assert code is LLMStatusCode.LLM_NOTIFY_PROMPT_UNLINK_FAILED
    assert 0.5 <= took < 1.4
    pair.link()


def test_silent_peers_are_linked_at_once() -> None:
    """64 of them take as long as one."""
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(64)]
        datadist = make_datadist(SELF)
        try:
            begin = time.monotonic()
            clusters = [cluster(100 + number, server.getsockname()[1]) for number, server in enumerate(silent)]
            _, codes = datadist.link_clusters(clusters, 1000)
            took = time.monotonic() - begin
        finally:
            datadist.finalize()
        assert codes == [LLMStatusCode.LLM_TIMEOUT] * 64
        assert took < 32, "one after the other"


def test_strangers(pair: Pair) -> None:
    """They take no threads, and keep nobody from linking. Of too many, the oldest ones are closed. Links are not."""
    threads = "threading.active_count()"
    before = pair.peer.get(threads)
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 1000, b"\x7f\xff\xff\xff" * 10, b"\0\0\0\2{}"):
        with socket.create_connection(("127.0.0.1", pair.port)) as connection, contextlib.suppress(OSError):
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1000):
                pass
    held = [socket.create_connection(("127.0.0.1", pair.port), 20) for _ in range(200)]
    assert pair.peer.get(threads) == before
    for connection in held[:20]:
        connection.settimeout(3)  # ZeroMQ itself closes silent ones after 5
        with contextlib.suppress(ConnectionError):
            while connection.recv(1000):  # ZeroMQ's greeting
                pass
    pair.works()
    pair.unlink()
    pair.link()
    for connection in held:
        connection.close()


def test_switch_role_to_a_port_that_is_taken(pair: Pair) -> None:
    """It listens where it did before."""
    pair.unlink()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = {"llm.listenIpInfo": f"127.0.0.1:{taken.getsockname()[1]}"}
        pair.peer.do(f"code = code_of(datadist.switch_role, LLMRole.MIX, {options})")
    assert pair.peer.get("code") is LLMStatusCode.LLM_FAILED
    pair.link()


def test_a_forked_child_keeps_no_port() -> None:
    """Not after the end of its parent, and it cannot close it either."""
    with linked(Peer()) as pair:
        pair.peer.do("child = os.fork()\nif child == 0:\n    datadist.finalize()\n    time.sleep(60)\n    os._exit(0)")
        pair.works()
        pair.unlink()
        pair.link()
        child = pair.peer.get("child")
        pair.peer.process.kill()
        pair.peer.process.join()
        try:
            with socket.create_server(("127.0.0.1", pair.port)):
                pass
        finally:
            os.kill(child, 9)


def test_several_in_flight(pair: Pair) -> None:
    sent = pair.theirs("allocate_cache(desc(2, 64, 256))")
    own, key = pair.manager.allocate_cache(desc(2, 64, 256)), [pair.key(row) for row in range(64)]
    handles = [pair.manager.pull_cache_async(key[row], own, row) for row in range(64)]
    for handle in handles:
        assert handle.wait(20_000)
        assert handle.done()
        handle.result()
    expect(own, sent)
    wrong = pair.manager.pull_cache_async(CacheKeyByIdAndIndex(PEER, 999), own)
    refused(GONE, "pull_cache: cluster 1: no cache has the key", wrong.result)
    pushed = pair.manager.push_cache_async(key[0], own, 1)
    pushed.result()
    sent[:, 0] = sent[:, 1]
    pair.expect_theirs(sent)
    counters = pair.datadist.transfer_counters()[PEER]
    assert (counters.pulls, counters.pushes, counters.failures) == (64, 1, {GONE: 1})
    assert (counters.pulled_bytes, counters.pushed_bytes) == (64 * 2 * 1024, 2 * 1024)
    assert counters.pulling_seconds > 0


def test_an_error_keeps_no_cache(pair: Pair) -> None:
    """Not even until the next garbage collection."""
    own = pair.manager.allocate_cache(desc(1, 1, 8))
    alive = weakref.ref(own.tensors[0])
    gc.disable()
    try:
        handle = pair.manager.pull_cache_async(CacheKeyByIdAndIndex(PEER, 999), own)
        assert code_of(handle.result) is GONE
        assert code_of(pair.manager.pull_cache, CacheKeyByIdAndIndex(PEER, 999), own) is GONE
        pair.manager.deallocate_cache(own)
        del handle
        wait_until(lambda: alive() is None, "the memory is still there", 5)
    finally:
        gc.enable()


def test_a_manager_without_llm_datadist(pair: Pair) -> None:
    """And a cluster whose id is not known before the link."""
    sent = pair.theirs("allocate_cache(desc(1, 1, 8))")
    config = LLMConfig(sync_kv_timeout=20_000)
    port = free_port()
    config.listen_ip_info = f"127.0.0.1:{port}"
    manager = CacheManager(config)
    try:
        links, unnamed = ClusterLinks(manager, 5, config), cluster(0, pair.port)
        unnamed._remote_cluster_id = None
        assert links.link_clusters([unnamed], 20_000) == SUCCESS
        assert unnamed.remote_cluster_id == PEER
        own = manager.allocate_cache(desc(1, 1, 8))
        manager.pull_cache(pair.key(), own)
        expect(own, sent)
        assert links.unlink_clusters([unnamed]) == SUCCESS
    finally:
        manager.finalize()


def test_each_process_links_for_itself_with_hixl(pair: Pair) -> None:
    pair.unlink()
    pair.datadist.finalize()
    pair.datadist = make_datadist(SELF, transfer_backend="hixl")
    for _ in range(2):
        assert pair.datadist.link_clusters(pair.clusters, 20_000) == SUCCESS


def test_with() -> None:
    with make_datadist(SELF) as datadist:
        manager = datadist.cache_manager
    refused(LLMStatusCode.LLM_ENGINE_FINALIZED, "", manager.allocate_cache, desc(1, 1, 8))
