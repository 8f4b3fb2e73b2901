# SPDX-License-Identifier: Apache-2.0
"""Errors and log lines of a call name its request, at the level that the environment asks for; the op logs nothing."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from utils import cache, filled

from llm_datadist_torch import Cache, CacheManager, LLMException, copy_cache

CODE = """
import logging, torch
from llm_datadist_torch import *
logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
cache = Cache.from_tensors(torch.zeros(4, 8))
CacheManager().copy_cache(cache, cache, 1, req_id=77)
try:
    CacheManager().copy_cache(cache, cache, 4, req_id=78)
except LLMException:
    pass
"""
DEBUG = "LLM_DATADIST DEBUG copy_cache: cache -1 row 0 to cache -1 row 1, offset 0, size -1 (req_id 77)\n"
ERROR = (
    "LLM_DATADIST ERROR copy_cache: dst_batch_index (4) out of range [0, 4), the batch of dst[0] (req_id 78) "
    "[LLM_PARAM_INVALID]\n"
)


@pytest.mark.parametrize(("level", "lines"), [("0", DEBUG + ERROR), ("1", ERROR), ("3", ERROR)])
def test_level_is_that_of_the_environment(level: str, lines: str) -> None:
    env = {**os.environ, "ASCEND_GLOBAL_LOG_LEVEL": level}
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True, timeout=120)
    logged = [line for line in done.stderr.splitlines(keepends=True) if line.startswith("LLM_DATADIST")]
    assert "".join(logged) == lines, done.stderr


def blocks() -> Cache:
    return Cache.from_tensors(filled(4, 8), is_blocks_cache=True)


@pytest.mark.parametrize(
    "call",
    [
        lambda manager, held: manager.copy_cache(held, held, 4, req_id=77),
        lambda manager, held: manager.copy_cache(blocks(), held, req_id=77),
        lambda manager, held: manager.copy_cache(held, held, offset=2**63, req_id=77),
    ],
    ids=["refused by the op", "blocks cache", "offset beyond int64"],
)
def test_one_line_with_the_error_and_the_request(call: Callable, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(LLMException, match=r"\(req_id 77\)") as error:
        call(CacheManager(), Cache.from_tensors(filled(4, 8)))
    assert [(r.name, r.levelno, r.getMessage()) for r in caplog.records] == [
        ("LLM_DATADIST", logging.ERROR, str(error.value))
    ]


def test_the_op_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        copy_cache(cache(2, 4, 8), cache(2, 4, 8, seed=1), 1, 2, req_id=77)
        with pytest.raises(ValueError, match=r"\(req_id 77\)"):
            copy_cache(cache(2, 4, 8), cache(2, 4, 8), 4, req_id=77)
    assert not caplog.records
