# SPDX-License-Identifier: Apache-2.0
"""vLLM's engine on the CPU with KV offloading by this package. After `make test-vllm`, on an idle machine:

    .venv-vllm/bin/python benchmarks/vllm_offload.py

Times the first token of a repeated long prompt, the transfers, and the throughput. The model is a Llama with random weights:
its tokens mean nothing, its times do.
"""

import gc
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}

import prometheus_client
import torch
from bench import Bench
from vllm import LLM, SamplingParams

VOCABULARY, LAYERS, HEADS, HEAD_DIM = 1000, 8, 8, 64
TOKEN_BYTES = LAYERS * 2 * HEADS * HEAD_DIM * 4
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": HEADS * HEAD_DIM,
    "intermediate_size": 4 * HEADS * HEAD_DIM,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": 8192,
}
OFFLOAD = {
    "kv_connector": "OffloadingConnector",
    "kv_role": "kv_both",
    "kv_connector_extra_config": {
        "spec_module_path": "llm_datadist_torch.vllm",
        "spec_name": "CopyCacheOffloadingSpec",
        "cpu_bytes_to_use": 2 << 30,
    },
}


@contextmanager
def engine(offload: bool) -> Iterator[LLM]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        llm = LLM(
            folder,
            load_format="dummy",
            dtype="float32",
            enforce_eager=True,
            skip_tokenizer_init=True,
            max_model_len=8192,
            disable_log_stats=False,
            kv_transfer_config=OFFLOAD if offload else None,
        )
        try:
            yield llm
        finally:
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()


def prompt(tokens: int) -> list[int]:
    return random.choices(range(VOCABULARY), k=tokens)


def generate(llm: LLM, prompts: list[list[int]], tokens: int) -> float:
    """Seconds."""
    parameters = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    begin = time.perf_counter()
    llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], parameters, use_tqdm=False)
    return time.perf_counter() - begin


def counted(name: str) -> float:
    """What one of vLLM's counters of transfers has, in full: LLM.get_metrics() rounds seconds down."""
    samples = [sample for metric in prometheus_client.REGISTRY.collect() for sample in metric.samples]
    return sum(sample.value for sample in samples if sample.name == f"vllm:kv_offload_{name}_total")


def first_token(llm: LLM, tokens: int, rounds: int, reset: bool) -> float:
    """Milliseconds from a prompt that was computed before to its first token: the median."""
    repeated = prompt(tokens)
    generate(llm, [repeated], 1)
    seconds = []
    for _ in range(rounds):
        generate(llm, [prompt(300)], 1)  # also submits the last stores
        if reset:
            llm.reset_prefix_cache()
        seconds.append(generate(llm, [repeated], 1))
    return 1e3 * statistics.median(seconds)


def throughput(llm: LLM, rounds: int) -> float:
    """Tokens per second, computed and generated, of new prompts: the median."""
    count, computed, generated = 8, 512, 32
    seconds = [generate(llm, [prompt(computed) for _ in range(count)], generated) for _ in range(rounds)]
    return count * (computed + generated) / statistics.median(seconds)


def memcpy(size: int) -> float:
    """GB/s of one copy between two tensors of so many bytes: the median."""
    dst, src = (torch.ones(size, dtype=torch.uint8) for _ in range(2))
    seconds = []
    for _ in range(20):
        begin = time.perf_counter()
        dst.copy_(src)
        seconds.append(time.perf_counter() - begin)
    return size / 1e9 / statistics.median(seconds)


def main() -> None:
    bench = Bench("vLLM with KV offloading by copy_cache_batch")
    rounds, tokens = (1, 600) if bench.args.tiny else (5, 2000)
    random.seed(0)
    rows: list[dict[str, Any]] = []
    with engine(offload=False) as llm:
        generate(llm, [prompt(600)], 4)
        rows.append({"way": "computed again", "ms": first_token(llm, tokens, rounds, reset=True)})
        rows.append({"way": "vLLM's prefix cache", "ms": first_token(llm, tokens, rounds, reset=False)})
        off = throughput(llm, rounds)
    with engine(offload=True) as llm:
        generate(llm, [prompt(600)], 4)
        rows.append({"way": "offload", "ms": first_token(llm, tokens, rounds, reset=True)})
        on = throughput(llm, rounds)
    bench.table(
        f"First token of a repeated prompt of {tokens} tokens ({tokens * TOKEN_BYTES / 1e6:.0f} MB of KV cache)", rows
    )
    speeds = {way: counted(f"{way}_bytes") / 1e9 / counted(f"{way}_time") for way in ("store", "load")}
    speeds["memcpy"] = memcpy(tokens * TOKEN_BYTES)
    bench.table("Transfers", [{"way": way, "GB/s": speed} for way, speed in speeds.items()])
    bench.table("Throughput of new prompts", [{"way": "off", "tokens/s": off}, {"way": "on", "tokens/s": on}])
    bench.end()


if __name__ == "__main__":
    main()
