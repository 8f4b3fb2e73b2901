# SPDX-License-Identifier: Apache-2.0
"""The types of ``CacheManager.transfer_cache_async``."""

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from .cache_keys import BlocksCacheKey, CacheKeyByIdAndIndex
from .checks import INT32, UINT32, UINT64, check_int, check_type
from .status import LLMStatusCode, param_invalid

_POLL_SECONDS = 1e-3


@dataclass(frozen=True)
class TransferConfig:
    """A cache of another process to write to, by its addresses.

    Args:
        dst_cluster_id: The cluster of the process, a uint64.
        dst_addrs: The address of each tensor of the layers that are read, in memory of caches that the process has
            allocated, or registered with remote access. Without blocks, the address of the row itself.
        src_layer_range: The layers to read, or None for all.
        src_batch_index: The row to read, a uint32.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: A number that does not fit its integer type.
        LLMException: LLM_PARAM_INVALID for any other value that is not allowed.
    """

    dst_cluster_id: int
    dst_addrs: list[int]
    src_layer_range: range | None = None
    src_batch_index: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dst_cluster_id", check_int("dst_cluster_id", self.dst_cluster_id, UINT64))
        check_type("dst_addrs", self.dst_addrs, Sequence)
        addrs = [check_int(f"dst_addrs[{index}]", addr, UINT64) for index, addr in enumerate(self.dst_addrs)]
        object.__setattr__(self, "dst_addrs", addrs)
        check_layer_range("src_layer_range", self.src_layer_range)
        object.__setattr__(self, "src_batch_index", check_int("src_batch_index", self.src_batch_index, UINT32))


@dataclass(frozen=True)
class TransferWithCacheKeyConfig:
    """A cache of another process to write to, by its key.

    Args:
        cache_key: The key.
        src_layer_range: The layers to read, or None for all.
        dst_layer_range: The layers to write, as many, or None for all.
        src_batch_index: The row to read, a uint32; 0 for blocks.

    Raises:
        TypeError, ValueError, LLMException: As for ``TransferConfig``.
    """

    cache_key: BlocksCacheKey | CacheKeyByIdAndIndex
    src_layer_range: range | None = None
    dst_layer_range: range | None = None
    src_batch_index: int = 0

    def __post_init__(self) -> None:
        check_type("cache_key", self.cache_key, BlocksCacheKey, CacheKeyByIdAndIndex)
        check_layer_range("src_layer_range", self.src_layer_range)
        check_layer_range("dst_layer_range", self.dst_layer_range)
        object.__setattr__(self, "src_batch_index", check_int("src_batch_index", self.src_batch_index, UINT32))
        if isinstance(self.cache_key, BlocksCacheKey) and self.src_batch_index != 0:
            raise param_invalid(f"src_batch_index ({self.src_batch_index}) must be 0 with a BlocksCacheKey")


def cluster_of(config: TransferConfig | TransferWithCacheKeyConfig) -> int:
    """The cluster that a config writes to."""
    return config.dst_cluster_id if isinstance(config, TransferConfig) else config.cache_key.cluster_id


class LayerSynchronizer(ABC):
    """Says when a layer of the source cache may be read. To be implemented by the caller."""

    @abstractmethod
    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        """Waits until a layer has been computed. Called from a thread of the transfer, for each layer in order.

        Args:
            layer_index: The layer.
            timeout_in_millis: Milliseconds that the transfer waits for it.

        Returns:
            False if it has not been computed; the transfer ends then.
        """


class CacheTask:
    """A transfer in the background, made by ``CacheManager.transfer_cache_async``.

    Args:
        results: The code of each config, None until a layer of it has been written. The transfer updates the list.
        done: Set at the end of the transfer.
    """

    def __init__(self, results: Sequence[LLMStatusCode | None], done: threading.Event) -> None:
        self._results, self._done = results, done

    def synchronize(self, timeout_in_millis: int | None = None) -> LLMStatusCode:
        """Waits for the end of the transfer.

        Args:
            timeout_in_millis: Milliseconds to wait, an int32 greater than 0, or None for no limit.

        Returns:
            LLM_SUCCESS, the first other code of a config, or LLM_TIMEOUT if the transfer goes on.

        Raises:
            TypeError, ValueError: A timeout that is not one.
        """
        if not self._wait(timeout_in_millis):
            return LLMStatusCode.LLM_TIMEOUT
        codes = [code or LLMStatusCode.LLM_SUCCESS for code in self._results]
        return next((code for code in codes if code is not LLMStatusCode.LLM_SUCCESS), LLMStatusCode.LLM_SUCCESS)

    def get_results(self, timeout_in_millis: int | None = None) -> list[LLMStatusCode | None]:
        """Waits like ``synchronize``, and returns the code of each config: None if nothing of it has been written."""
        if not self._wait(timeout_in_millis):
            return [LLMStatusCode.LLM_TIMEOUT if code is not None else None for code in self._results]
        return list(self._results)

    def _wait(self, timeout_in_millis: int | None) -> bool:
        seconds = math.inf
        if timeout_in_millis is not None:
            timeout_in_millis = check_int("timeout_in_millis", timeout_in_millis, INT32)
            if timeout_in_millis <= 0:
                raise ValueError(f"timeout_in_millis ({timeout_in_millis}) must be greater than 0")
            seconds = timeout_in_millis / 1000
        # Event.wait would keep the lock of the event for ever if a signal handler raises while it returns.
        deadline = time.monotonic() + seconds
        while not self._done.is_set() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return self._done.is_set()


def check_layer_range(name: str, layers: range | None) -> None:
    """Raises TypeError or LLM_PARAM_INVALID unless this is a range of layers, or None."""
    if layers is None:
        return
    check_type(name, layers, range)
    if layers.step != 1 or not 0 <= layers.start < layers.stop:
        raise param_invalid(f"{name} ({layers}) must have the step 1, begin at 0 or later, and not be empty")


def checked_layers(
    src_layer_range: range | None, dst_layer_range: range | None, tensor_num_per_layer: int
) -> tuple[range | None, range | None, int]:
    """The layer arguments of a pull or push. Raises the errors of ``check_layer_range``."""
    check_layer_range("src_layer_range", src_layer_range)
    check_layer_range("dst_layer_range", dst_layer_range)
    tensor_num_per_layer = check_int("tensor_num_per_layer", tensor_num_per_layer, INT32)
    if tensor_num_per_layer < 1:
        raise param_invalid(f"tensor_num_per_layer ({tensor_num_per_layer}) must be greater than 0")
    return src_layer_range, dst_layer_range, tensor_num_per_layer
