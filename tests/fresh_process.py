# SPDX-License-Identifier: Apache-2.0
"""Python code in a process of its own.

The process is forked from one that has imported torch, and nothing of this package: a start takes a tenth of a second,
instead of the seconds that `python -c "import torch"` takes.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(["torch"])


def _main(code: str, environment: dict[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
    exec(code, {"__name__": "__main__"})


def run_code(code: str, exit_code: int = 0, **env: str | None) -> CompletedProcess[str]:
    """Runs Python code to its end and checks the exit code of its process.

    Args:
        code: The code. It can import the helpers of the tests.
        exit_code: The expected exit code.
        env: Environment variables to set, or to remove where the value is None. A variable that torch reads when it is
            imported has no effect.
    """
    environment = {name: value for name, value in {**os.environ, **env}.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        process = forked.Process(target=_main, args=(code, environment, folder))
        process.start()
        process.join(120)
        process.kill()  # where it hangs
        process.join()
        printed = [(Path(folder) / name).read_text() for name in ("stdout", "stderr")]
    assert process.exitcode == exit_code, "".join(printed)
    return CompletedProcess(["python"], exit_code, *printed)
