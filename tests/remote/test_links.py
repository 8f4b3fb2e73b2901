# SPDX-License-Identifier: Apache-2.0
"""Making and ending links: their codes, and who may connect."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from remote_utils import PEER, SELF, SUCCESS, Pair, Peer, cluster, desc, make_datadist, wait_until
from utils import free_port, refused

import llm_datadist_torch.datadist.remote_api
from llm_datadist_torch import CacheKeyByIdAndIndex, LLMClusterInfo, LLMDataDist, LLMException, LLMRole, LLMStatusCode
from llm_datadist_torch.datadist.cluster_info import parse_listen_ip_info


@pytest.fixture
def datadist() -> Iterator[LLMDataDist]:
    made = make_datadist(SELF)
    yield made
    made.finalize()


@contextlib.contextmanager
def listener(says: bytes | None) -> Iterator[int]:
    """Something that listens and is no peer. It says something to each connection, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = server.accept()[0]
                    held.append(connection)
                    if says is not None:
                        connection.sendall(says)

        threading.Thread(target=run, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def code_of(datadist: LLMDataDist, port: int, timeout: int = 300, cluster_id: int = PEER) -> LLMStatusCode:
    """Links a cluster. Returns its code."""
    begin = time.monotonic()
    status, codes = datadist.link_clusters([cluster(cluster_id, port)], timeout)
    assert [status] == codes
    assert time.monotonic() - begin < timeout / 1000 + 5  # a busy machine takes a second to start NIXL
    return status


class TestLinkClusters:
    def test_no_listener(self, datadist: LLMDataDist) -> None:
        assert code_of(datadist, free_port()) is LLMStatusCode.LLM_LINK_FAILED

    def test_a_listener_that_says_nothing(self, datadist: LLMDataDist) -> None:
        """Meanwhile another thread cannot link the same cluster."""
        codes: list[LLMStatusCode] = []
        with listener(None) as port:
            first = threading.Thread(target=lambda: codes.append(code_of(datadist, port, 600)))
            first.start()
            time.sleep(0.1)
            assert code_of(datadist, port, 100) is LLMStatusCode.LLM_LINK_BUSY
            first.join()
        assert codes == [LLMStatusCode.LLM_TIMEOUT]

    @pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n" * 40, b"\0\0\0\x04spam", b"\xff" * 99])
    def test_a_listener_that_is_no_peer(self, datadist: LLMDataDist, says: bytes) -> None:
        with listener(says) as port:
            assert code_of(datadist, port) in (LLMStatusCode.LLM_LINK_FAILED, LLMStatusCode.LLM_TIMEOUT)
        assert datadist.check_link_status(PEER) is LLMStatusCode.LLM_NOT_YET_LINK

    def test_another_cluster_than_expected(self, pair: Pair) -> None:
        pair.unlink()
        assert code_of(pair.datadist, pair.port, 5000, cluster_id=9) is LLMStatusCode.LLM_LINK_FAILED

    def test_twice(self, pair: Pair) -> None:
        assert code_of(pair.datadist, pair.port, 5000) is LLMStatusCode.LLM_ALREADY_LINK
        assert pair.peer.get(f"datadist.check_link_status({SELF})") is LLMStatusCode.LLM_SUCCESS

    def test_a_stopped_listener(self, pair: Pair) -> None:
        pair.unlink()
        pair.peer.signal(signal.SIGSTOP)
        try:
            assert code_of(pair.datadist, pair.port) is LLMStatusCode.LLM_TIMEOUT
        finally:
            pair.peer.signal(signal.SIGCONT)
        pair.link()

    def test_retries(self, peer: Peer) -> None:
        """The listener starts while link_clusters tries."""
        port = free_port()
        datadist = make_datadist(SELF, link_retry_count=50, link_total_time=20)
        running = peer.start(f"time.sleep(0.5)\ndatadist = make_datadist({PEER}, {port})")
        try:
            assert datadist.link_clusters([cluster(PEER, port)], 5000) == SUCCESS
        finally:
            running()
            datadist.finalize()
            peer.do("datadist.finalize()")

    def test_arguments(self, datadist: LLMDataDist) -> None:
        nameless, homeless = LLMClusterInfo(), LLMClusterInfo()
        homeless.remote_cluster_id = 1
        for wrong, text in (
            ([nameless], "clusters[0] has no address"),
            ([homeless], "clusters[0] has no address"),
            ([cluster(SELF, 1)], "clusters[0] (2) is this process"),
        ):
            refused(LLMStatusCode.LLM_PARAM_INVALID, f"link_clusters: {text}", datadist.link_clusters, wrong)
        text = "unlink_clusters: clusters[0] has no remote_cluster_id"
        refused(LLMStatusCode.LLM_PARAM_INVALID, text, datadist.unlink_clusters, [nameless])
        for wrong in (None, homeless, [1]):
            with pytest.raises(TypeError, match="link_clusters: clusters"):
                datadist.link_clusters(wrong)
        for wrong, error in ((0, LLMException), ("1", TypeError), (2**31, ValueError)):
            with pytest.raises(error, match="timeout"):
                datadist.link_clusters([], wrong)
        assert datadist.link_clusters([]) == (LLMStatusCode.LLM_SUCCESS, [])

    @pytest.mark.parametrize(
        ("call", "argument"),
        [("link_clusters", []), ("unlink_clusters", []), ("check_link_status", 1), ("switch_role", LLMRole.MIX)],
    )
    def test_before_init(self, call: str, argument: object) -> None:
        with pytest.raises(RuntimeError, match="not initialised"):
            getattr(LLMDataDist(LLMRole.MIX, 0), call)(argument)


class TestUnlinkClusters:
    @pytest.mark.parametrize("force", [False, True])
    def test_ends_both_sides(self, pair: Pair, force: bool) -> None:
        assert pair.datadist.unlink_clusters(pair.clusters, force=force) == SUCCESS
        assert pair.datadist.check_link_status(PEER) is LLMStatusCode.LLM_NOT_YET_LINK
        status = f"datadist.check_link_status({SELF})"
        wait_until(lambda: pair.peer.get(status) is LLMStatusCode.LLM_NOT_YET_LINK, "the peer has a link")
        assert pair.datadist.unlink_clusters(pair.clusters, force=force) == SUCCESS
        pair.link()

    def test_from_the_side_that_listens(self, pair: Pair) -> None:
        assert pair.peer.get(f"datadist.unlink_clusters([cluster({SELF}, 1)])") == SUCCESS
        wait_until(lambda: not pair.is_linked(), "there is a link")
        pair.link()

    def test_never_linked(self, datadist: LLMDataDist) -> None:
        not_linked = LLMStatusCode.LLM_NOT_YET_LINK
        assert datadist.unlink_clusters([cluster(77, 1)]) == (not_linked, [not_linked])
        assert datadist.unlink_clusters([cluster(77, 1)], force=True) == SUCCESS


def test_switch_role_listens_and_stops_listening(pair: Pair) -> None:
    refused(LLMStatusCode.LLM_EXIST_LINK, "", pair.datadist.switch_role, LLMRole.PROMPT)
    pair.unlink()
    pair.peer.do("datadist.switch_role(LLMRole.DECODER)")
    assert code_of(pair.datadist, pair.port) is LLMStatusCode.LLM_LINK_FAILED
    port = free_port()
    pair.datadist.switch_role(LLMRole.PROMPT, {"llm.listenIpInfo": f"127.0.0.1:{port}"})
    assert pair.datadist.role is LLMRole.PROMPT
    assert pair.peer.get(f"datadist.link_clusters([cluster({SELF}, {port})], 10_000)") == SUCCESS
    assert pair.is_linked()


def test_switch_role_to_a_port_given_up_a_moment_ago(datadist: LLMDataDist) -> None:
    ports = free_port(), free_port()
    for turn in range(200):
        datadist.switch_role(LLMRole.PROMPT, {"llm.listenIpInfo": f"127.0.0.1:{ports[turn % 2]}"})


class TestTheListener:
    def test_one_address_alone(self, pair: Pair) -> None:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", pair.port), 1)

    def test_an_address_that_cannot_be_had(self) -> None:
        made = LLMDataDist(LLMRole.PROMPT, 0)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            options = {"llm.EnableCacheManager": "1", "llm.listenIpInfo": f"127.0.0.1:{taken.getsockname()[1]}"}
            refused(LLMStatusCode.LLM_FAILED, "init: cannot listen at 127.0.0.1", made.init, options)
        make_datadist(SELF).finalize()  # nothing was initialised

    def test_another_secret(self, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        pair.unlink()
        monkeypatch.setenv("LLM_DATADIST_SECRET", "other")
        assert code_of(pair.datadist, pair.port, 5000) is LLMStatusCode.LLM_LINK_FAILED
        monkeypatch.delenv("LLM_DATADIST_SECRET")
        pair.link()

    def test_listen_ip_info(self) -> None:
        assert parse_listen_ip_info("") == []
        assert parse_listen_ip_info("10.0.0.1:5;10.0.0.2") == [("10.0.0.1", 5), ("10.0.0.2", 26000)]
        for wrong in ("host:1", "10.0.0.1:x", "10.0.0.1:65536", "1.2.3:4"):
            with pytest.raises(LLMException, match="must be"):
                parse_listen_ip_info(wrong)


def test_cluster_info() -> None:
    info = LLMClusterInfo()
    info.append_local_ip_info("1.1.1.1", 10)
    info.append_remote_ip_info(0x0A000001, 26000)
    info.remote_role_type = LLMRole.PROMPT
    assert (info.local_ip_info_list, info.remote_ip_info_list) == ([("1.1.1.1", 10)], [("10.0.0.1", 26000)])
    for wrong, error in ((("1.1.1", 1), LLMException), (("1.1.1.1", 2**16), ValueError), ((None, 1), TypeError)):
        with pytest.raises(error):
            info.append_remote_ip_info(*wrong)
    with pytest.raises(TypeError, match="remote_cluster_id"):
        info.remote_cluster_id = "1"


def test_without_nixl(datadist: LLMDataDist, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_datadist_torch.datadist.remote_api.importlib.util, "find_spec", lambda name: None)
    held = datadist.cache_manager.allocate_cache(desc(1, 1, 8))
    for call, *args in (
        (datadist.link_clusters, [cluster(PEER, 1)]),
        (datadist.cache_manager.pull_cache, CacheKeyByIdAndIndex(PEER, 1), held),
        (lambda: datadist.finalize() or make_datadist(SELF, free_port()),),
    ):
        text = "caches of other processes need nixl: pip install 'llm_datadist_torch[remote]' [LLM_FEATURE_NOT_ENABLED]"
        refused(LLMStatusCode.LLM_FEATURE_NOT_ENABLED, text, call, *args)
