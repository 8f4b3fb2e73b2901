# SPDX-License-Identifier: Apache-2.0
"""llm_datadist.v2.config."""

from ..datadist.config import LlmConfig, LLMRole

__all__ = ["LLMRole", "LlmConfig"]
