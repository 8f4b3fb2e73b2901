# SPDX-License-Identifier: Apache-2.0
"""Prefix sharing on a real decoder: prefill a shared prompt prefix once, copy its keys and values to every request.

All requests of a batch begin with the same tokens (a system prompt, say). Two ways to fill the KV cache:

    prefill everything       every request computes its whole prompt
    prefill once and copy    row 0 computes the prefix, copy_tokens copies it to the other rows, and each request
                             computes no more than its own suffix

All requests are then decoded greedily. The script checks that the logits of every request at every step are those of
computing it from scratch, and prints what was saved, eager and with torch.compile. The model is transformers'
LlamaForCausalLM with random weights, so nothing is downloaded.

    pip install transformers
    python examples/prefix_sharing.py            # eager and compiled
    python examples/prefix_sharing.py --eager    # without torch.compile: a few seconds
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import Cache, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import StaticLayer

from llm_datadist_torch import copy_tokens

# The keys and the values of each layer, [requests, heads, max_tokens, head_dim] as transformers lays them out: a
# request is a row. All are contiguous tensors and inputs of the compiled graphs, which so update them in place.
KV = list[tuple[Tensor, Tensor]]
Decoded = tuple[Tensor, Tensor]  # tokens [requests, n], and the logits each was taken from [requests, n, vocabulary]

# Both ways compute the same in float32, but matrix products of other batch sizes, and compiled kernels, may add in
# another order: some 1e-6 for logits of order 1. A prefix that is not the right one shows as 1e-1.
TOLERANCE = 1e-5


class GivenLayer(StaticLayer):
    """transformers' static cache layer, over tensors that it is given and that hold `seen` tokens already."""

    def __init__(self, keys: Tensor, values: Tensor, seen: int) -> None:
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values, self.device = keys, values, keys.device
        self.cumulative_length = torch.full((), seen, device=keys.device)
        self.is_initialized = True


class Decoder:
    """A model with a KV cache outside it. With a `backend` it is compiled; fullgraph=True raises at a graph break."""

    def __init__(self, model: LlamaForCausalLM, backend: str = "", copy: Callable[..., None] = copy_tokens) -> None:
        self.model, self.copy = model, copy
        for step in ("forward", "copy_prefix", "copy_and_forward") if backend else ():
            setattr(self, step, torch.compile(getattr(self, step), fullgraph=True, dynamic=False, backend=backend))

    def forward(self, kv: KV, tokens: Tensor, seen: int) -> Tensor:
        """Runs tokens [requests, n], which follow the `seen` ones in kv, and adds them. Returns the last logits."""
        cache = Cache(layers=[GivenLayer(keys, values, seen) for keys, values in kv])
        return self.model(tokens, cache=cache, use_cache=True, logits_to_keep=1).logits[:, -1]

    def copy_prefix(self, kv: KV, prefix: int) -> None:
        """Copies the first `prefix` tokens of row 0 to every other row, in all layers."""
        tensors = [t for layer in kv for t in layer]
        pairs = [(0, row) for row in range(1, len(tensors[0]))]
        self.copy(tensors, tensors, pairs, slice(prefix), token_dim=2)

    def copy_and_forward(self, kv: KV, suffixes: Tensor, prefix: int) -> Tensor:
        """Compiled, the copies and the forward pass that reads and extends what they wrote are one graph."""
        self.copy_prefix(kv, prefix)
        return self.forward(kv, suffixes, prefix)

    def prefill_everything(self, kv: KV, prompts: Tensor) -> Tensor:
        return self.forward(kv, prompts, 0)

    def prefill_once_and_copy(self, kv: KV, prompts: Tensor, prefix: int) -> Tensor:
        row_0 = [(keys[:1], values[:1]) for keys, values in kv]
        self.forward(row_0, prompts[:1, :prefix], 0)  # batch size 1: this is where the work is saved
        return self.copy_and_forward(kv, prompts[:, prefix:], prefix)

    def decode(self, kv: KV, logits: Tensor, seen: int, count: int) -> Decoded:
        """Decodes greedily from the logits of a prefill. No different after either prefill, so never compiled here."""
        steps = [logits]
        for position in range(seen, seen + count - 1):
            steps.append(Decoder.forward(self, kv, steps[-1].argmax(-1, keepdim=True), position))
        return torch.stack(steps, dim=1).argmax(-1), torch.stack(steps, dim=1)

    def decode_without_cache(self, prompts: Tensor, tokens: Tensor) -> Decoded:
        """What `decode` must return, from one pass over the finished requests that has no KV cache at all."""
        sequences = torch.cat([prompts, tokens[:, :-1]], dim=1)
        logits = self.model(sequences, use_cache=False, logits_to_keep=tokens.shape[1]).logits
        return logits.argmax(-1), logits


def used_cache(model: LlamaForCausalLM, requests: int, max_tokens: int) -> KV:
    """A cache with something in it, as after earlier requests: a copy that is missing or goes too far then shows."""
    shape = (requests, model.config.num_key_value_heads, max_tokens, model.config.head_dim)
    return [(torch.randn(shape).to(model.device), torch.randn(shape).to(model.device)) for _ in model.model.layers]


