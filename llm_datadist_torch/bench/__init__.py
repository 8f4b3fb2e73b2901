# SPDX-License-Identifier: Apache-2.0
"""``python -m llm_datadist_torch bench``: times of calls beside what one would write instead, on any device."""
