# SPDX-License-Identifier: Apache-2.0
"""transfer_cache_async: writes a cache layer by layer, in a thread, as the layers get computed."""

import threading
from collections.abc import Sequence

from ..datadist.cache import Cache
from ..datadist.log import logger
from ..datadist.status import LLMException, LLMStatusCode, param_invalid
from ..datadist.transfer_types import CacheTask, LayerSynchronizer, TransferConfig, TransferWithCacheKeyConfig
from .transfers import Transfers

_TENSORS_PER_LAYER = 2  # LLM-DataDist's number in this call

Config = TransferConfig | TransferWithCacheKeyConfig


def start(
    transfers: Transfers,
    cache: Cache,
    synchronizer: LayerSynchronizer,
    configs: Sequence[Config],
    src_blocks: list[int],
    dst_blocks: list[int],
    block_bytes: int | None,
) -> CacheTask:
    """Checks what can be checked before a layer has been computed, and starts the thread.

    Raises:
        LLMException: LLM_KV_CACHE_NOT_EXIST for a cache that has ended, LLM_NOT_YET_LINK without a link, LLM_PARAM_INVALID
            for layers that the cache does not have, or another number of addresses than tensors.
    """
    count, odd = divmod(cache.cache_desc.num_tensors, _TENSORS_PER_LAYER)
    if odd:
        raise param_invalid(f"src_cache must have an even num_tensors, got {2 * count + 1}")
    for index, config in enumerate(configs):
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
        transfers.check("src_cache", cache, config)
    results: list[LLMStatusCode | None] = [None] * len(configs)
    done = threading.Event()

    def run() -> None:
        try:
            for layer in range(
                min(_layers(c, count).start for c in configs), max(_layers(c, count).stop for c in configs)
            ):
                if all(code not in (None, LLMStatusCode.LLM_SUCCESS) for code in results):
                    return
                if not synchronizer.synchronize_layer(layer, transfers.timeout_ms):
                    logger.error("transfer_cache_async: layer %d was not computed", layer)
                    _fail(results, LLMStatusCode.LLM_FAILED)
                    return
                for index, config in enumerate(configs):
                    if layer in _layers(config, count) and results[index] in (None, LLMStatusCode.LLM_SUCCESS):
                        results[index] = _write(layer, config)
        except Exception:  # of the caller's synchronizer
            logger.exception("transfer_cache_async")
            _fail(results, LLMStatusCode.LLM_FAILED)
        finally:
            done.set()

    def _write(layer: int, config: Config) -> LLMStatusCode:
        try:
            transfers.push_layer(config, cache, layer, _layers(config, count), src_blocks, dst_blocks, block_bytes)
            return LLMStatusCode.LLM_SUCCESS
        except LLMException as error:
            logger.error("transfer_cache_async: layer %d: %s", layer, error)
            return error.status_code

    threading.Thread(target=run, name="llm_datadist transfer_cache_async", daemon=True).start()
    return CacheTask(results, done)


def _layers(config: Config, count: int) -> range:
    return range(count) if config.src_layer_range is None else config.src_layer_range


def _fail(results: list[LLMStatusCode | None], code: LLMStatusCode) -> None:
    results[:] = [code if result in (None, LLMStatusCode.LLM_SUCCESS) else result for result in results]
