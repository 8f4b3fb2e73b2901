# SPDX-License-Identifier: Apache-2.0
"""vLLM's engine with the spec: the tokens are those of an engine without it, and vLLM counts what came from the host."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from engine_utils import (
    BLOCK,
    LOADED_BYTES,
    LOADED_TOKENS,
    PREEMPTIONS,
    STORED_BYTES,
    TOKENS,
    Counted,
    engine,
    generate,
    prompts,
    sampling,
    save_model,
    transfer_config,
)
from vllm import LLM
from watched_spec import WatchedSpec

PROMPTS = prompts(4)
OTHERS = prompts(2, seed=1)
LLAMA_BLOCK_BYTES = 3 * 2 * 2 * 32 * 4 * BLOCK  # layers, keys and values, heads, head_dim, float32


class Model(NamedTuple):
    path: str
    expected: dict[tuple[int, ...], list[int]]

    def check(self, llm: LLM, prompts: list[list[int]], tokens: int = 8) -> None:
        """The engine answers as one without the spec."""
        answers = generate(llm, prompts, tokens)
        assert answers == [self.expected[tuple(prompt)][:tokens] for prompt in prompts]


LONG = 60
"""The tokens that the engine without the spec has generated."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """Saves a model, and answers all prompts with an engine without the spec. Once for each name."""
    made: dict[str, Model] = {}

    def make(name: str) -> Model:
        if name not in made:
            path = save_model(name, tmp_path_factory.mktemp(name))
            with engine(path, None) as llm:
                answers = generate(llm, PROMPTS + OTHERS, LONG)
            assert len(set(map(tuple, answers))) == len(answers)
            made[name] = Model(path, dict(zip(map(tuple, PROMPTS + OTHERS), answers, strict=True)))
        return made[name]

    return make


@pytest.fixture(scope="module")
def llama(model: Callable[[str], Model]) -> Model:
    return model("llama")


class Loaded(NamedTuple):
    model: Model
    llm: LLM
    chunk: int  # tokens


@pytest.fixture(scope="class")
def loaded(request: pytest.FixtureRequest, model: Callable[[str], Model]) -> Iterator[Loaded]:
    name, blocks_per_chunk = request.param
    found = model(name)
    with engine(found.path, transfer_config(blocks_per_chunk=blocks_per_chunk)) as llm:
        counted = Counted(llm)
        found.check(llm, PROMPTS)
        assert counted(STORED_BYTES) > 0 == counted(LOADED_BYTES)
        yield Loaded(found, llm, blocks_per_chunk * BLOCK)


@pytest.mark.parametrize(
    "loaded",
    [(name, blocks) for name in ("llama", "gemma3") for blocks in (1, 4)],
    indirect=True,
    scope="class",
    ids=lambda case: f"{case[0]}-{case[1]}",
)
class TestReload:
    """Prompts whose blocks vLLM itself has forgotten."""

    def test_after_reset(self, loaded: Loaded) -> None:
        counted = Counted(loaded.llm)
        loaded.llm.reset_prefix_cache()
        loaded.model.check(loaded.llm, PROMPTS)
        assert counted(LOADED_TOKENS) == len(PROMPTS) * (TOKENS // loaded.chunk) * loaded.chunk

    def test_one_after_another(self, loaded: Loaded) -> None:
        counted = Counted(loaded.llm)
        loaded.llm.reset_prefix_cache()
        for prompt in PROMPTS:
            loaded.model.check(loaded.llm, [prompt])
        assert counted(LOADED_TOKENS) == len(PROMPTS) * (TOKENS // loaded.chunk) * loaded.chunk

    def test_first_blocks_on_the_device(self, loaded: Loaded) -> None:
        """vLLM has five blocks of each prompt in its own cache. The load begins inside a chunk of four."""
        loaded.llm.reset_prefix_cache()
        generate(loaded.llm, [prompt[: 5 * BLOCK + 1] for prompt in PROMPTS], 1)
        counted = Counted(loaded.llm)
        loaded.model.check(loaded.llm, PROMPTS)
        assert counted(LOADED_TOKENS) == len(PROMPTS) * (TOKENS // loaded.chunk * loaded.chunk - 5 * BLOCK)

    def test_host_memory_reset(self, loaded: Loaded) -> None:
        """Last: vLLM forgets what is on the host too."""
        counted = Counted(loaded.llm)
        loaded.llm.reset_prefix_cache(reset_connector=True)
        loaded.model.check(loaded.llm, PROMPTS)
        assert counted(LOADED_TOKENS) == 0
        loaded.llm.reset_prefix_cache()
        loaded.model.check(loaded.llm, PROMPTS)
        assert counted(LOADED_TOKENS) > 0


def test_eviction(llama: Model) -> None:
    """Host memory for three of four prompts: the least recently used one is computed again."""
    prompt_bytes = TOKENS // BLOCK * LLAMA_BLOCK_BYTES
    with engine(llama.path, transfer_config(host_bytes=3 * prompt_bytes)) as llm:
        counted = Counted(llm)
        for prompt in PROMPTS:
            llama.check(llm, [prompt])
        assert counted(STORED_BYTES) == len(PROMPTS) * prompt_bytes
        llm.reset_prefix_cache()
        for prompt in PROMPTS[1:]:
            llama.check(llm, [prompt])
            assert counted(LOADED_BYTES) == prompt_bytes
        llama.check(llm, PROMPTS[:1])
        assert counted(LOADED_BYTES) == 0


def test_preemption_and_chunked_prefill(llama: Model) -> None:
    """Prompts are computed 64 tokens at a time. Two requests grow to 30 blocks, and there are 29.

    The first request is the least important one. Others take its blocks, so its prompt comes back from the host.
    """
    few = {"num_gpu_blocks_override": 30, "max_model_len": 512, "max_num_batched_tokens": 64}
    with engine(llama.path, transfer_config(), scheduling_policy="priority", **few) as llm:
        counted, requests, answers = Counted(llm), llm.llm_engine, {}

        def step() -> None:
            for done in requests.step():
                answers[int(done.request_id)] = done.outputs[0].token_ids

        for number, prompt in enumerate(PROMPTS):
            requests.add_request(str(number), {"prompt_token_ids": prompt}, sampling(LONG), priority=-number)
            while not number and not answers:
                step()
        while requests.has_unfinished_requests():
            step()
        assert [answers[number] for number in range(len(PROMPTS))] == [llama.expected[tuple(p)] for p in PROMPTS]
        assert counted(PREEMPTIONS) > 0
        assert counted(LOADED_BYTES) >= TOKENS // BLOCK * LLAMA_BLOCK_BYTES


class TestWatched:
    """With a worker that compares bytes, and that the test holds up."""

    def test_abort_while_loading(self, llama: Model) -> None:
        watched = ("watched_spec", "WatchedSpec")
        with engine(llama.path, transfer_config(spec=watched)) as llm:
            llama.check(llm, PROMPTS)
            llm.reset_prefix_cache()
            worker, requests = WatchedSpec.worker, llm.llm_engine
            worker.hold_loads = True
            requests.add_request("aborted", {"prompt_token_ids": PROMPTS[0]}, sampling())
            for _ in range(3):
                requests.step()
            assert worker.loaded == TOKENS // BLOCK
            requests.abort_request(["aborted"])
            requests.step()
            llama.check(llm, OTHERS)
            worker.hold_loads = False
            llama.check(llm, PROMPTS)
            assert worker.loaded == (len(PROMPTS) + 1) * (TOKENS // BLOCK)
            assert llm.reset_prefix_cache(), "blocks of the aborted request are still in use"

    def test_mla(self, model: Callable[[str], Model], tmp_path: Path) -> None:
        """Bytes alone: on the CPU, vLLM computes MLA prompts without their cached prefix, and answers wrongly."""
        path = save_model("deepseek_v2", tmp_path)
        watched = ("watched_spec", "WatchedSpec")
        with engine(path, transfer_config(spec=watched), block_size=16) as llm:
            counted = Counted(llm)
            generate(llm, PROMPTS)
            llm.reset_prefix_cache()
            generate(llm, PROMPTS)
            assert WatchedSpec.worker.loaded == len(PROMPTS) * (TOKENS // 16)
            assert counted(LOADED_BYTES) == WatchedSpec.worker.loaded * 16 * (512 + 64) * 4 * 2
