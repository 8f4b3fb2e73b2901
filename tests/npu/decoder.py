# SPDX-License-Identifier: Apache-2.0
"""A Llama decoder with a KV cache, on any device, and a decoding step for it that needs copy_cache."""

from copy import deepcopy

import torch
from torch import Tensor
from transformers import Cache, LlamaForCausalLM
from utils import copy_cache, load_example

prefix_sharing = load_example("prefix_sharing")

REQUESTS, MAX_TOKENS = 3, 64


def make_models() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """The same one on the CPU and on the NPU."""
    torch.manual_seed(0)
    model = prefix_sharing.make_model("cpu", MAX_TOKENS).requires_grad_(False)
    return model, deepcopy(model).to("npu")


def make_caches(model: LlamaForCausalLM) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """The same ones on the CPU and on the NPU, with something in them."""
    kv = prefix_sharing.used_cache(model, REQUESTS, MAX_TOKENS)
    return kv, [(keys.npu(), values.npu()) for keys, values in kv]


class Fork:
    """Greedy decoding with alternatives: in each step every request goes on from the cache of request 0, with the
    first, second and third best token after it.

    All that changes is on the device, so that a captured step goes on by itself. The copies of a step read what the
    step before has written, and its attention reads what they have written.
    """

    def __init__(self, model: LlamaForCausalLM, kv: list[tuple[Tensor, Tensor]], seen: int) -> None:
        self.model, self.kv = model, kv
        self.cache = Cache(layers=[prefix_sharing.GivenLayer(keys, values, seen) for keys, values in kv])
        self.tokens = torch.zeros(REQUESTS, 1, dtype=torch.int64).to(model.device)
        self.logits = torch.zeros(REQUESTS, model.config.vocab_size).to(model.device)

    def step(self) -> None:
        tensors = [tensor for layer in self.kv for tensor in layer]
        for row in range(1, REQUESTS):
            copy_cache(tensors, tensors, row, 0)
        self.logits.copy_(self.model(self.tokens, cache=self.cache, use_cache=True, logits_to_keep=1).logits[:, -1])
        self.tokens.copy_(self.logits[0].topk(REQUESTS).indices[:, None])

    def state(self) -> list[Tensor]:
        """All that a step writes, in host memory. Waits for it."""
        return [tensor.cpu() for tensor in (self.logits, *(tensor for layer in self.kv for tensor in layer))]

    def fixed(self) -> list[Tensor]:
        """The tensors that a compiled step is handed at the same address each time."""
        lengths = [layer.cumulative_length for layer in self.cache.layers]
        cache = [tensor for layer in self.kv for tensor in layer]
        return [*self.model.parameters(), *self.model.buffers(), *cache, *lengths, self.tokens, self.logits]
