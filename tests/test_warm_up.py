# SPDX-License-Identifier: Apache-2.0
"""Without an NPU there is nothing to warm up."""

import pytest

from llm_datadist_torch import warm_up


def test_no_npu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert not warm_up()
    assert caplog.messages == ["warm_up: copies within the NPU do not use the kernel: torch_npu is not imported"]
    monkeypatch.setenv("LLM_DATADIST_KERNEL", "always")
    with pytest.raises(RuntimeError, match="torch_npu is not imported"):
        warm_up()
