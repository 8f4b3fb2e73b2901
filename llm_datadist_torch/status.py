# SPDX-License-Identifier: Apache-2.0
"""llm_datadist.status."""

from .datadist.status import LLMException, LLMStatusCode, Status

__all__ = ["LLMException", "LLMStatusCode", "Status"]
