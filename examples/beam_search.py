# SPDX-License-Identifier: Apache-2.0
"""Beam search in transformers, with the KV cache reordered in place by one call for all layers.

After each step a beam goes on from the cache of another beam: the new row i is the old row beam_idx[i], which is any
mapping, cycles and all. transformers makes a whole new cache for that. Here copy_cache_batch moves the rows that
change within the cache that is there, and of those only the tokens seen so far. The cache stays where it is, as a
compiled or captured model needs it to.

The script checks that the generated tokens are those of transformers' own cache, and prints what was moved. The model
is transformers' LlamaForCausalLM with random weights, so nothing is downloaded.

    pip install transformers
    python examples/beam_search.py    # on the NPU where there is one
"""

import argparse

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

import llm_datadist_torch  # noqa: F401  (registers torch.ops.llm_datadist)

BEAMS, PROMPT, GENERATED = 4, 16, 48


class InPlaceCache(StaticCache):
    """transformers' static cache, reordered where it lies."""

    moved = made_anew = 0  # bytes: by the op, and by what it stands in for

    def reorder_cache(self, beam_idx: Tensor) -> None:
        # [batch, heads, tokens, head_dim]. With the heads before the batch (a view), each head counts as a tensor by
        # itself, whose rows begin with the tokens seen: one range of bytes.
        tensors = [t.transpose(0, 1) for layer in self.layers for t in (layer.keys, layer.values)]
        size = int(self.get_seq_length()) * tensors[0].shape[-1] * tensors[0].element_size()
        copies = torch.tensor([(to, of, 0, size) for to, of in enumerate(beam_idx.tolist())])
        torch.ops.llm_datadist.copy_cache_batch(tensors, tensors, copies, batch_dim=1)

        changed = int((copies[:, 0] != copies[:, 1]).sum())
        self.moved += changed * size * tensors[0].shape[0] * len(tensors)
        self.made_anew += sum(tensor.nbytes for tensor in tensors)


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

    def generate(cache: StaticCache) -> Tensor:
        return model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            cache=cache,
            num_beams=BEAMS,
            max_new_tokens=GENERATED,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            disable_compile=True,
        )

    expected = generate(StaticCache(config=model.config, max_cache_len=PROMPT + GENERATED))
    cache = InPlaceCache(config=model.config, max_cache_len=PROMPT + GENERATED)
    tokens = generate(cache)
    if not torch.equal(tokens, expected):
        raise AssertionError(f"other tokens than with transformers' own cache:\n{tokens}\n{expected}")
    if not cache.moved:
        raise AssertionError("no beam ever changed its place: nothing was shown")
    print(f"{len(prompts)} prompts, {BEAMS} beams, {GENERATED} tokens generated: the same as with transformers' cache")
    print(f"reordering moved {cache.moved / 2**20:.1f} MiB in place, instead of {cache.made_anew / 2**20:.1f} MiB anew")


if __name__ == "__main__":
    main()
