# SPDX-License-Identifier: Apache-2.0
"""Beam search in transformers, with the KV cache reordered in place by one call for all layers.

After each step a beam goes on from the cache of another beam: the new row i is the old row beam_idx[i], which is any
mapping, cycles and all. transformers makes a whole new cache for that. Here copy_tokens moves the rows that change
within the cache that is there, and of those only the tokens seen so far. The cache stays where it is, as a compiled or
captured model needs it to.

The script checks that the generated tokens are those of transformers' own cache, and prints what both take. The model
is transformers' LlamaForCausalLM with random weights, so nothing is downloaded.

    pip install transformers
    python examples/beam_search.py    # on the NPU where there is one
"""

import argparse
import statistics
import time

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from llm_datadist_torch import copy_tokens
from llm_datadist_torch.transformers import from_transformers

BEAMS, PROMPT, GENERATED, MAX_TOKENS = 4, 64, 48, 512


class InPlaceCache(StaticCache):
    """transformers' static cache, reordered where it lies."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        tensors = from_transformers(self).unstacked
        pairs = [(of, to) for to, of in enumerate(beam_idx.tolist())]
        copy_tokens(tensors, tensors, pairs, slice(int(self.get_seq_length())), token_dim=2)


def now() -> float:
    """Milliseconds, after the device has done its work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() * 1e3


@torch.no_grad()
def main() -> None:
    npu = hasattr(torch, "npu") and torch.npu.is_available()
    parser = argparse.ArgumentParser(description="Reorder the KV cache of a beam search in place.")
    parser.add_argument("--device", default="npu" if npu else "cpu", help="default: %(default)s")
    device = parser.parse_args().device
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, num_attention_heads=4, **sizes)).eval().to(device)
    prompts = torch.randint(model.config.vocab_size, (2, PROMPT)).to(device)

    def generate(kind: type[StaticCache]) -> tuple[Tensor, float]:
        """Returns the tokens, and the milliseconds of one reordering (median)."""
        taken = []

        class Timed(kind):  # type: ignore[misc, valid-type]
            def reorder_cache(self, beam_idx: Tensor) -> None:
                begin = now()
                super().reorder_cache(beam_idx)
                taken.append(now() - begin)

        tokens = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            cache=Timed(config=model.config, max_cache_len=MAX_TOKENS),
            num_beams=BEAMS,
            max_new_tokens=GENERATED,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            disable_compile=True,
        )
        return tokens, statistics.median(taken)

    expected, anew = generate(StaticCache)
    tokens, in_place = generate(InPlaceCache)
    if not torch.equal(tokens, expected):
        raise AssertionError(f"other tokens than with transformers' own cache:\n{tokens}\n{expected}")
    print(f"{len(prompts)} prompts, {BEAMS} beams, {GENERATED} tokens generated: the same as with transformers' cache")
    print(f"one reordering, room for {MAX_TOKENS} tokens: {in_place:.2f} ms in place, {anew:.2f} ms by transformers")


if __name__ == "__main__":
    main()
