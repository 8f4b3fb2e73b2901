# SPDX-License-Identifier: Apache-2.0
"""The device fixture: a test that has it runs in the CPU environment and in the NPU environment, others in one of them.

The tests of npu/ and ascend_sim/ run in the NPU environment alone, all others without the fixture in the CPU
environment alone. Those of kernel/ run in the NPU environment if it has the compilers of the kernel too.
"""

import importlib.util
import os
import re
from pathlib import Path

# Inductor's caches on disk outlive a change of this package.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import pytest
import torch
from hypothesis import settings

import llm_datadist_torch  # noqa: F401  (registers the ops)

# Depends on what is installed, not on what works: where torch_npu is installed but broken, the tests fail.
HAS_NPU = importlib.util.find_spec("torch_npu") is not None
HAS_COMPILERS = importlib.util.find_spec("ascendnpuir") is not None
NPU_FOLDERS = ["ascend_sim", "kernel", "npu"]
collect_ignore = [] if HAS_NPU else NPU_FOLDERS[:]
if not HAS_COMPILERS:
    collect_ignore.append("kernel")

settings.register_profile("quick", max_examples=200 if HAS_NPU else 500, deadline=None, print_blob=True)
settings.register_profile("long", settings.get_profile("quick"), max_examples=100_000)
settings.load_profile("quick")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the processors


if HAS_NPU:
    # pytest prints the tensors of a failed assertion. To print the values of an NPU tensor, torch computes and waits.
    with_values = torch.Tensor.__repr__
    torch.Tensor.__repr__ = lambda self: with_values(self.to("meta") if self.device.type == "npu" else self)  # type: ignore


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """In the NPU environment, files without a test that runs there are not even imported: some import for seconds."""
    runs = not HAS_NPU or collection_path.suffix != ".py" or collection_path.parent.name in NPU_FOLDERS
    return None if runs or re.search(r"\bdevice: str|\"device\"", collection_path.read_text()) else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def runs_here(item: pytest.Item) -> bool:
        return not HAS_NPU or "device" in item.fixturenames or item.path.parent.name in NPU_FOLDERS

    config.hook.pytest_deselected(items=[item for item in items if not runs_here(item)])
    items[:] = filter(runs_here, items)


@pytest.fixture(params=["npu" if HAS_NPU else "cpu"])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def fresh_dynamo() -> None:
    torch._dynamo.reset()
