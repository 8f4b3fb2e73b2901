# SPDX-License-Identifier: Apache-2.0
"""transfer_cache_async: writes a cache layer by layer, in a thread, as the layers get computed."""

import threading

import numpy as np

from ..datadist.cache_keys import BlocksCacheKey
from ..datadist.log import logger
from ..datadist.remote_api import LayerwiseCall
from ..datadist.status import LLMException, LLMStatusCode, param_invalid
from ..datadist.transfer_types import CacheTask, TransferConfig, TransferWithCacheKeyConfig
from .io_thread import IoThread, Steps
from .local_caches import keep
from .transfers import Transfers

_TENSORS_PER_LAYER = 2  # LLM-DataDist's number in this call

Config = TransferConfig | TransferWithCacheKeyConfig


def start(thread: IoThread, transfers: Transfers, call: LayerwiseCall, timeout_ms: int) -> CacheTask:
    """Checks what can be checked before a layer has been computed, and starts the thread.

    Raises:
        LLMException: LLM_PARAM_INVALID for layers that the cache does not have, or another number of addresses than tensors.
    """
    count, odd = divmod(call.cache.num_tensors, _TENSORS_PER_LAYER)
    if odd:
        raise param_invalid(f"src_cache must have an even num_tensors, got {2 * count + 1}")
    for index, config in enumerate(call.configs):
        layers = _layers(config, count)
        if layers.stop > count:
            raise param_invalid(
                f"transfer_configs[{index}]: src_layer_range ({layers}) out of range [0, {count}), the layers of src_cache"
            )
        if isinstance(config, TransferConfig) and len(config.dst_addrs) != _TENSORS_PER_LAYER * len(layers):
            raise param_invalid(
                f"transfer_configs[{index}]: dst_addrs must hold {_TENSORS_PER_LAYER * len(layers)} addresses, one for each "
                f"tensor of the layers, got {len(config.dst_addrs)}"
            )
    task = CacheTask([len(_layers(config, count)) for config in call.configs])
    target = _Transfer(thread, transfers, call, count, timeout_ms, task).run
    threading.Thread(target=target, name="llm_datadist transfer_cache_async", daemon=True).start()
    return task


class _Transfer:
    """A transfer that runs in a thread of its own, because it waits for the caller's synchronizer."""

    def __init__(
        self, thread: IoThread, transfers: Transfers, call: LayerwiseCall, count: int, timeout_ms: int, task: CacheTask
    ) -> None:
        self._thread, self._transfers, self._call = thread, transfers, call
        self._layers = [_layers(config, count) for config in call.configs]
        self._timeout_ms, self._task = timeout_ms, task

    def run(self) -> None:
        """Writes each layer that a config names, when it has been computed."""
        try:
            for layer in sorted({layer for layers in self._layers for layer in layers}):
                writing = [
                    i for i, layers in enumerate(self._layers) if layer in layers and not self._task.has_failed(i)
                ]
                if writing and not self._call.synchronizer.synchronize_layer(layer, self._timeout_ms):
                    logger.error("transfer_cache_async: layer %d was not computed", layer)
                    self._task.fail_all()
                    return
                for index in writing:
                    self._task.note(index, self._write(layer, index))
        except Exception:  # of the caller's synchronizer
            logger.exception("transfer_cache_async")
            self._task.fail_all()
        finally:
            self._task.finish()

    def _write(self, layer: int, index: int) -> LLMStatusCode:
        try:
            self._thread.start(self._steps(layer, self._call.configs[index], self._layers[index])).get()
            return LLMStatusCode.LLM_SUCCESS
        except LLMException as error:
            logger.error("transfer_cache_async: layer %d: %s", layer, error)
            return error.status_code

    def _steps(self, layer: int, config: Config, layers: range) -> Steps[None]:
        call, number, transfers = self._call, layer - layers.start, self._transfers
        cache = keep("src_cache", call.cache)
        src_blocks, dst_blocks = (np.array(blocks, dtype=np.int64) for blocks in (call.src_blocks, call.dst_blocks))
        if isinstance(config, TransferConfig):
            addresses = config.dst_addrs[_TENSORS_PER_LAYER * number : _TENSORS_PER_LAYER * (number + 1)]
            return transfers.push_to_addresses(
                config, addresses, cache, layer, src_blocks, dst_blocks, call.block_bytes
            )
        target = config.dst_layer_range or layers
        if len(target) != len(layers):
            raise param_invalid(
                f"src_layer_range and dst_layer_range must have as many layers, got {layers} and {target}"
            )
        which = range(layer, layer + 1), target[number : number + 1], _TENSORS_PER_LAYER
        if call.src_blocks:
            return transfers.copy_blocks(config.cache_key, cache, src_blocks, dst_blocks, which, write=True)
        if call.dst_blocks:
            return transfers.push_row_to_blocks(config.cache_key, cache, config.src_batch_index, dst_blocks, which)
        if isinstance(config.cache_key, BlocksCacheKey):
            raise param_invalid("dst_block_indices must be given with a BlocksCacheKey")
        return transfers.copy_row(config.cache_key, cache, config.src_batch_index, -1, which, write=True)


def _layers(config: Config, count: int) -> range:
    return range(count) if config.src_layer_range is None else config.src_layer_range
