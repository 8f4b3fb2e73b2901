# SPDX-License-Identifier: Apache-2.0
"""Scripts of several processes, written for LLM-DataDist, run with nothing changed but the package that they import."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from remote_utils import free_port

PROCESSES = {"pull_cache": 2, "pull_blocks_xpyd": 4, "push_and_switch": 2}
SCRIPTS = sorted((Path(__file__).parent / "llm_datadist_scripts").glob("*.py"))


def test_there_are_scripts() -> None:
    assert {script.stem for script in SCRIPTS} == set(PROCESSES)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_only_the_import_changes(script: Path, tmp_path: Path) -> None:
    code, imports = re.subn(r"^from llm_datadist\b", "from llm_datadist_torch", script.read_text(), flags=re.MULTILINE)
    assert imports == 1
    ported = tmp_path / script.name
    ported.write_text(code)
    count = PROCESSES[script.stem]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common["LISTEN_PORTS"] = ",".join(str(free_port()) for _ in range(2))
    logs = [tmp_path / f"{rank}.log" for rank in range(count)]
    running = [
        subprocess.Popen(
            [sys.executable, "-X", "faulthandler", ported],
            env={**os.environ, **common, "RANK": str(rank)},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    deadline = time.monotonic() + 120
    # One that fails leaves the others in a barrier: then there is nothing more to wait for.
    while time.monotonic() < deadline and {process.poll() for process in running} <= {None, 0}:
        if all(process.poll() == 0 for process in running):
            break
        time.sleep(0.05)
    for process in running:
        process.send_signal(signal.SIGABRT)  # prints where the threads of a process are that hangs
        process.wait()
    outputs = [log.read_text() for log in logs]
    assert all(output.splitlines()[-1:] == ["done"] for output in outputs), "\n\n".join(outputs)
