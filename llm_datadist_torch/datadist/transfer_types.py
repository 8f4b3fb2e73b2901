# SPDX-License-Identifier: Apache-2.0
"""The types of transfers in the background."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .cache_keys import BlocksCacheKey, CacheKeyByIdAndIndex
from .checks import INT32, UINT32, UINT64, check_int, check_type
from .log import error_context
from .result import Result
from .status import LLMStatusCode, param_invalid


class _Checked:
    """Checks the fields of a dataclass when it is made, and when one is assigned."""

    def __setattr__(self, name: str, value: object) -> None:
        before = dict(vars(self))
        super().__setattr__(name, value)
        try:
            self.__post_init__()
        except AttributeError:  # the constructor has not assigned all fields yet
            pass
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    def __post_init__(self) -> None:
        raise NotImplementedError


@dataclass
class TransferConfig(_Checked):
    """A cache of another process to write to, by its addresses. Its fields can be assigned.

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


@dataclass
class TransferWithCacheKeyConfig(_Checked):
    """A cache of another process to write to, by its key. Its fields can be assigned.

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
    """A transfer in the background, made by ``CacheManager.transfer_cache_async``, which notes its progress here.

    Args:
        layers: How many layers each config writes.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self._left = list(layers)
        self._results: list[LLMStatusCode | None] = [None] * len(layers)
        self._ended: Result[None] = Result()

    def synchronize(self, timeout_in_millis: int | None = None) -> LLMStatusCode:
        """Waits for the end of the transfer.

        Args:
            timeout_in_millis: Milliseconds to wait, an int32; 0 does not wait, None waits without a limit.

        Returns:
            LLM_SUCCESS, the first other code of a config, or LLM_TIMEOUT if the transfer goes on.

        Raises:
            TypeError, ValueError: A timeout that is not one.
        """
        if not _wait(self._ended, timeout_in_millis):
            return LLMStatusCode.LLM_TIMEOUT
        return next((code for code in self._results if code), LLMStatusCode.LLM_SUCCESS)

    def get_results(self, timeout_in_millis: int | None = None) -> list[LLMStatusCode | None]:
        """Waits like ``synchronize``, and returns the code of each config.

        LLM_TIMEOUT is that of a config that has not ended yet, None that of one of which nothing has been written.
        """
        _wait(self._ended, timeout_in_millis)
        going = not self._ended.done
        return [
            LLMStatusCode.LLM_TIMEOUT if going and left and code is LLMStatusCode.LLM_SUCCESS else code
            for code, left in zip(self._results, self._left, strict=True)
        ]

    def has_failed(self, config: int) -> bool:
        """Whether a config needs no further layer."""
        return bool(self._results[config])

    def note(self, config: int, code: LLMStatusCode) -> None:
        """Notes that a layer of a config has been written, or could not be."""
        self._left[config] -= 1
        self._results[config] = code

    def fail_all(self) -> None:
        """Notes that no further layer will come."""
        self._results = [
            LLMStatusCode.LLM_FAILED if left and not code else code
            for code, left in zip(self._results, self._left, strict=True)
        ]

    def finish(self) -> None:
        """Ends the transfer."""
        self._ended.set(None)


class TransferHandle:
    """A pull or push in the background, made by ``CacheManager.pull_cache_async`` and the like.

    Args:
        call: The name of the call, for messages.
        outcome: Its outcome.
        cancel: Ends it.
    """

    def __init__(self, call: str, outcome: Result[None], cancel: Callable[[Result[None]], None]) -> None:
        self._call, self._outcome, self._cancel = call, outcome, cancel

    def done(self) -> bool:
        """Whether the transfer has ended."""
        return self._outcome.done

    def wait(self, timeout_in_millis: int | None = None) -> bool:
        """Waits for the end of the transfer.

        Args:
            timeout_in_millis: Milliseconds to wait, an int32 that is not negative, or None for no limit.

        Returns:
            Whether the transfer has ended.
        """
        return _wait(self._outcome, timeout_in_millis)

    def result(self) -> None:
        """Waits for the end of the transfer. Raises what the call that blocks raises."""
        with error_context(self._call):
            self._outcome.get()

    def cancel(self) -> None:
        """Ends the transfer with LLM_FAILED, unless it has ended. A request in flight, of at most 16 MiB, may still complete."""
        self._cancel(self._outcome)


def _wait(result: Result[None], timeout_in_millis: int | None) -> bool:
    if timeout_in_millis is None:
        return result.wait()
    return result.wait(check_int("timeout_in_millis", timeout_in_millis, (0, INT32[1])) / 1000)


def check_layer_range(name: str, layers: range | None) -> None:
    """Raises TypeError or LLM_PARAM_INVALID unless this is a range of layers, or None."""
    if layers is None:
        return
    check_type(name, layers, range)
    if layers.step != 1 or not 0 <= layers.start < layers.stop:
        raise param_invalid(f"{name} ({layers}) must have the step 1, begin at 0 or later, and not be empty")


def checked_layers(
    src_layer_range: range | None, dst_layer_range: range | None, tensor_num_per_layer: int, num_tensors: int
) -> tuple[range | None, range | None, int]:
    """The layer arguments of a pull or push of a cache with so many tensors. Raises the errors of ``check_layer_range``."""
    check_layer_range("src_layer_range", src_layer_range)
    check_layer_range("dst_layer_range", dst_layer_range)
    tensor_num_per_layer = check_int("tensor_num_per_layer", tensor_num_per_layer, UINT32)
    given = src_layer_range is not None or dst_layer_range is not None
    if tensor_num_per_layer < 1 or (given and tensor_num_per_layer > num_tensors):
        raise param_invalid(
            f"tensor_num_per_layer ({tensor_num_per_layer}) must be in [1, {num_tensors}], the tensors of the cache"
        )
    return src_layer_range, dst_layer_range, tensor_num_per_layer
