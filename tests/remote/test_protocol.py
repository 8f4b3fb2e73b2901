# SPDX-License-Identifier: Apache-2.0
"""Peers that lie, repeat, reorder and send garbage, in both roles, over ZeroMQ itself."""

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from remote_utils import PEER, SELF, Pair, cluster, code_of, desc, make_datadist

from llm_datadist_torch import CacheKeyByIdAndIndex, LLMDataDist, LLMStatusCode
from llm_datadist_torch.remote import messages as m
from llm_datadist_torch.remote.nixl import engine_of_process

DONE, FAILED = LLMStatusCode.LLM_SUCCESS, LLMStatusCode.LLM_LINK_FAILED
NUMBERS = np.arange(3, dtype=np.int64).tobytes()
LAYOUT = m.LayoutMessage([4096], False, 32, 32, 1, 1, "float32", False, True)


def any_message(rng: random.Random) -> m.Message:
    """Any message, with fields that are right by their type alone."""
    small = lambda: rng.choice([0, 1, 2, 3, 7, 2**31, 2**63])  # noqa: E731
    key = rng.choice(
        [
            m.NamedKey("request", (small(), 0)),
            m.NamedKey("blocks", ()),
            m.IdKey(small() - 1, small()),
            m.AddressKey([small()] * rng.randrange(3), small(), small(), "float32"),
        ]
    )
    number = rng.randrange(8)
    return rng.choice(
        [
            m.Hello(number, m.PROTOCOL, small(), None, "", b"agent"),
            m.Welcome(number, small(), b"agent"),
            m.Ready(number),
            m.Done(number),
            m.Failed(number, rng.choice(["LLM_TIMEOUT", "nonsense"]), "text"),
            m.Acquire(number, key, rng.random() < 0.5, small(), rng.random() < 0.5),
            m.Granted(number, small(), small(), rng.choice([None, LAYOUT]), [small()], [], [b"memory"]),
            m.Plan(number, (small(), small()), NUMBERS, NUMBERS[: rng.randrange(24)], NUMBERS),
            m.Stage(number, number, small(), 10),
            m.Release(number, rng.choice([None, [small()]])),
        ]
    )


def garbage(rng: random.Random) -> list[bytes]:
    """What is not a message: bytes, a message with a changed byte, several frames."""
    data = bytearray(m.encode(any_message(rng)))
    data[rng.randrange(len(data))] = rng.randrange(256)
    return rng.choice([[bytes(data)], [rng.randbytes(rng.randrange(40))], [b"", bytes(data)], [bytes(data)] * 2, [b""]])


@pytest.fixture
def context() -> Iterator[Any]:
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


class Liar:
    """A process that connects to a listener, and greets it as a peer would, or not."""

    def __init__(self, context: Any, port: int) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.RCVTIMEO, 20_000)
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def say(self, message: m.Message) -> None:
        self.socket.send(m.encode(message))

    def hear(self) -> m.Message:
        return m.decode(self.socket.recv())

    def link(self, cluster_id: int) -> None:
        self.say(m.Hello(0, m.PROTOCOL, cluster_id, PEER, "", engine_of_process(0).metadata))
        assert isinstance(self.hear(), m.Welcome)
        self.say(m.Ready(1))
        assert isinstance(self.hear(), m.Done)


@pytest.mark.parametrize("greets", [False, True])
def test_a_process_that_calls_and_lies(pair: Pair, context: Any, greets: bool) -> None:
    """It is refused or its link ends. The other link goes on, nothing is written, and nothing stays lent."""
    sent = pair.theirs("allocate_cache(desc(2, 1, 8))")
    rng = random.Random(5)
    for number in range(60):
        liar = Liar(context, pair.port)
        if greets:
            liar.link(1000 + number)
        for _ in range(rng.randrange(1, 8)):
            liar.socket.send_multipart(garbage(rng) if rng.random() < 0.3 else [m.encode(any_message(rng))])
        liar.socket.close(linger=100)
    own = pair.manager.allocate_cache(desc(2, 1, 8))
    pair.manager.pull_cache(pair.key(), own)
    assert own.tensors[0].tolist() == sent.tolist()
    pair.expect_theirs(sent)
    assert pair.is_linked()
    pair.their_memory_is_released()


def test_greetings_that_are_refused(pair: Pair, context: Any) -> None:
    hello = m.Hello(0, m.PROTOCOL, 77, PEER, "", b"no agent")
    for message, code in (
        (msgspec.structs.replace(hello, protocol=m.PROTOCOL + 1), "LLM_LINK_FAILED"),
        (msgspec.structs.replace(hello, wanted=9), "LLM_LINK_FAILED"),
        (msgspec.structs.replace(hello, cluster=SELF), "LLM_ALREADY_LINK"),
        (msgspec.structs.replace(hello, cluster=PEER), "LLM_LINK_FAILED"),
        (msgspec.structs.replace(hello, group="comm"), "LLM_NOT_YET_LINK"),
        (hello, "LLM_LINK_FAILED"),  # NIXL refuses the agent
    ):
        liar = Liar(context, pair.port)
        liar.say(message)
        reply = liar.hear()
        assert isinstance(reply, m.Failed)
        assert reply.code == code
    of_another_type = msgspec.msgpack.encode(
        {**msgspec.to_builtins(hello), "type": "Hello", "cluster": "77", "agent": b""}
    )
    liar = Liar(context, pair.port)
    liar.socket.send(of_another_type)
    liar.say(msgspec.structs.replace(hello, protocol=1))  # the connection goes on
    assert isinstance(liar.hear(), m.Failed)


