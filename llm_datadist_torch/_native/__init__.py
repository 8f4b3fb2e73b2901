# SPDX-License-Identifier: Apache-2.0
"""Loads the compiled libraries; counters of what their kernels did."""
