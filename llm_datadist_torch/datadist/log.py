# SPDX-License-Identifier: Apache-2.0
"""The logger, with LLM-DataDist's name and level switch, and the context of errors."""

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from .checks import as_int
from .status import LLMException, llm_error, message_of

_LEVELS = {"0": logging.DEBUG, "1": logging.INFO, "2": logging.WARNING, "3": logging.ERROR}

logger = logging.getLogger("LLM_DATADIST")
if (_level := os.environ.get("ASCEND_GLOBAL_LOG_LEVEL")) in _LEVELS:
    logger.setLevel(_LEVELS[_level])
# Lines go to stderr if the program has not set up logging, so that setting the level is enough to see them.
_to_stderr = logging.StreamHandler()
_to_stderr.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))


def _not_set_up(_: logging.LogRecord) -> bool:
    _to_stderr.stream = sys.stderr  # the current one: the one at import time may have been closed
    return not logging.getLogger().handlers and logger.handlers == [_to_stderr]


_to_stderr.addFilter(_not_set_up)
logger.addHandler(_to_stderr)


@functools.cache
def warn_once(text: str) -> None:
    """Logs a warning, unless this process has logged the same text."""
    logger.warning("%s", text)


@contextlib.contextmanager
def error_context(call: str, req_id: Any = None) -> Iterator[None]:
    """Raises the errors of a block again, with the call and the request in their text. Logs those with a status code.

    Args:
        call: The name of the call, which goes in front of the text.
        req_id: The request, which goes behind the text if it is an int.
    """
    try:
        yield
    except LLMException as error:
        named = llm_error(error.status_code, _in_context(message_of(error), call, req_id))
        # The text, not the error: a handler that keeps records would keep its traceback, and with it the caches.
        logger.error("%s", str(named))
        try:
            raise named.with_traceback(error.__traceback__) from error.__cause__
        finally:
            del named  # its traceback has this frame: a cycle, which would keep the caches until it is collected
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(_in_context(str(error), call, req_id)).with_traceback(error.__traceback__) from error.__cause__


def _in_context(text: str, call: str, req_id: Any) -> str:
    # The op's own messages have both already.
    text = text if text.startswith(f"{call}: ") else f"{call}: {text}"
    number = as_int(req_id)
    request = "" if number is None else f" (req_id {number})"
    return text if request in text else text + request
