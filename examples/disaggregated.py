# SPDX-License-Identifier: Apache-2.0
"""Disaggregated serving on a real decoder: prompts are prefilled in some processes, and decoded in others.

Two prompt processes prefill requests, each into a cache with the key of its request. Two decoders pull each request into a
cache of batch 1, and copy_cache moves it into a row of the running batch. They decode their rows together, greedily.

The script checks that the logits of every request at every step are those of one process that does it all, and prints the
time and the bytes. The model is transformers' LlamaForCausalLM with random weights, so nothing is downloaded.

    pip install transformers 'llm_datadist_torch[remote]'
    python examples/disaggregated.py
"""

import argparse
import contextlib
import multiprocessing
import random
import socket
import statistics
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from prefix_sharing import KV, TOLERANCE, Decoded, Decoder, make_model
from torch import Tensor

from llm_datadist_torch import (
    Cache,
    CacheDesc,
    CacheKey,
    CacheManager,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMRole,
    LLMStatusCode,
    Placement,
)

PROMPT_PROCESSES, DECODERS = 2, 2


@dataclass(frozen=True)
class Sizes:
    """What all processes agree on."""

    device: str
    requests: int
    prompt: int
    decode: int

    @property
    def max_tokens(self) -> int:
        return self.prompt + self.decode

    def model(self) -> Decoder:
        """The same model in every process: its weights come from the seed."""
        torch.manual_seed(0)
        torch.set_num_threads(1)
        return Decoder(make_model(self.device, self.max_tokens))

    def prompts(self, decoder: Decoder) -> Tensor:
        torch.manual_seed(1)
        return torch.randint(decoder.model.config.vocab_size, (self.requests, self.prompt)).to(self.device)

    def desc(self, decoder: Decoder, batch: int) -> CacheDesc:
        """The keys and the values of each layer, [batch, heads, max_tokens, head_dim]: a request is a row."""
        config = decoder.model.config
        shape = (batch, config.num_key_value_heads, self.max_tokens, config.head_dim)
        return CacheDesc(2 * config.num_hidden_layers, shape, DataType.DT_FLOAT, Placement.DEVICE)


def layers_of(cache: Cache) -> KV:
    """A cache as the model takes it."""
    tensors = cache.unstacked
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def start_datadist(role: LLMRole, cluster_id: int, listen: str = "") -> LLMDataDist:
    config = LLMConfig()
    config.enable_cache_manager = True
    config.sync_kv_timeout = 20_000
    config.listen_ip_info = listen
    datadist = LLMDataDist(role, cluster_id)
    datadist.init(config.generate_options())
    return datadist


def prompt_process(main: Connection, sizes: Sizes, number: int, port: int) -> None:
    """Prefills every request that is its turn. Sends the first logits, which the decoder of the request continues."""
    datadist = start_datadist(LLMRole.PROMPT, number, f"127.0.0.1:{port}")
    manager, decoder = datadist.cache_manager, sizes.model()
    prompts = sizes.prompts(decoder)
    with torch.no_grad():
        for request in range(number, sizes.requests, PROMPT_PROCESSES):
            cache = manager.allocate_cache(sizes.desc(decoder, 1), [CacheKey(number, request)])
            for tensor in cache.tensors:
                tensor.zero_()  # the attention multiplies tokens to come by 0, and 0 times an uninitialised NaN is NaN
            logits = decoder.forward(layers_of(cache), prompts[request : request + 1], 0)
            manager.deallocate_cache(cache)  # lives on until it has been pulled
            main.send((request, logits.cpu().numpy()))
    main.recv()
    datadist.finalize()


def pull_into_row(manager: CacheManager, request_cache: Cache, batch: Cache, request: int, row: int) -> float:
    """Pulls a request and moves it into a row of the running batch. Returns the seconds of the pull."""
    begin = time.perf_counter()
    manager.pull_cache(CacheKey(request % PROMPT_PROCESSES, request), request_cache)
    seconds = time.perf_counter() - begin
    manager.copy_cache(batch, request_cache, row, 0, req_id=request)
    return seconds


