# SPDX-License-Identifier: Apache-2.0
"""copy_cache among kernels: hundreds of steps whose kernels read what the copy has written and overwrite what it has
read, on streams whose tasks are delayed at random.
"""

from collections.abc import Callable

import ascend_sim
import pytest
import torch
from npu_utils import PATIENT, check_one_replay
from torch import Tensor
from utils import assert_same_bytes, cache, copy_cache, copy_cache_batch
from versions import NPUGRAPH_EX

from llm_datadist_torch import Cache

STEPS, ROWS, WIDTH = 300, 3, 32
JITTER = 40  # microseconds

Copy = Callable[[list[Tensor], int, int], None]


class Chain:
    """Sums over every row in every step, modulo 2**64. The factor is odd, so one wrong step leaves them wrong.

    There are no operators but addition: the simulated runtime has no others.
    """

    def __init__(self, device: str) -> None:
        self.cache = cache(2, ROWS, WIDTH, dtype=torch.int64, device=device)
        self.sums = cache(2, ROWS, WIDTH, dtype=torch.int64, device=device, seed=1)

    def step(self, index: int, copy: Copy) -> None:
        copy(self.cache, (index + 1) % ROWS, index % ROWS)
        for rows, sums in zip(self.cache, self.sums, strict=True):
            sums.copy_(torch.add(rows, sums, alpha=31))
            rows.copy_(torch.add(rows, sums))

    def run(self, copy: Copy, steps: int = STEPS) -> None:
        for index in range(steps):
            self.step(index, copy)


def assign(tensors: list[Tensor], dst: int, src: int) -> None:
    for tensor in tensors:
        tensor[dst] = tensor[src]


def one_call(tensors: list[Tensor], dst: int, src: int) -> None:
    copy_cache(tensors, tensors, dst, src)


def a_batch(tensors: list[Tensor], dst: int, src: int) -> None:
    """With a copy of another row onto itself, which moves nothing, and in two halves."""
    half, other = WIDTH * 4, 3 - dst - src
    copies = torch.tensor([(dst, src, 0, half), (other, other, 0, -1), (dst, src, half, -1)])
    copy_cache_batch(tensors, tensors, copies)


def blocking(tensors: list[Tensor], dst: int, src: int) -> None:
    held = Cache.from_tensors(tensors)
    PATIENT.copy_cache(held, held, dst, src)


def check(chain: Chain, steps: int = STEPS) -> None:
    on_cpu = Chain("cpu")
    on_cpu.run(assign, steps)
    torch.npu.synchronize()
    assert_same_bytes(chain.sums, on_cpu.sums)
    assert_same_bytes(chain.cache, on_cpu.cache)


@pytest.fixture
def chain() -> Chain:
    made = Chain("npu")
    torch.npu.synchronize()
    return made


@pytest.mark.parametrize("missing", [0, 7, STEPS - 1])
def test_the_checks_can_fail(chain: Chain, missing: int) -> None:
    """A copy that is left out once is seen at the end."""
    for index in range(STEPS):
        chain.step(index, (lambda *args: None) if index == missing else one_call)
    with pytest.raises(AssertionError, match="tensor 0 differs"):
        check(chain)


@pytest.mark.simulated
@pytest.mark.parametrize("copy", [one_call, a_batch])
def test_every_step_on_another_stream(chain: Chain, copy: Copy) -> None:
    streams = [torch.npu.Stream() for _ in range(3)]
    with ascend_sim.jitter_tasks(JITTER):
        for index in range(STEPS):
            before, stream = streams[index % 3 - 1], streams[index % 3]
            stream.wait_stream(before)
            with torch.npu.stream(stream):
                chain.step(index, copy)
        check(chain)


def on_a_side_stream(copy: Copy) -> Copy:
    side = torch.npu.Stream()

    def aside(*args: object) -> None:
        main = torch.npu.current_stream()
        side.wait_stream(main)
        with torch.npu.stream(side):
            copy(*args)
        main.wait_stream(side)

    return aside


@pytest.mark.simulated
@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("copy", [one_call, a_batch, blocking])
def test_one_stream_or_a_side_stream(chain: Chain, copy: Copy, aside: bool) -> None:
    with ascend_sim.jitter_tasks(JITTER):
        chain.run(on_a_side_stream(copy) if aside else copy)
        check(chain)


@pytest.mark.simulated
@pytest.mark.capture
@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("copy", [one_call, a_batch])
def test_captured(chain: Chain, copy: Copy, aside: bool) -> None:
    """Streams that no event orders are replayed in another order than that of the capture."""
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        chain.run(on_a_side_stream(copy) if aside else copy, ROWS)
    with ascend_sim.jitter_tasks(JITTER):
        for _ in range(STEPS // ROWS):
            graph.replay()
        check(chain)


@pytest.mark.usefixtures("fresh_dynamo")
class TestCompiled:
    def compile(self, chain: Chain, backend: str) -> Callable[[], None]:
        Cache.from_tensors(chain.cache)  # marks the addresses of its tensors as static, so that users need not
        for tensor in chain.sums:
            torch._dynamo.mark_static_address(tensor)
        return torch.compile(lambda: chain.run(one_call, ROWS), fullgraph=True, backend=backend, dynamic=False)

    def test_aot_eager(self, chain: Chain) -> None:
        compiled = self.compile(chain, "aot_eager")
        for _ in range(4):
            compiled()
        check(chain, 4 * ROWS)

    @pytest.mark.simulated
    @pytest.mark.capture
    @pytest.mark.skipif(not NPUGRAPH_EX, reason="its torchair binds functions of CANN that are not simulated")
    def test_npugraph_ex(self, chain: Chain) -> None:
        """From the second call on, each is one replay: no operator outside the graph, and no copy to it or from it."""
        compiled = self.compile(chain, "npugraph_ex")
        compiled()
        for _ in range(3):
            check_one_replay(compiled)
        check(chain, 4 * ROWS)
