# SPDX-License-Identifier: Apache-2.0
"""Run by `make test-vllm` alone, which names this folder: pyproject.toml keeps other runs out of it."""

import importlib.util

collect_ignore = (
    ["npu"] if importlib.util.find_spec("torch_npu") is None else ["test_vllm_engine.py", "test_vllm_server.py"]
)
