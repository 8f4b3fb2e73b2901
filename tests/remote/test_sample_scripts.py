# SPDX-License-Identifier: Apache-2.0
"""Scripts of several processes, written for LLM-DataDist, run with nothing changed but the package that they import."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fresh_process import run_code
from utils import free_port, ported

FOLDER = Path(__file__).parent / "llm_datadist_scripts"
PROCESSES = {"push_and_switch": 2, "pull_cache_and_restart": 2, "link_by_rank_table": 3}


def test_every_script_is_run() -> None:
    assert {script.stem for script in FOLDER.glob("*.py")} == set(PROCESSES)


@pytest.mark.slow
@pytest.mark.parametrize("script", PROCESSES)
def test_only_the_import_changes(script: str, device: str) -> None:
    count = PROCESSES[script]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common["LISTEN_PORTS"] = ",".join(str(free_port()) for _ in range(2))
    common["LLM_DATADIST_LINK_PORT"] = str(free_port())
    code = ported(FOLDER / f"{script}.py")
    with ThreadPoolExecutor(count) as pool:
        done = list(pool.map(lambda rank: run_code(code, **common, RANK=str(rank)), range(count)))
    assert [one.stdout.splitlines()[-1:] for one in done] == [["done"]] * count
