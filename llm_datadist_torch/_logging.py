# SPDX-License-Identifier: Apache-2.0
"""The logger, with the name and the level switch that users of LLM-DataDist know."""

import logging
import os

_LEVELS = {"0": logging.DEBUG, "1": logging.INFO, "2": logging.WARNING, "3": logging.ERROR}

logger = logging.getLogger("LLM_DATADIST")
logger.setLevel(_LEVELS.get(os.environ.get("ASCEND_GLOBAL_LOG_LEVEL", ""), logging.NOTSET))
