# SPDX-License-Identifier: Apache-2.0
"""Log lines and errors: level, format, the request they name. The op logs nothing."""

import logging
import re
from collections.abc import Callable

import pytest
from fresh_process import run_code
from utils import cache, filled

from llm_datadist_torch import Cache, CacheManager, LLMException, copy_cache

CODE = """
import logging, sys, torch
{before}
from llm_datadist_torch import *
{after}
cache = Cache.from_tensors(torch.zeros(4, 8))
CacheManager().copy_cache(cache, cache, 1, req_id=77)
CacheManager().allocate_cache(CacheDesc(1, (4, 8), DataType.DT_FLOAT, Placement.HOST))
LLMConfig.from_options({{"llm.BufPoolCfg": "x"}}).buf_pool_cfg = "x"
try:
    CacheManager().copy_cache(cache, cache, 4, req_id=78)
except LLMException:
    pass
"""
LINES = [
    "DEBUG copy_cache: cache -1 row 0 to cache -1 row 1, offset 0, size -1 (req_id 77)",
    "INFO allocated Cache(cache_id=1, ",
    "WARNING buf_pool_cfg (option llm.BufPoolCfg) has no effect here",
    "ERROR copy_cache: dst_batch_index (4) out of range [0, 4), the batch of dst[0] (req_id 78) [LLM_PARAM_INVALID]",
]
ALREADY_DEBUG = 'logging.getLogger("LLM_DATADIST").setLevel(logging.DEBUG)'
PROGRAM = 'logging.basicConfig(format="PROGRAM %(name)s %(levelname)s %(message)s")'
ITS_HANDLER = """
handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("PROGRAM %(name)s %(levelname)s %(message)s"))
logging.getLogger("LLM_DATADIST").addHandler(handler)
"""
OURS = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


@pytest.mark.parametrize(
    ("level", "before", "after", "lines", "start"),
    [
        *((str(level), "", "", LINES[level:], OURS) for level in range(4)),
        *((level, "", "", LINES[2:], OURS) for level in (None, "x")),
        (None, ALREADY_DEBUG, "", LINES, OURS),
        *(("0", "", after, LINES, "PROGRAM") for after in (PROGRAM, ITS_HANDLER)),
        ("0", PROGRAM, "", LINES, "PROGRAM"),
        (None, "", PROGRAM, LINES[2:], "PROGRAM"),
        ("0", "", "sys.stderr.close(); sys.stderr = sys.stdout", LINES, OURS),
    ],
)
def test_each_line_is_printed_once(level: str | None, before: str, after: str, lines: list[str], start: str) -> None:
    """At the level of ASCEND_GLOBAL_LOG_LEVEL, if that is set, and with or without logging set up by the program."""
    done = run_code(CODE.format(before=before, after=after), ASCEND_GLOBAL_LOG_LEVEL=level)
    printed = [line for line in (done.stdout + done.stderr).splitlines() if re.search("LLM_DATADIST|req_id", line)]
    assert len(printed) == len(lines), done.stdout + done.stderr
    for actual, line in zip(printed, lines, strict=True):
        assert re.match(f"{start} LLM_DATADIST {re.escape(line)}", actual), actual


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
def test_an_error_is_one_line_with_the_request(call: Callable, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(LLMException, match=r"\(req_id 77\)") as error:
        call(CacheManager(), Cache.from_tensors(filled(4, 8)))
    assert [(r.name, r.levelno, r.getMessage()) for r in caplog.records] == [
        ("LLM_DATADIST", logging.ERROR, str(error.value))
    ]


def test_the_op_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(ValueError, match=r"\(req_id 77\)"):
        for row in (1, 4):
            copy_cache(cache(2, 4, 8), cache(2, 4, 8, seed=1), row, 2, req_id=77)
    assert not caplog.records
