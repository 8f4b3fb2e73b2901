# SPDX-License-Identifier: Apache-2.0
"""Which Ascend chips are served, as LLM-DataDist's pages have it."""

import functools

import torch

from .status import LLMException, LLMStatusCode

# A2 and A3 by the names of their chips. A2 training boxes, which the pages exclude, carry the same chips as A2
# inference boxes, so the whole of A2 is served.
SERVED = ("Ascend910B", "Ascend910_93")


@functools.cache
def check_served(device: torch.device) -> None:
    """Refuses an NPU that LLM-DataDist does not serve.

    Raises:
        LLMException: LLM_FEATURE_NOT_ENABLED, naming the chip and those that are served.
    """
    if device.type == "npu":
        name = torch.get_device_module(device).get_device_name(device)
        if not name.startswith(SERVED):
            raise LLMException(
                f"{device} is an {name}, which is not served; served are {' and '.join(f'{n}*' for n in SERVED)}",
                LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
            )
