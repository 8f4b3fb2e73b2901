# SPDX-License-Identifier: Apache-2.0
"""The logger, with the name and the level switch that users of LLM-DataDist know, and what it says of errors."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from .status import LLMException

_LEVELS = {"0": logging.DEBUG, "1": logging.INFO, "2": logging.WARNING, "3": logging.ERROR}

logger = logging.getLogger("LLM_DATADIST")
if (_level := os.environ.get("ASCEND_GLOBAL_LOG_LEVEL")) in _LEVELS:
    logger.setLevel(_LEVELS[_level])
# Who sets the level wants to see the lines, also in a program that has not set up logging. Where it has, they go there.
_to_stderr = logging.StreamHandler()
_to_stderr.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))


def _not_set_up(_: logging.LogRecord) -> bool:
    _to_stderr.stream = sys.stderr  # the one of the moment: that of the import may be closed
    return not logging.getLogger().handlers and logger.handlers == [_to_stderr]


_to_stderr.addFilter(_not_set_up)
logger.addHandler(_to_stderr)


@contextlib.contextmanager
def reporting(call: str, req_id: Any = None) -> Iterator[None]:
    """Names the call and its request in each error that leaves it, and logs those with a status code."""
    try:
        yield
    except (TypeError, ValueError, LLMException) as error:
        text, request = str(error.args[0]), f" (req_id {req_id})"
        if not text.startswith(f"{call}: "):
            text = f"{call}: {text}"
        if type(req_id) is int and request not in text:
            text += request
        error.args = (text, *error.args[1:])
        if isinstance(error, LLMException):
            # The text: a handler that keeps records would keep the error, its traceback, and so the caches in it.
            logger.error("%s", str(error))
        raise
