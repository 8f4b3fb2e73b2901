# SPDX-License-Identifier: Apache-2.0
"""vLLM's engine on small models with random weights, in the process of the tests."""

import gc
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before vLLM is imported.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}

import tokenizers
import torch
import transformers
from vllm import LLM, SamplingParams

VOCABULARY, BLOCK, TOKENS = 1000, 32, 420  # vLLM's attention on the CPU takes blocks of 32 tokens


def prompts(count: int, tokens: int = TOKENS, seed: int = 0) -> list[list[int]]:
    chosen = random.Random(seed)
    return [[chosen.randrange(VOCABULARY) for _ in range(tokens)] for _ in range(count)]


COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,  # large: tokens depend on all that is in the cache
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(num_hidden_layers=3, num_key_value_heads=2, head_dim=32, **COMMON),
    # Three KV cache groups over two tensors: layers with a window of two blocks, and layers without.
    "gemma3": transformers.Gemma3TextConfig(
        num_hidden_layers=6,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=2 * BLOCK,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        **COMMON,
    ),
    # MLA with the only sizes that vLLM has a kernel for on the CPU.
    "deepseek_v2": transformers.DeepseekV2Config(
        num_hidden_layers=2,
        num_key_value_heads=4,
        kv_lora_rank=512,
        q_lora_rank=None,
        qk_rope_head_dim=64,
        qk_nope_head_dim=32,
        v_head_dim=32,
        first_k_dense_replace=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        **COMMON,
    ),
}


def save_model(name: str, folder: Path) -> str:
    """Writes a model with random weights and a tokenizer of numbers. Returns its path."""
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).save_pretrained(folder)
    words = {str(number): number for number in range(VOCABULARY)}
    numbers = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="0"))
    numbers.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=numbers).save_pretrained(folder)
    return str(folder)


def transfer_config(
    host_bytes: int = 64 << 20,
    spec: tuple[str, str] = ("llm_datadist_torch.vllm", "CopyCacheOffloadingSpec"),
    **extra: int,
) -> dict[str, Any]:
    """What a user writes to select the spec."""
    module, name = spec
    extra_config = {"spec_module_path": module, "spec_name": name, "cpu_bytes_to_use": host_bytes, **extra}
    return {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra_config}


@contextmanager
def engine(model: str, transfer: dict[str, Any] | None, **options: Any) -> Iterator[LLM]:
    """One at a time: vLLM keeps the connector in a global variable."""
    options = {"block_size": BLOCK, "num_gpu_blocks_override": 200, "max_model_len": 1024, **options}
    llm = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        disable_log_stats=False,
        kv_transfer_config=transfer,
        **options,
    )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def sampling(tokens: int = 8) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)


def generate(llm: LLM, prompts: Sequence[list[int]], tokens: int = 8) -> list[list[int]]:
    """The most likely tokens after each prompt."""
    requests = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [list(done.outputs[0].token_ids) for done in llm.generate(requests, sampling(tokens), use_tqdm=False)]


LOADED_TOKENS = "vllm:external_prefix_cache_hits"
LOADED_BYTES = "vllm:kv_offload_load_bytes"
STORED_BYTES = "vllm:kv_offload_store_bytes"
PREEMPTIONS = "vllm:num_preemptions"


class Counted:
    """What vLLM's own counters have counted since the last look. vLLM keeps them for the process."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._last = self._all()

    def __call__(self, name: str) -> int:
        now = self._all()
        before, self._last[name] = self._last.get(name, 0), now.get(name, 0)
        return now.get(name, 0) - before

    def _all(self) -> dict[str, int]:
        totals: dict[str, int] = {}
        for metric in self._llm.get_metrics():
            if hasattr(metric, "value"):
                totals[metric.name] = totals.get(metric.name, 0) + int(metric.value)
        return totals
