# SPDX-License-Identifier: Apache-2.0
"""``python -m llm_datadist_torch verify``: what the package relies on, tried on the devices of this machine."""
