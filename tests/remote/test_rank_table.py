# SPDX-License-Identifier: Apache-2.0
"""link, unlink and query_register_mem_status: both processes call link, with HCCL's rank table."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from remote_utils import PEER, SELF, Peer, desc, make_datadist, wait_until
from utils import free_port, refused, to_host

from llm_datadist_torch import CacheKeyByIdAndIndex, LLMDataDist, LLMStatusCode, RegisterMemStatus
from llm_datadist_torch.datadist.rank_table import checked_rank_table

NOT_LINKED, INVALID = LLMStatusCode.LLM_NOT_YET_LINK, LLMStatusCode.LLM_PARAM_INVALID
RANKS = {PEER: 0, SELF: 1}


def table(*servers: dict[str, Any]) -> str:
    """A rank table of servers with one device each, in the order of their ranks."""
    listed = [
        {
            **server,
            "device": [{"device_id": server.get("device_id", "0"), "device_ip": "1.2.3.4", "rank_id": str(rank)}],
        }
        for rank, server in enumerate(servers)
    ]
    return json.dumps(
        {"server_count": str(len(listed)), "status": "completed", "version": "1.0", "server_list": listed}
    )


HERE = table({"server_id": "127.0.0.1", "device_id": "0"}, {"server_id": "127.0.0.1", "device_id": "1"})


class Two:
    """This process and a peer, neither linked nor listening."""

    def __init__(self, peer: Peer, **settings: Any) -> None:
        self.peer, port = peer, free_port()
        self.settings = {"link_total_time": 60, **settings}
        peer.do(f"os.environ['LLM_DATADIST_LINK_PORT'] = '{port}'")
        peer.do(f"datadist = make_datadist({PEER}, link_total_time=60)\nmanager = datadist.cache_manager")
        self.datadist: LLMDataDist = make_datadist(SELF, **self.settings)
        self.manager, self.port = self.datadist.cache_manager, port

    def theirs(self, name: str = "comm", ranks: dict[int, int] = RANKS, rank_table: str = HERE) -> None:
        self.peer.do(f"comm_id = datadist.link({name!r}, {ranks}, {rank_table!r})")

    def wait(self, comm_id: int) -> None:
        status = "datadist.query_register_mem_status(comm_id)"
        wait_until(lambda: self.datadist.query_register_mem_status(comm_id) is RegisterMemStatus.OK, "not linked here")
        wait_until(lambda: self.peer.get(status) is RegisterMemStatus.OK, "not linked there")


@pytest.fixture
def two(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    made = Two(peer)
    monkeypatch.setenv("LLM_DATADIST_LINK_PORT", str(made.port))
    yield made
    made.datadist.finalize()
    peer.do("datadist.finalize()\ndel os.environ['LLM_DATADIST_LINK_PORT']")


def test_link_pull_unlink_and_again(two: Two, device: str) -> None:
    two.peer.do("held = manager.allocate_cache(desc(2, 1, 8))\nheld.tensors[0].fill_(7)")
    own, key = two.manager.allocate_cache(desc(2, 1, 8)), CacheKeyByIdAndIndex(PEER, two.peer.get("held.cache_id"))
    assert two.datadist.transfer_counters() == {}
    for number in (1, 2):
        comm_id = two.datadist.link("comm", RANKS, HERE)
        assert comm_id == number
        assert two.datadist.query_register_mem_status(comm_id) is RegisterMemStatus.PREPARING
        refused(NOT_LINKED, "", two.manager.pull_cache, key, own)  # the other side has not called link
        two.theirs()
        two.wait(comm_id)
        two.manager.pull_cache(key, own)
        assert bool((to_host(own.tensors[0]) == 7).all())
        two.datadist.unlink(comm_id)
        for call in (two.datadist.unlink, two.datadist.query_register_mem_status):
            refused(NOT_LINKED, f"there is no communicator {comm_id}", call, comm_id)
        refused(NOT_LINKED, "", two.manager.pull_cache, key, own)
        assert two.peer.get("datadist.query_register_mem_status(comm_id)") is RegisterMemStatus.OK  # for itself
        two.peer.do("datadist.unlink(comm_id)")
    counters = two.datadist.transfer_counters()[PEER]
    assert (counters.pulls, counters.pulled_bytes, counters.failures) == (2, 2 * 2 * 8 * 4, {})


def test_another_name_does_not_count(two: Two) -> None:
    """A process that waits for another communicator is not linked."""
    two.theirs("other")
    comm_id = two.datadist.link("comm", RANKS, HERE)
    ours = two.datadist.link("other", RANKS, HERE)
    two.wait(ours)
    assert two.datadist.query_register_mem_status(comm_id) is RegisterMemStatus.PREPARING
    two.theirs("comm")
    two.wait(comm_id)


def test_fails_once_and_stays(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    datadist = make_datadist(SELF, link_total_time=1, link_retry_count=3)
    try:
        comm_id = datadist.link("comm", RANKS, HERE)
        status = datadist.query_register_mem_status
        wait_until(lambda: status(comm_id) is not RegisterMemStatus.PREPARING, "it goes on")
        assert status(comm_id) is RegisterMemStatus.FAILED
        assert sum("no link to clusters" in record.message for record in caplog.records) == 1
        datadist.unlink(comm_id)
    finally:
        datadist.finalize()


@pytest.mark.slow
def test_three_ranks_and_a_kill(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """OK comes when every pair is linked, and stays when a process dies. A process that takes its place is linked anew."""
    port = str(free_port())
    monkeypatch.setenv("LLM_DATADIST_LINK_PORT", port)
    ranks, devices = {PEER: 0, SELF: 1, 3: 2}, [{"server_id": "0", "device_id": str(n)} for n in range(3)]
    one_server = json.loads(table(*devices))
    one_server["server_list"] = [
        {"server_id": "0", "device": [d for server in one_server["server_list"] for d in server["device"]]}
    ]
    code = "datadist = make_datadist({}, link_total_time=60)\ncomm_id = datadist.link('comm', {}, {!r})"
    status = "datadist.query_register_mem_status(comm_id)"
    others = {PEER: Peer(LLM_DATADIST_LINK_PORT=port), 3: Peer(LLM_DATADIST_LINK_PORT=port)}
    datadist = make_datadist(SELF, link_total_time=60)
    try:
        for again in (False, True):
            comm_id = datadist.link("comm", ranks, json.dumps(one_server))
            for cluster_id, other in others.items():
                other.do(code.format(cluster_id, ranks, json.dumps(one_server)))
            wait_until(lambda: datadist.query_register_mem_status(comm_id) is RegisterMemStatus.OK, "not linked")  # noqa: B023
            wait_until(lambda: all(o.get(status) is RegisterMemStatus.OK for o in others.values()), "not linked")
            if not again:
                others[3].process.kill()
                others[3].process.join()
                assert datadist.query_register_mem_status(comm_id) is RegisterMemStatus.OK
                datadist.unlink(comm_id)
                others[PEER].do("datadist.finalize()")
                others[3] = Peer(LLM_DATADIST_LINK_PORT=port)
    finally:
        datadist.finalize()
        for other in others.values():
            other.process.kill()


class TestAddresses:
    def addresses(self, rank_table: str, ranks: dict[int, int] = RANKS) -> dict[int, tuple[str, int]]:
        return checked_rank_table("comm", ranks, rank_table, SELF).addresses

    def test_from_the_table(self) -> None:
        servers = {"server_id": "10.0.0.1", "device_id": "3"}, {"server_id": "2", "host_ip": "10.0.0.2"}
        assert self.addresses(table(*servers)) == {PEER: ("10.0.0.1", 26103), SELF: ("10.0.0.2", 26100)}

    def test_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLM_DATADIST_LINK_HOSTS", '{"1": "10.0.0.3", "2": "10.0.0.4:500"}')
        monkeypatch.setenv("LLM_DATADIST_LINK_PORT", "400")
        servers = {"server_id": "1", "host_ip": "10.0.0.1"}, {"server_id": "2", "device_id": "7"}
        assert self.addresses(table(*servers)) == {PEER: ("10.0.0.3", 400), SELF: ("10.0.0.4", 507)}

    def test_one_server_is_this_machine(self) -> None:
        devices = [{"device_id": str(n), "rank_id": str(n), "device_port": str(100 * n)} for n in range(2)]
        one = json.dumps({"server_list": [{"server_id": "0", "device": devices}]})
        assert self.addresses(one) == {PEER: ("127.0.0.1", 26100), SELF: ("127.0.0.1", 26201)}

    def test_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        servers = {"server_id": "1"}, {"server_id": "2"}
        for text, name, ranks, rank_table in (
            ("server '1' has no address: set LLM_DATADIST_LINK_HOSTS", "comm", RANKS, table(*servers)),
            ("comm_name", "", RANKS, HERE),
            ("comm_name", "x" * 128, RANKS, HERE),
            ("2 to 4 clusters, got 1", "comm", {SELF: 0}, HERE),
            ("2 to 4 clusters, got 5", "comm", {n: n for n in range(5)}, HERE),
            ("must ascend, got [1, 0]", "comm", {PEER: 1, SELF: 0}, HERE),
            ("must name this cluster, 2", "comm", {PEER: 0, 7: 1}, HERE),
            ("no device with rank_id 5", "comm", {PEER: 0, SELF: 5}, HERE),
            ("rank_table", "comm", RANKS, "not JSON"),
            ("rank_table", "comm", RANKS, '{"server_list": [{}]}'),
        ):
            refused(INVALID, text, checked_rank_table, name, ranks, rank_table, SELF)
        for wrong in ((1, RANKS, HERE), ("comm", [1], HERE), ("comm", RANKS, {}), ("comm", {"1": 0, SELF: 1}, HERE)):
            with pytest.raises(TypeError):
                checked_rank_table(*wrong, SELF)
