# SPDX-License-Identifier: Apache-2.0
"""A pull from another process beside NIXL used directly: `python benchmarks/remote.py`. On CPU caches, over shared memory.

NIXL alone, by a program that knows the addresses of the peer's memory, and by one that asks the peer for them over pyzmq, as
serving engines do, and tells it when it has read; and a loop of copy_ of as many bytes within this process.
"""

import contextlib
import multiprocessing
import random
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection

import msgspec
import torch
import zmq
from bench import Bench, Contenders
from nixl_cu12._api import nixl_agent, nixl_agent_config
from torch import Tensor

from llm_datadist_torch import (
    Cache,
    CacheDesc,
    CacheKeyByIdAndIndex,
    CacheManager,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMRole,
    LLMStatusCode,
)

TENSORS, SIZES = 160, (4 << 10, 64 << 10, 1 << 20)
KINDS = ("list", "stacked")
DONE = msgspec.msgpack.encode("done")


def free_port() -> int:
    """Below the ports that the system gives to sockets without one, of which one could take it before it is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def make_datadist(cluster_id: int, listen: str = "") -> LLMDataDist:
    config = LLMConfig(enable_cache_manager=True, sync_kv_timeout=20_000)
    config.listen_ip_info = listen
    datadist = LLMDataDist(LLMRole.MIX, cluster_id)
    datadist.init(config.generate_options())
    return datadist


def make_cache(manager: CacheManager, kind: str, size: int) -> Cache:
    desc = CacheDesc(TENSORS, [1, size], DataType.DT_UINT8)
    return manager.allocate_cache(desc) if kind == "stacked" else manager.register_cache(desc, memory("list", size))


def memory(kind: str, size: int) -> list[Tensor]:
    return (
        [torch.zeros(1, size, dtype=torch.uint8) for _ in range(TENSORS)]
        if kind == "list"
        else [torch.zeros(TENSORS * size, dtype=torch.uint8)]
    )


def serve_caches(parent: Connection, port: int) -> None:
    datadist = make_datadist(1, f"127.0.0.1:{port}")
    parent.send({(k, size): make_cache(datadist.cache_manager, k, size).cache_id for k in KINDS for size in SIZES})
    parent.recv()
    datadist.finalize()


def serve_nixl(parent: Connection, _: int) -> None:
    """Says where a row is, and is told when it has been read."""
    agent = nixl_agent("peer", nixl_agent_config(enable_prog_thread=False))
    tensors = {(kind, size): memory(kind, size) for kind in KINDS for size in SIZES}
    for registered in tensors.values():
        agent.register_memory(registered)
    socket = zmq.Context().socket(zmq.PAIR)
    parent.send((agent.get_agent_metadata(), socket.bind_to_random_port("tcp://127.0.0.1")))
    while not parent.poll(0):
        if not socket.poll(1):
            agent.get_new_notifs()
            continue
        message = msgspec.msgpack.decode(socket.recv())
        if message != "done":
            socket.send(msgspec.msgpack.encode([tensor.data_ptr() for tensor in tensors[tuple(message)]]))


def spawn(target: Callable[[Connection, int], None], port: int = 0) -> Connection:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    context.Process(target=target, args=(theirs, port), daemon=True).start()
    return mine


def nixl_alone(connection: Connection) -> Callable[[str, int], Contenders]:
    """What makes the ways to read with NIXL alone, as its documentation shows."""
    agent = nixl_agent("own", nixl_agent_config(enable_prog_thread=False))
    metadata, port = connection.recv()
    peer = agent.add_remote_agent(metadata).decode()
    control = zmq.Context().socket(zmq.PAIR)
    control.connect(f"tcp://127.0.0.1:{port}")

    def ways(kind: str, size: int) -> Contenders:
        tensors = memory(kind, size)
        agent.register_memory(tensors)

        def ask() -> list[int]:
            control.send(msgspec.msgpack.encode((kind, size)))
            return msgspec.msgpack.decode(control.recv())

        def read(addresses: list[int]) -> None:
            local = agent.get_xfer_descs([(t.data_ptr(), t.nbytes, 0) for t in tensors], "DRAM")
            remote = agent.get_xfer_descs([(a, t.nbytes, 0) for a, t in zip(addresses, tensors, strict=True)], "DRAM")
            handle = agent.initialize_xfer("READ", local, remote, peer)
            state = agent.transfer(handle)
            while state == "PROC":
                state = agent.check_xfer_state(handle)
            assert state == "DONE"
            handle.release()

        known = ask()
        return {"NIXL": lambda: read(known), "NIXL, asks": lambda: (read(ask()), control.send(DONE))}

    return ways


def main() -> None:
    bench = Bench(f"pull_cache of a row of {TENSORS} tensors from another process")
    port = free_port()
    caches_peer, nixl_peer = spawn(serve_caches, port), spawn(serve_nixl)
    ids, datadist, nixl = caches_peer.recv(), make_datadist(2), nixl_alone(nixl_peer)
    peer = LLMClusterInfo()
    peer.remote_cluster_id = 1
    peer.append_remote_ip_info("127.0.0.1", port)
    assert datadist.link_clusters([peer], 10_000)[0] is LLMStatusCode.LLM_SUCCESS
    manager, rows = datadist.cache_manager, []
    for size in bench.few(SIZES):
        for kind in KINDS:
            key, own = CacheKeyByIdAndIndex(1, ids[kind, size]), make_cache(manager, kind, size)
            dst, src = memory("list", size), memory("list", size)
            ways: Contenders = {"pull_cache": lambda k=key, o=own: manager.pull_cache(k, o)}
            ways |= nixl(kind, size)
            ways["loop of copy_"] = lambda d=dst, s=src: [to.copy_(of) for to, of in zip(d, s, strict=True)]
            rows += bench.rows(bench.times(ways), "pull_cache", caches=kind, bytes=size)
    bench.table("a row of each tensor", rows)
    for connection in (caches_peer, nixl_peer):
        connection.send(None)
    datadist.finalize()
    bench.end()


if __name__ == "__main__":
    main()
