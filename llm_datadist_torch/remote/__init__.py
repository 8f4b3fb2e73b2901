# SPDX-License-Identifier: Apache-2.0
"""Caches of other processes: links, and transfers over NIXL. Imported by the first call that needs a link."""
