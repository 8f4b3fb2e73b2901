# SPDX-License-Identifier: Apache-2.0
"""Each test starts and ends on an idle runtime."""

from ascend_sim.quiet_runtime import quiet_runtime  # noqa: F401
