# SPDX-License-Identifier: Apache-2.0
"""llm_datadist.configs."""

from .datadist.config import LLMClusterInfo, LLMConfig, LlmConfig, LLMRole

__all__ = ["LLMClusterInfo", "LLMConfig", "LLMRole", "LlmConfig"]
