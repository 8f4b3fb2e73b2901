# SPDX-License-Identifier: Apache-2.0
"""copy_cache among the kernels of a model: thousands of steps of attention that read what it has just written and
overwrite what it has just read, on streams whose tasks are delayed at random.

Each step is compared, since what one step gets wrong a later one may overwrite.
"""

from collections.abc import Callable

import ascend_sim
import pytest
import torch
from npu_utils import PATIENT
from torch import Tensor
from utils import copy_cache, copy_cache_batch

from llm_datadist_torch import Cache

STEPS, ROWS, HEADS, TOKENS, DIM = 3000, 3, 2, 8, 8
JITTER = 40  # microseconds

Copy = Callable[[list[Tensor], int, int], None]


def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Not scaled_dot_product_attention: that of torch_npu 2.9 forks a stream and does not join it, so that a capture with
    it ends in an error.
    """
    return torch.softmax(query @ keys.mT * DIM**-0.5, dim=-1) @ values


class Attention:
    """In each step the next row goes on from the cache of the row before, then every row attends to its cache and adds
    a token to it. Contents depend on all steps before, and what is wrong by the last bit does not grow.
    """

    def __init__(self, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.cache = [torch.randn(ROWS, HEADS, TOKENS, DIM, generator=generator).to(device) for _ in range(2)]
        self.queries = torch.randn(STEPS, ROWS, HEADS, 1, DIM, generator=generator).to(device)
        self.results = torch.zeros_like(self.queries, device="cpu").to(device)
        self.count = torch.zeros(1, dtype=torch.int64).to(device)

    def step(self, index: int, copy: Copy) -> None:
        """The step that `count` says, on the device, so that it can be captured; `index` chooses the rows."""
        keys, values = self.cache
        copy(self.cache, (index + 1) % ROWS, index % ROWS)
        query = self.queries.index_select(0, self.count)[0]
        result = attend(query, keys, values)
        self.results.index_copy_(0, self.count, result[None])
        position = self.count % TOKENS
        keys.index_copy_(2, position, query)
        values.index_copy_(2, position, query + result * 0.5)
        self.count.add_(1)


def assign(cache: list[Tensor], dst: int, src: int) -> None:
    for tensor in cache:
        tensor[dst] = tensor[src]


def one_call(cache: list[Tensor], dst: int, src: int) -> None:
    copy_cache(cache, cache, dst, src)


def a_batch(cache: list[Tensor], dst: int, src: int) -> None:
    """With a copy of another row onto itself, which moves nothing, and in two halves."""
    half = HEADS * TOKENS * DIM * 2
    other = 3 - dst - src
    copy_cache_batch(cache, cache, torch.tensor([(dst, src, 0, half), (other, other, 0, -1), (dst, src, half, -1)]))


def blocking(cache: list[Tensor], dst: int, src: int) -> None:
    held = Cache.from_tensors(cache)
    PATIENT.copy_cache(held, held, dst, src)


@pytest.fixture(scope="module")
def expected() -> Attention:
    on_cpu = Attention("cpu")
    for index in range(STEPS):
        on_cpu.step(index, assign)
    return on_cpu


@pytest.fixture
def attention() -> Attention:
    made = Attention("npu")
    torch.npu.synchronize()
    return made


def check(attention: Attention, expected: Attention, steps: int = STEPS) -> None:
    """Compares the result of each step, and the cache after the last. Keys are only copied, so they are equal."""
    wrong = (attention.results.cpu()[:steps] - expected.results[:steps]).abs().amax(dim=(1, 2, 3, 4)) > 1e-5
    assert not wrong.any(), f"{int(wrong.sum())} of {steps} steps are wrong, the first is {int(wrong.nonzero()[0])}"
    keys, values = attention.cache
    assert torch.equal(keys.cpu(), expected.cache[0])
    torch.testing.assert_close(values.cpu(), expected.cache[1], atol=1e-5, rtol=0)


def test_the_checks_can_fail(attention: Attention, expected: Attention) -> None:
    """A copy that is left out once is seen, in the step that wanted it."""
    for index in range(20):
        attention.step(index, (lambda *args: None) if index == 7 else one_call)
    with pytest.raises(AssertionError, match="the first is 7"):
        check(attention, expected, 20)


@pytest.mark.simulated
@pytest.mark.parametrize("copy", [one_call, a_batch])
def test_one_stream(attention: Attention, expected: Attention, copy: Copy) -> None:
    with ascend_sim.jitter_tasks(JITTER):
        for index in range(STEPS):
            attention.step(index, copy)
        check(attention, expected)


@pytest.mark.simulated
@pytest.mark.parametrize("copy", [one_call, a_batch])
def test_every_step_on_another_stream(attention: Attention, expected: Attention, copy: Copy) -> None:
    streams = [torch.npu.Stream() for _ in range(3)]
    with ascend_sim.jitter_tasks(JITTER):
        for index in range(STEPS):
            before, stream = streams[index % 3 - 1], streams[index % 3]
            stream.wait_stream(before)
            with torch.npu.stream(stream):
                attention.step(index, copy)
        torch.npu.current_stream().wait_stream(streams[(STEPS - 1) % 3])
        check(attention, expected)


@pytest.mark.simulated
@pytest.mark.parametrize("copy", [one_call, a_batch])
def test_copies_on_a_side_stream(attention: Attention, expected: Attention, copy: Copy) -> None:
    main, side = torch.npu.current_stream(), torch.npu.Stream()

    def aside(*args: object) -> None:
        side.wait_stream(main)
        with torch.npu.stream(side):
            copy(*args)
        main.wait_stream(side)

    with ascend_sim.jitter_tasks(JITTER):
        for index in range(STEPS):
            attention.step(index, aside)
        check(attention, expected)


@pytest.mark.simulated
def test_blocking_copies(attention: Attention, expected: Attention) -> None:
    with ascend_sim.jitter_tasks(JITTER):
        for index in range(STEPS):
            attention.step(index, blocking)
        check(attention, expected)


@pytest.mark.simulated
@pytest.mark.capture
@pytest.mark.parametrize("copy", [one_call, a_batch])
@pytest.mark.parametrize("aside", [False, True])
def test_captured(attention: Attention, expected: Attention, copy: Copy, aside: bool) -> None:
    """Streams of a graph that no event orders are replayed in another order than that of the capture."""
    side, graph = torch.npu.Stream(), torch.npu.NPUGraph()

    def captured(*args: object) -> None:
        main = torch.npu.current_stream()
        if not aside:
            return copy(*args)
        side.wait_stream(main)
        with torch.npu.stream(side):
            copy(*args)
        main.wait_stream(side)

    with torch.npu.graph(graph):
        for index in range(ROWS):
            attention.step(index, captured)
    with ascend_sim.jitter_tasks(JITTER):
        for _ in range(STEPS // ROWS):
            graph.replay()
        check(attention, expected)
