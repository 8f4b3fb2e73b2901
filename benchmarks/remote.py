# SPDX-License-Identifier: Apache-2.0
"""A pull from another process against NIXL used directly, send and recv of torch.distributed, and memcpy."""

import contextlib
import multiprocessing
import random
import socket
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist
from bench import effort, mark, median, ratio, start
from nixl_cu12._api import nixl_agent, nixl_agent_config
from tabulate import tabulate
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
from llm_datadist_torch.bench.timing import Contenders, in_turns

TENSORS = 160
ROWS = {"4 KiB": 4 << 10, "64 KiB": 64 << 10, "1 MiB": 1 << 20}
BAR = 0.77  # of the speed of NIXL used directly: within 1.3 times its time


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


def caches(manager: CacheManager, size: int) -> dict[str, Cache]:
    """A list of tensors and a stack, of one row each."""
    desc = CacheDesc(TENSORS, [1, size], DataType.DT_UINT8)
    tensors = [torch.zeros(1, size, dtype=torch.uint8) for _ in range(TENSORS)]
    return {"list": manager.register_cache(desc, tensors), "stack": manager.allocate_cache(desc)}


def serve_caches(parent: Connection, port: int) -> None:
    datadist = make_datadist(1, f"127.0.0.1:{port}")
    parent.send(
        {size: {k: c.cache_id for k, c in caches(datadist.cache_manager, size).items()} for size in ROWS.values()}
    )
    parent.recv()
    datadist.finalize()


def serve_nixl(parent: Connection, port: int) -> None:
    """The same memory, for NIXL without this package. Says where a row is, and is told when it has been read."""
    agent = nixl_agent("peer", nixl_agent_config(enable_prog_thread=False))
    lists = {size: [torch.zeros(size, dtype=torch.uint8) for _ in range(TENSORS)] for size in ROWS.values()}
    stacks = {size: [torch.zeros(TENSORS * size, dtype=torch.uint8)] for size in ROWS.values()}
    for tensors in (*lists.values(), *stacks.values()):
        agent.register_memory(tensors)
    addresses = {
        size: {"list": [t.data_ptr() for t in lists[size]], "stack": [t.data_ptr() for t in stacks[size]]}
        for size in ROWS.values()
    }
    parent.send(agent.get_agent_metadata())
    while True:
        while not parent.poll(1e-3):
            agent.get_new_notifs()
        message = parent.recv()
        if message is None:
            return
        if message != "done":
            size, kind = message
            parent.send(addresses[size][kind])


def serve_gloo(parent: Connection, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=1, world_size=2)
    lists = {size: [torch.zeros(size, dtype=torch.uint8) for _ in range(TENSORS)] for size in ROWS.values()}
    order = torch.zeros(1, dtype=torch.int64)
    parent.send(None)
    while True:
        dist.recv(order, 0)
        if order.item() == 0:
            return
        for tensor in lists[int(order)]:
            dist.send(tensor, 0)


def spawn(target: Callable[[Connection, int], None], port: int = 0) -> tuple[Connection, multiprocessing.Process]:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, port), daemon=True)
    process.start()
    return mine, process


class Direct:
    """Reads with NIXL alone, as its documentation shows."""

    def __init__(self, metadata: bytes, connection: Connection) -> None:
        self.connection = connection
        self.agent = nixl_agent("own", nixl_agent_config(enable_prog_thread=False))
        self.peer = self.agent.add_remote_agent(metadata).decode()

    def readers(self, size: int, kind: str, tensors: list[Tensor]) -> tuple[Callable[[], None], Callable[[], None]]:
        """One that knows the addresses, and one that asks the peer for them, and tells it when it has read."""
        agent, connection = self.agent, self.connection
        agent.register_memory(tensors)

        def read(addresses: list[int]) -> None:
            local = agent.get_xfer_descs([(t.data_ptr(), t.nbytes, 0) for t in tensors], "DRAM")
            remote = agent.get_xfer_descs([(a, t.nbytes, 0) for a, t in zip(addresses, tensors, strict=True)], "DRAM")
            handle = agent.initialize_xfer("READ", local, remote, self.peer)
            state = agent.transfer(handle)
            while state == "PROC":
                state = agent.check_xfer_state(handle)
            assert state == "DONE"
            handle.release()

        def ask() -> list[int]:
            connection.send((size, kind))
            addresses: list[int] = connection.recv()
            return addresses

        def ask_and_read() -> None:
            read(ask())
            connection.send("done")

        known = ask()
        return lambda: read(known), ask_and_read


def main() -> int:
    args = start(__doc__ or "")
    port, gloo_port = free_port(), free_port()
    (parent, _), (nixl_parent, _), (gloo_parent, _) = (
        spawn(serve_caches, port),
        spawn(serve_nixl),
        spawn(serve_gloo, gloo_port),
    )
    ids, metadata = parent.recv(), nixl_parent.recv()
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{gloo_port}", rank=0, world_size=2)
    gloo_parent.recv()

    datadist, direct = make_datadist(2), Direct(metadata, nixl_parent)
    peer = LLMClusterInfo()
    peer.remote_cluster_id = 1
    peer.append_remote_ip_info("127.0.0.1", port)
    assert datadist.link_clusters([peer], 10_000)[0] is LLMStatusCode.LLM_SUCCESS
    manager, lines = datadist.cache_manager, []
    for name, size in ROWS.items():
        own = caches(manager, size)
        lists = [torch.zeros(size, dtype=torch.uint8) for _ in range(TENSORS)]
        others = [torch.ones(size, dtype=torch.uint8) for _ in range(TENSORS)]
        stack = [torch.zeros(TENSORS * size, dtype=torch.uint8)]

        def pull(kind: str, own: dict[str, Cache] = own, size: int = size) -> Callable[[], None]:
            key = CacheKeyByIdAndIndex(1, ids[size][kind])
            return lambda: manager.pull_cache(key, own[kind])

        def gloo(size: int = size, lists: list[Tensor] = lists) -> None:
            dist.send(torch.tensor([size]), 1)
            for tensor in lists:
                dist.recv(tensor, 1)

        def memcpy(lists: list[Tensor] = lists, others: list[Tensor] = others) -> None:
            for dst, src in zip(lists, others, strict=True):
                dst.copy_(src)

        contenders: Contenders = {"list": pull("list"), "stack": pull("stack"), "gloo": gloo, "memcpy": memcpy}
        for kind, tensors in (("list", lists), ("stack", stack)):
            contenders[f"read {kind}"], contenders[f"ask {kind}"] = direct.readers(size, kind, tensors)
        times = in_turns(contenders, *effort(args))
        for kind in ("list", "stack"):
            shown = (kind, f"ask {kind}", f"read {kind}", "gloo", "memcpy")
            milliseconds = (f"{median(times, contender) * 1e3:.2f}" for contender in shown)
            ratios = (mark(ratio(times, kind, f"{other} {kind}"), BAR) for other in ("ask", "read"))
            lines.append([f"{TENSORS} x {name}", kind, *milliseconds, *ratios])
    print(
        "ms of pull_cache; of NIXL that asks the peer where the row is, and of NIXL that knows it; and of those to the first"
    )
    headers = ["bytes", "cache", "pull_cache", "NIXL, asks", "NIXL", "gloo", "memcpy", "asks / pull", "NIXL / pull"]
    print(tabulate(lines, headers=headers, disable_numparse=True, stralign="right"))
    dist.send(torch.tensor([0]), 1)
    for connection in (parent, nixl_parent):
        connection.send(None)
    datadist.finalize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
