# SPDX-License-Identifier: Apache-2.0
"""A second process with an LLMDataDist, for the tests of links and transfers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from fresh_process import forked
from torch import Tensor
from utils import as_bytes, filled, free_port, to_host

from llm_datadist_torch import (
    Cache,
    CacheDesc,
    CacheKeyByIdAndIndex,
    CacheManager,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    Placement,
)

PEER, SELF = 1, 2  # cluster ids
SUCCESS = (LLMStatusCode.LLM_SUCCESS, [LLMStatusCode.LLM_SUCCESS])


def desc(num_tensors: int, *shape: int, data_type: DataType = DataType.DT_FLOAT, **kwargs: Any) -> CacheDesc:
    """On the NPU in the NPU environment, on the CPU in the other one."""
    return CacheDesc(num_tensors, shape, data_type, Placement.DEVICE, **kwargs)


def make_datadist(cluster_id: int, port: int = 0, timeout_ms: int = 20_000, **settings: Any) -> LLMDataDist:
    config = LLMConfig(enable_cache_manager=True, sync_kv_timeout=timeout_ms)
    config.listen_ip_info = f"127.0.0.1:{port}" if port else ""
    for name, value in settings.items():
        setattr(config, name, value)
    datadist = LLMDataDist(LLMRole.MIX, cluster_id)
    datadist.init(config.generate_options())
    return datadist


def cluster(cluster_id: int, port: int) -> LLMClusterInfo:
    info = LLMClusterInfo()
    info.remote_cluster_id = cluster_id
    info.append_remote_ip_info("127.0.0.1", port)
    return info


def code_of(call: Callable[..., object], *args: Any, **kwargs: Any) -> LLMStatusCode:
    try:
        call(*args, **kwargs)
    except LLMException as error:
        return error.status_code
    return LLMStatusCode.LLM_SUCCESS


def wait_until(true: Callable[[], bool], what: str, seconds: float = 60) -> None:
    patience = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < patience, what
        time.sleep(0.005)


NAMES = """
import gc, os, threading, time, weakref, torch
from llm_datadist_torch import *
from remote_utils import *
from utils import *
"""


def _serve(connection: Connection, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    names: dict[str, Any] = {}
    exec(NAMES, names)
    while True:
        try:
            kind, code = connection.recv()
        except EOFError:
            return
        try:
            connection.send((True, eval(code, names) if kind == "eval" else exec(code, names)))
        except BaseException as error:
            connection.send((False, f"{type(error).__name__}: {error}"))


class Peer:
    """A process that runs what it is told, with the names of the package, of utils and of this module."""

    def __init__(self, **environment: str) -> None:
        self._connection, theirs = forked.Pipe()
        self.process = forked.Process(target=_serve, args=(theirs, environment), daemon=True)
        self.process.start()
        theirs.close()

    def do(self, code: str) -> None:
        self.start(code)()

    def get(self, code: str) -> Any:
        self._connection.send(("eval", code))
        return self._answer()

    def start(self, code: str) -> Callable[[], Any]:
        """Starts to run statements. The result waits for their end."""
        self._connection.send(("exec", code))
        return self._answer

    def end(self) -> None:
        """Lets the process end without finalize."""
        self._connection.close()
        self.process.join(60)

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.join()
        if number == signal.SIGSTOP:  # its threads stop one after the other, and later than the signal is sent
            threads = Path(f"/proc/{self.process.pid}/task")
            wait_until(lambda: all(") T " in (t / "stat").read_text() for t in threads.iterdir()), "it runs on")

    def _answer(self) -> Any:
        assert self._connection.poll(60), "the peer does not answer"
        worked, value = self._connection.recv()
        assert worked, value
        return value


class Pair:
    """This process and a peer, linked."""

    def __init__(self, peer: Peer, timeout_ms: int = 20_000) -> None:
        self.peer, self.port = peer, free_port()
        peer.do(f"datadist = make_datadist({PEER}, {self.port})\nmanager = datadist.cache_manager")
        self.datadist = make_datadist(SELF, timeout_ms=timeout_ms)
        self.manager: CacheManager = self.datadist.cache_manager
        self.clusters = [cluster(PEER, self.port)]
        self.link()

    def link(self) -> None:
        assert self.datadist.link_clusters(self.clusters, 60_000) == SUCCESS

    def unlink(self) -> None:
        assert self.datadist.unlink_clusters(self.clusters) == SUCCESS

    def is_linked(self) -> bool:
        return self.datadist.check_link_status(PEER) is LLMStatusCode.LLM_SUCCESS

    def theirs(self, make: str) -> Tensor:
        """Makes ``held``, a cache of the peer, and fills it. Returns its contents."""
        self.peer.do(f"held = manager.{make}\nheld.tensors[0].copy_(filled(*held.tensors[0].shape, seed=5))")
        return self.peer.get("to_host(held.tensors[0])")

    def key(self, batch_index: int = 0) -> CacheKeyByIdAndIndex:
        """A row of the peer's cache."""
        return CacheKeyByIdAndIndex(PEER, self.peer.get("held.cache_id"), batch_index)

    def expect_theirs(self, expected: Tensor) -> None:
        assert torch.equal(self.peer.get("as_bytes(held.tensors[0])"), as_bytes(expected))

    def their_memory_is_released(self) -> None:
        """Ends the peer's cache. Its memory is there as long as a transfer, or a key, holds it."""
        self.peer.do("alive = weakref.ref(held.tensors[0])\nmanager.unregister_cache(held.cache_id)\ndel held")
        wait_until(lambda: self.peer.get("alive() is None"), "the memory is still there")

    def works(self) -> None:
        """Transfers a row."""
        sent = self.theirs("allocate_cache(desc(1, 1, 8))")
        own = self.manager.allocate_cache(desc(1, 1, 8))
        self.manager.pull_cache(self.key(), own)
        expect(own, sent)


@contextlib.contextmanager
def linked(peer: Peer, timeout_ms: int = 20_000) -> Iterator[Pair]:
    """Links a peer for the time of the block."""
    pair = None
    try:
        pair = Pair(peer, timeout_ms)
        yield pair
    finally:
        if pair is not None:
            pair.datadist.finalize()
        if peer.process.is_alive():
            peer.do("datadist.finalize()")


def ours(held: Cache) -> Tensor:
    """Fills a cache of this process. Returns its contents."""
    held.tensors[0].copy_(filled(*held.tensors[0].shape, seed=9))
    return to_host(held.tensors[0])


def expect(held: Cache, expected: Tensor) -> None:
    assert torch.equal(as_bytes(held.tensors[0]), as_bytes(expected))