def check_copy(decoder: Decoder, kv: KV, prefix: int) -> int:
    """Checks to the bit that all rows get the prefix of row 0 and nothing else changes. Returns the bytes copied."""
    expected = [tensor.clone() for layer in kv for tensor in layer]
    for tensor in expected:
        tensor[1:, :, :prefix] = tensor[:1, :, :prefix]
    decoder.copy_prefix(kv, prefix)
    for tensor, wanted in zip((tensor for layer in kv for tensor in layer), expected, strict=True):
        if not torch.equal(tensor.view(torch.uint8), wanted.view(torch.uint8)):
            raise AssertionError("a row has not got the prefix of row 0, or a byte elsewhere has changed")
    return sum(tensor[1:, :, :prefix].nbytes for tensor in expected)


def check_decoded(actual: Decoded, expected: Decoded) -> float:
    """Checks that the logits are equal within TOLERANCE and the tokens exactly. Returns the largest difference."""
    torch.testing.assert_close(actual[1], expected[1], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(actual[0], expected[0], atol=0, rtol=0)
    return (actual[1] - expected[1]).abs().max().item()


def median_ms(repeats: int, *functions: Callable[[], object]) -> list[float]:
    """The median time of each function after a first call. They take turns, so that noise hits all of them."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats + 1):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            taken.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(taken[1:]) for taken in times]


def parse_arguments() -> argparse.Namespace:
    npu = hasattr(torch, "npu") and torch.npu.is_available()
    parser = argparse.ArgumentParser(description="Prefix sharing with copy_cache, against prefilling everything.")
    parser.add_argument("--device", default="npu" if npu else "cpu", help="default: %(default)s")
    parser.add_argument("--eager", action="store_true", help="leave torch.compile out")
    parser.add_argument("--backend", default="inductor", help="of torch.compile; default: %(default)s")
    for name, default in {"requests": 8, "prefix": 512, "suffix": 32, "decode": 32, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    return parser.parse_args()


def make_model(device: str, max_tokens: int) -> LlamaForCausalLM:
    sizes = {"vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1408, "max_position_embeddings": max_tokens}
    config = LlamaConfig(num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=8, **sizes)
    return LlamaForCausalLM(config).eval().to(device)


@torch.no_grad()
def main() -> None:
    args = parse_arguments()
    requests, prefix, length = args.requests, args.prefix, args.prefix + args.suffix
    total, computed = requests * length, prefix + requests * args.suffix
    print(f"{requests} requests on {args.device}: prompts of {prefix} shared and {args.suffix} own tokens")
    own = -(-args.suffix * 24 // args.prefix)  # 24 characters for the prefix
    print("  █ computed  ░ copied")
    for row in range(requests):
        print(f"  row {row}  {('░' if row else '█') * 24}{'█' * own}")
    print(f"{'':8}{'prefill everything':>24}{'prefill once and copy':>26}{'faster':>8}   of which copies", flush=True)

    torch.manual_seed(0)
    model = make_model(args.device, length + args.decode)
    prompts = torch.randint(model.config.vocab_size, (requests, length), device=args.device)
    prompts[:, :prefix] = prompts[0, :prefix]
    kv = used_cache(model, requests, length + args.decode)

    eager = Decoder(model)
    expected = eager.decode(kv, eager.prefill_everything(kv, prompts), length, args.decode)
    difference = check_decoded(expected, eager.decode_without_cache(prompts, expected[0]))

    ratios = []
    for mode in ("eager",) if args.eager else ("eager", "compiled"):
        decoder = Decoder(model, backend=args.backend if mode == "compiled" else "")
        copied = check_copy(decoder, used_cache(model, requests, length + args.decode), prefix)
        kv = used_cache(model, requests, length + args.decode)
        decoded = decoder.decode(kv, decoder.prefill_once_and_copy(kv, prompts, prefix), length, args.decode)
        difference = max(difference, check_decoded(decoded, expected))
        everything, once, copies = median_ms(
            args.repeats,
            lambda: decoder.prefill_everything(kv, prompts),  # noqa: B023
            lambda: decoder.prefill_once_and_copy(kv, prompts, prefix),  # noqa: B023
            lambda: decoder.copy_prefix(kv, prefix),  # noqa: B023
        )
        faster = f"{everything / once:.1f}x"
        ratios.append(f"{faster} ({mode})")
        ways = f"{total:8} tokens {everything:6.0f} ms{computed:10} tokens {once:6.0f} ms"
        print(f"{mode:8}{ways}{faster:>8}   {copied / 2**20:.1f} MiB in {copies:.2f} ms", flush=True)
    print(f"OK: logits equal (max abs diff {difference:.1e}); prefill {' and '.join(ratios)} faster,", end=" ")
    print(f"{total - computed} of {total} prompt tokens not computed again")


if __name__ == "__main__":
    sys.exit(main())
