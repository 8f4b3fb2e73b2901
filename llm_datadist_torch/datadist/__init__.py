# SPDX-License-Identifier: Apache-2.0
"""LLM-DataDist's interface: manager, configuration, status, caches, keys and types."""
