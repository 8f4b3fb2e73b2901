# SPDX-License-Identifier: Apache-2.0
"""The tests of the kernel use helpers of those of the NPU, and start and end on an idle runtime as they do."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "npu"))

from ascend_sim.quiet_runtime import quiet_runtime  # noqa: F401
