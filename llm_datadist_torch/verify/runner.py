# SPDX-License-Identifier: Apache-2.0
"""Runs checks in processes of their own: a crash or a hang is the verdict of one check, and the others go on."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from .memory import VARIABLE
from .registry import Check
from .verdict import Result, Verdict


class Child:
    """A process that runs checks on a device, in order, until one does not hold.

    Args:
        device: The name of the device.
        names: The checks.
        memory: The most GiB that a check may use, or None for what is free.
    """

    def __init__(self, device: str, names: list[str], memory: float | None) -> None:
        self._printed = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed by end
        read, write = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.child", str(write), device, *names],
            pass_fds=[write],
            stdout=self._printed,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, **({} if memory is None else {VARIABLE: str(memory)})),
        )
        os.close(write)
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=(read,), daemon=True).start()

    def line(self, seconds: float) -> str:
        """The next line, or an empty text if the process has ended. Raises queue.Empty after so many seconds."""
        return self._lines.get(timeout=seconds)

    def end(self, patience: float) -> str:
        """Ends the process, by force after so many seconds. Returns its exit status and its last lines."""
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._printed.seek(0)
        printed = [line for line in self._printed.read().splitlines() if line.strip()]
        self._printed.close()
        return f"exit status {self._process.returncode}; " + (" | ".join(printed[-3:]) or "no message")

    def _read(self, pipe: int) -> None:
        with os.fdopen(pipe) as lines:
            for line in lines:
                self._lines.put(line.strip())
        self._lines.put("")


def run(checks: list[Check], device: str, *, deadline: float, memory: float | None) -> Iterator[Result]:
    """Runs checks on a device.

    Args:
        checks: The checks, in order.
        device: The name of the device.
        deadline: The seconds after which a check that has not ended is a check that does not hold.
        memory: The most GiB that a check may use, or None for what is free.

    Yields:
        A result for each check, in order.
    """
    left = list(checks)
    while left:
        child = Child(device, [check.name for check in left], memory)
        while left:
            begin = time.monotonic()
            outcome = _outcome(child, deadline)
            if outcome is None:
                verdict, detail, seconds = Verdict.DOES_NOT_HOLD, "", time.monotonic() - begin
            else:
                verdict, detail, seconds = Verdict(outcome["verdict"]), outcome["detail"], outcome["seconds"]
            ended = verdict is Verdict.DOES_NOT_HOLD or len(left) == 1
            if ended:
                late = outcome is None and seconds >= deadline
                status = child.end(patience=0 if late else 30)
                if outcome is None:
                    detail = f"no result after {seconds:.0f} s; {status}" if late else f"the process ended: {status}"
            check = left.pop(0)
            yield Result(check.name, device, check.assumes, check.used_by, verdict, detail, seconds)
            if ended:
                break


def _outcome(child: Child, deadline: float) -> dict[str, Any] | None:
    """What the child says of its next check, or None if it ended or is late. The first check includes its start."""
    try:
        if child.line(deadline) == "":
            return None
        text = child.line(deadline)
    except queue.Empty:
        return None
    outcome: dict[str, Any] | None = json.loads(text) if text else None
    return outcome
