# SPDX-License-Identifier: Apache-2.0
"""LLM-DataDist itself, where it is installed, as a contender."""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from torch import Tensor


def original_copy(dst: list[Tensor], src: list[Tensor], dst_row: int, src_row: int) -> Callable[[], object] | None:
    """A call of its copy_cache on device tensors, or None if it is not installed.

    The memory is registered through its own descriptions. What the import or the set-up raises is raised here.
    """
    if dst[0].is_cpu or importlib.util.find_spec("llm_datadist") is None:
        return None
    theirs = importlib.import_module("llm_datadist")
    manager = _manager(dst[0].device.index or 0)
    caches = []
    for tensors in (dst, src):
        desc = theirs.CacheDesc(len(tensors), list(tensors[0].shape), theirs.DataType.DT_UINT8)
        caches.append(manager.register_cache(desc, [tensor.data_ptr() for tensor in tensors]))
    return lambda: manager.copy_cache(*caches, dst_row, src_row)


@functools.cache
def _manager(device: int) -> Any:
    """Its manager. A process can initialize one LLMDataDist, so all cases share it."""
    theirs = importlib.import_module("llm_datadist")
    config = theirs.LLMConfig()
    config.device_id = device
    config.enable_cache_manager = True
    config.sync_kv_timeout = 60_000
    datadist = theirs.LLMDataDist(theirs.LLMRole.MIX, 0)
    datadist.init(config.generate_options())
    return datadist.cache_manager
