# SPDX-License-Identifier: Apache-2.0
"""llm_datadist.v2.llm_datadist."""

from ..datadist.llm_datadist import LLMDataDist

__all__ = ["LLMDataDist"]
