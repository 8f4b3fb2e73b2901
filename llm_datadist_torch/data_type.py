# SPDX-License-Identifier: Apache-2.0
"""llm_datadist.data_type."""

from .datadist.data_type import DataType

__all__ = ["DataType"]
