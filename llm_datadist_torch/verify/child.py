# SPDX-License-Identifier: Apache-2.0
"""The process that runs checks, one after another: ``python -m llm_datadist_torch.verify.child FD DEVICE NAME...``.

For each check it writes two lines to the file descriptor FD: the name before it runs, and a JSON object with the verdict
after it. It ends after the first check that does not hold: on an NPU, an error can leave torch_npu's task queue unusable.
"""

import json
import os
import sys
import time
from typing import TextIO

import torch

from .registry import Check, DoesNotHold, NotTried, all_checks
from .verdict import Verdict


def verdict_of(check: Check, device: torch.device) -> tuple[Verdict, str]:
    """Runs a check. Returns the verdict, and what was measured or found."""
    try:
        return Verdict.HOLDS, check.run(device)
    except NotTried as reason:
        return Verdict.NOT_TRIED, str(reason)
    except DoesNotHold as found:
        return Verdict.DOES_NOT_HOLD, str(found)
    except Exception as error:  # any error means that the assumption does not hold
        return Verdict.DOES_NOT_HOLD, f"{type(error).__name__}: {error}"


def main(device_name: str, names: list[str], results: TextIO) -> None:
    device, checks = torch.device(device_name), all_checks()
    if device.type == "npu":
        torch.get_device_module(device).set_device(device)
    for name in names:
        print(name, file=results, flush=True)
        begin = time.monotonic()
        verdict, detail = verdict_of(checks[name], device)
        line = {"verdict": verdict, "detail": detail, "seconds": round(time.monotonic() - begin, 3)}
        print(json.dumps(line), file=results, flush=True)
        if verdict is Verdict.DOES_NOT_HOLD:
            break


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[1]), "w") as pipe:
        main(sys.argv[2], sys.argv[3:], pipe)
    os._exit(0)  # after a failure, torch_npu may wait for its device for ever
