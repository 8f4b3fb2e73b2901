# SPDX-License-Identifier: Apache-2.0
"""llm_datadist.v2.config."""

from ..configs import LlmConfig, LLMRole

__all__ = ["LLMRole", "LlmConfig"]
