# SPDX-License-Identifier: Apache-2.0
"""The submodules of llm_datadist.v2, for imports from there. They only re-export."""
