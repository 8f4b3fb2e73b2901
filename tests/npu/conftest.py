# SPDX-License-Identifier: Apache-2.0
"""Each test starts and ends on an idle runtime. A run that writes a report also reports the assumptions."""

import pytest
from ascend_sim.quiet_runtime import quiet_runtime  # noqa: F401
from assumptions import Assumptions


def pytest_configure(config: pytest.Config) -> None:
    if config.option.xmlpath:
        config.pluginmanager.register(Assumptions(config.option.xmlpath))