def decoder_process(main: Connection, sizes: Sizes, number: int, ports: list[int]) -> None:
    """Decodes the requests whose turn it is, in one batch."""
    datadist = start_datadist(LLMRole.DECODER, PROMPT_PROCESSES + number)
    clusters = []
    for cluster_id, port in enumerate(ports):
        cluster = LLMClusterInfo()
        cluster.remote_cluster_id = cluster_id
        cluster.append_remote_ip_info("127.0.0.1", port)
        clusters.append(cluster)
    status, each = datadist.link_clusters(clusters, 10_000)
    if status is not LLMStatusCode.LLM_SUCCESS:
        raise RuntimeError(f"link_clusters: {each}")
    manager, decoder = datadist.cache_manager, sizes.model()
    requests = list(range(number, sizes.requests, DECODERS))
    batch = manager.allocate_cache(sizes.desc(decoder, len(requests)))
    request_cache = manager.allocate_cache(sizes.desc(decoder, 1))
    for tensor in (*batch.tensors, *request_cache.tensors):
        tensor.fill_(torch.nan)  # as after earlier requests: what is not pulled shows
    main.send(None)
    logits = main.recv()  # of the prefill, by request
    seconds = [pull_into_row(manager, request_cache, batch, request, row) for row, request in enumerate(requests)]
    first = torch.cat([torch.from_numpy(logits[request]) for request in requests]).to(sizes.device)
    with torch.no_grad():
        tokens, steps = decoder.decode(layers_of(batch), first, sizes.prompt, sizes.decode)
    moved = request_cache.cache_desc.num_tensors * request_cache.cache_desc.size
    main.send((requests, (tokens.cpu().numpy(), steps.cpu().numpy()), seconds, moved))
    status, _ = datadist.unlink_clusters(clusters)
    datadist.finalize()


def check(actual: Decoded, expected: Decoded, requests: list[int]) -> float:
    """Checks that the logits are equal within TOLERANCE, and the tokens exactly. Returns the largest difference."""
    torch.testing.assert_close(actual[1], expected[1][requests], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(actual[0], expected[0][requests], atol=0, rtol=0)
    return (actual[1] - expected[1][requests]).abs().max().item()


def in_one_process(sizes: Sizes) -> Decoded:
    """What all of them must come to."""
    decoder = sizes.model()
    desc, prompts = sizes.desc(decoder, sizes.requests), sizes.prompts(decoder)
    kv = [
        (torch.zeros(desc.dims, device=sizes.device), torch.zeros(desc.dims, device=sizes.device))
        for _ in range(desc.num_tensors // 2)
    ]
    with torch.no_grad():
        tokens, steps = decoder.decode(kv, decoder.prefill_everything(kv, prompts), sizes.prompt, sizes.decode)
    return tokens.cpu(), steps.cpu()


def free_port() -> int:
    """Below the ports that the system gives to sockets without one, of which one could take it before it is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def parse_arguments() -> Sizes:
    npu = hasattr(torch, "npu") and torch.npu.is_available()
    parser = argparse.ArgumentParser(description="Prefill in two processes, decode in two others.")
    parser.add_argument("--device", default="npu" if npu else "cpu", help="default: %(default)s")
    for name, default in {"requests": 8, "prompt": 256, "decode": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    return Sizes(**vars(parser.parse_args()))


def main() -> None:
    sizes = parse_arguments()
    context = multiprocessing.get_context("spawn")
    ports = [free_port() for _ in range(PROMPT_PROCESSES)]

    def spawn(target, number: int, *args) -> Connection:  # type: ignore[no-untyped-def]
        mine, theirs = context.Pipe()
        context.Process(target=target, args=(theirs, sizes, number, *args), daemon=True).start()
        return mine

    prompts = [spawn(prompt_process, number, port) for number, port in enumerate(ports)]
    logits = dict(
        connection.recv()
        for number, connection in enumerate(prompts)
        for _ in range(number, sizes.requests, PROMPT_PROCESSES)
    )
    decoders = [spawn(decoder_process, number, ports) for number in range(DECODERS)]
    for connection in decoders:
        connection.recv()
    begin = time.perf_counter()
    for connection in decoders:
        connection.send(logits)
    results = [connection.recv() for connection in decoders]
    took = time.perf_counter() - begin
    for connection in prompts:
        connection.send(None)

    expected = in_one_process(sizes)
    decoded = {
        tuple(requests): (torch.from_numpy(tokens), torch.from_numpy(steps))
        for requests, (tokens, steps), *_ in results
    }
    difference = max(check(each, expected, list(requests)) for requests, each in decoded.items())
    pulls = [seconds for *_, each, _ in results for seconds in each]
    moved = results[0][3]
    print(
        f"{sizes.requests} requests of {sizes.prompt} tokens on {sizes.device}: {PROMPT_PROCESSES} prompt processes, {DECODERS} decoders"
    )
    print(f"each request: {moved / 2**20:.1f} MiB pulled in {statistics.median(pulls) * 1e3:.1f} ms (median)")
    print(
        f"{sizes.requests * moved / 2**20:.1f} MiB pulled, {sizes.requests * sizes.decode} tokens decoded in {took:.2f} s"
    )
    print(f"OK: logits equal those of one process (max abs diff {difference:.1e})")


if __name__ == "__main__":
    sys.exit(main())
