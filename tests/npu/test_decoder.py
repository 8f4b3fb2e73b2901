# SPDX-License-Identifier: Apache-2.0
"""A Llama decoder on NPU tensors, with copy_cache between and inside its steps: the same results as on the CPU, eager,
captured and compiled.

Run by hand for one mode of torch_npu's task queue, and by test_queue_modes.py for all of them.
"""

from collections.abc import Callable

import ascend_sim
import pytest
import torch
from decoder import MAX_TOKENS, REQUESTS, Fork, make_caches, make_models, prefix_sharing
from npu_utils import check_one_replay
from transformers import LlamaForCausalLM

SEEN, STEPS = 5, 20


@pytest.fixture(scope="module")
def models() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    return make_models()


@pytest.fixture
def forks(models: tuple[LlamaForCausalLM, LlamaForCausalLM]) -> tuple[Fork, Fork]:
    caches = make_caches(models[0])
    return tuple(Fork(model, kv, SEEN) for model, kv in zip(models, caches, strict=True))


def check(on_cpu: Fork, on_npu: Fork) -> None:
    """Compares logits, tokens and caches. The kernels are the same on both, torch's for the CPU, and the results too
    but for the last bits where the memory of one is aligned in another way.
    """
    assert torch.equal(on_npu.tokens.cpu(), on_cpu.tokens)
    for actual, expected in zip(on_npu.state(), on_cpu.state(), strict=True):
        torch.testing.assert_close(actual, expected, atol=prefix_sharing.TOLERANCE, rtol=0)


def test_prefill_once_copy_and_decode(models: tuple[LlamaForCausalLM, LlamaForCausalLM]) -> None:
    prefix, suffix, count = 24, 5, 8
    prompts = torch.randint(2048, (REQUESTS, prefix + suffix))
    prompts[:, :prefix] = prompts[0, :prefix]
    decoded = []
    for model, kv in zip(models, make_caches(models[0]), strict=True):
        decoder = prefix_sharing.Decoder(model)
        logits = decoder.prefill_once_and_copy(kv, prompts.to(model.device), prefix)
        decoded.append(decoder.decode(kv, logits, prefix + suffix, count))
    tokens, logits = (tensor.cpu() for tensor in decoded[1])
    prefix_sharing.check_decoded((tokens, logits), decoded[0])


@pytest.mark.simulated
def test_eager_steps_without_a_wait(forks: tuple[Fork, Fork]) -> None:
    on_cpu, on_npu = forks
    for _ in range(STEPS):
        on_cpu.step()
    torch.npu.synchronize()
    ascend_sim.reset()
    with ascend_sim.jitter_tasks(microseconds=200):
        for _ in range(STEPS):
            on_npu.step()
        counts = ascend_sim.call_counts()
        assert not [name for name in counts if name.startswith("aclrtSynchronize")]
        check(on_cpu, on_npu)


@pytest.mark.simulated
@pytest.mark.capture
def test_captured_step(forks: tuple[Fork, Fork]) -> None:
    on_cpu, on_npu = forks
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        on_npu.step()
    check_one_replay_per_step(on_cpu, on_npu, graph.replay)


@pytest.mark.simulated
@pytest.mark.capture
def test_npugraph_ex(forks: tuple[Fork, Fork]) -> None:
    on_cpu, on_npu = forks
    for tensor in on_npu.fixed():
        torch._dynamo.mark_static_address(tensor)
    torch._dynamo.reset()
    compiled = torch.compile(on_npu.step, fullgraph=True, backend="npugraph_ex", dynamic=False)
    on_cpu.step()
    compiled()
    check_one_replay_per_step(on_cpu, on_npu, compiled)


def check_one_replay_per_step(on_cpu: Fork, on_npu: Fork, step: Callable[[], None]) -> None:
    """Each step is one replay: no operator is called outside the graph, and no cache is copied to it or from it."""
    for _ in range(STEPS):
        on_cpu.step()
        check_one_replay(step)
        check(on_cpu, on_npu)


def test_aot_eager(forks: tuple[Fork, Fork]) -> None:
    on_cpu, on_npu = forks
    torch._dynamo.reset()
    compiled = torch.compile(on_npu.step, fullgraph=True, backend="aot_eager", dynamic=False)
    for _ in range(STEPS):
        on_cpu.step()
        compiled()
    check(on_cpu, on_npu)


def test_the_checks_can_fail(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the copies the requests go on from their own caches, and that shows."""
    assert MAX_TOKENS >= SEEN + STEPS
    caches = make_caches(models[0])
    on_cpu, on_npu = (Fork(model, kv, SEEN) for model, kv in zip(models, caches, strict=True))
    for _ in range(2):
        on_cpu.step()
    monkeypatch.setattr("decoder.copy_cache", lambda *args: None)
    for _ in range(2):
        on_npu.step()
    with pytest.raises(AssertionError):
        check(on_cpu, on_npu)