Answer = Callable[[m.Message], list[m.Message]]


class Listener:
    """A process that listens, and answers as a peer would, but for the messages that a test answers itself."""

    def __init__(self, context: Any, answers: dict[type, Answer]) -> None:
        self._socket = context.socket(zmq.ROUTER)
        self.port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self._answers = answers
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._socket.poll(20):
                route, data = self._socket.recv_multipart()
                message = m.decode(data)
                for reply in self._answers.get(type(message), self._as_a_peer)(message):
                    self._socket.send_multipart([route, m.encode(reply)])
        self._socket.close(linger=0)

    def _as_a_peer(self, message: m.Message) -> list[m.Message]:
        if isinstance(message, m.Hello):
            return [m.Welcome(message.number, PEER, engine_of_process(0).metadata)]
        return [m.Done(message.number)] if isinstance(message, m.Ready | m.Unlink) else []


WELCOME = m.Welcome(0, PEER, b"no agent")


@pytest.mark.parametrize(
    ("kind", "answer", "link", "pull"),
    [
        (m.Hello, lambda q: [WELCOME], FAILED, None),
        (m.Hello, lambda q: [m.Welcome(q.number, 9, b"")], FAILED, None),
        (m.Hello, lambda q: [m.Done(q.number)], FAILED, None),
        (m.Hello, lambda q: [m.Failed(q.number, "nonsense", "text")], LLMStatusCode.LLM_FAILED, None),
        (m.Hello, lambda q: [m.Bye()], FAILED, None),
        (m.Hello, lambda q: [], LLMStatusCode.LLM_TIMEOUT, None),
        (m.Ready, lambda q: [], LLMStatusCode.LLM_TIMEOUT, None),
        (m.Ready, lambda q: [m.Ready(3), m.Done(q.number)], FAILED, None),
        (m.Acquire, lambda q: [], DONE, LLMStatusCode.LLM_TIMEOUT),
        (m.Acquire, lambda q: [m.Done(q.number)], DONE, FAILED),
        (m.Acquire, lambda q: [m.Done(q.number + 5), m.Failed(q.number, "LLM_KV_CACHE_NOT_EXIST", "")], DONE, LLMStatusCode.LLM_KV_CACHE_NOT_EXIST),
        (m.Acquire, lambda q: [m.Granted(q.number, 1, 0, None, [1], [], [])], DONE, FAILED),  # a layout that was never sent
        (m.Acquire, lambda q: [m.Granted(q.number, 1, 0, LAYOUT, [1], [], [b"no memory"])], DONE, FAILED),
        (m.Acquire, lambda q: [m.Granted(q.number, 1, 0, LAYOUT, [1, 2, 3], [], [])], DONE, FAILED),
        (m.Acquire, lambda q: [m.Granted(q.number, 1, 0, LAYOUT, [99], [], [])], DONE, FAILED),  # memory of no registration
        (m.Acquire, lambda q: [m.Granted(q.number, 1, 7, LAYOUT, [1], [], [])], DONE, LLMStatusCode.LLM_PARAM_INVALID),
        (m.Acquire, lambda q: [m.Bye()], DONE, FAILED),
        (m.Acquire, lambda q: [m.Unlink(1, 2**31)] * 2, DONE, LLMStatusCode.LLM_TIMEOUT),
        (m.Acquire, lambda q: [m.Stage(1, 1, 1, 1)], DONE, FAILED),
    ],
)  # fmt: skip
def test_a_process_that_listens_and_lies(
    context: Any, kind: type, answer: Answer, link: LLMStatusCode, pull: LLMStatusCode | None
) -> None:
    """The calls end with a code, nothing is written, and the process links to others afterwards."""
    listener = Listener(context, {kind: answer})
    datadist: LLMDataDist = make_datadist(SELF, timeout_ms=500)
    try:
        assert datadist.link_clusters([cluster(PEER, listener.port)], 1000 if link else 20_000)[0] is link
        if pull is not None:
            own = datadist.cache_manager.allocate_cache(desc(1, 1, 8))
            own.tensors[0].fill_(3)
            assert code_of(datadist.cache_manager.pull_cache, CacheKeyByIdAndIndex(PEER, 1), own) is pull
            assert bool((own.tensors[0] == 3).all())
    finally:
        datadist.finalize()
        listener.close()
