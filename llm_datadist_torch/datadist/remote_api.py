# SPDX-License-Identifier: Apache-2.0
"""What ``datadist`` asks of ``remote``, which implements ``Remote``. ``remote`` depends on ``datadist``, and not the other way."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .cache import Cache
from .cache_keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from .cluster_info import Address, LLMClusterInfo
from .rank_table import RankTable
from .registry import CacheRegistry
from .result import Result
from .status import LLMStatusCode, llm_error
from .transfer_types import CacheTask, LayerSynchronizer, TransferConfig, TransferWithCacheKeyConfig
from .unserved import RegisterMemStatus

NIXL = ("nixl_cu12", "nixl_cu13", "nixl")
"""The packages that NIXL comes in. The name of the last one is for messages."""


class Row(NamedTuple):
    """A row of the cache of this process, and the bytes of it, or -1."""

    batch_index: int
    size: int


class Blocks(NamedTuple):
    """The blocks to read, and those to write."""

    src: list[int]
    dst: list[int]


@dataclass(frozen=True)
class TransferCall:
    """A pull or push, whose arguments are right by themselves.

    Attributes:
        method: Its name: pull_cache, pull_blocks, push_cache or push_blocks.
        key: The cache of the peer.
        cache: The cache of this process.
        what: What to transfer.
        layers: src_layer_range, dst_layer_range, tensor_num_per_layer.
    """

    method: str
    key: CacheKey | CacheKeyByIdAndIndex | BlocksCacheKey
    cache: Cache
    what: Row | Blocks
    layers: tuple[range | None, range | None, int]


@dataclass(frozen=True)
class LayerwiseCall:
    """A ``transfer_cache_async``, whose arguments are right by themselves."""

    cache: Cache
    synchronizer: LayerSynchronizer
    configs: Sequence[TransferConfig | TransferWithCacheKeyConfig]
    src_blocks: list[int]
    dst_blocks: list[int]
    block_bytes: int | None


@dataclass
class TransferCounters:
    """What has been transferred to and from one cluster since the start of the process. Seconds and bytes only grow.

    Attributes:
        pulls, pulled_bytes, pulling_seconds: Pulls that have succeeded.
        pushes, pushed_bytes, pushing_seconds: Pushes that have succeeded.
        failures: How many have failed, by code.
    """

    pulls: int = 0
    pulled_bytes: int = 0
    pulling_seconds: float = 0.0
    pushes: int = 0
    pushed_bytes: int = 0
    pushing_seconds: float = 0.0
    failures: dict[LLMStatusCode, int] = field(default_factory=dict)


class Remote(ABC):
    """The links of a process, and the transfers over them. Thread-safe."""

    @abstractmethod
    def listen(self, addresses: Sequence[Address]) -> None:
        """Listens at these addresses, and no longer at others. Raises LLM_FAILED if one cannot be had."""

    @abstractmethod
    def link(
        self, clusters: Sequence[LLMClusterInfo], timeout_ms: int, tries: int, total_seconds: int
    ) -> list[LLMStatusCode]:
        """Links to processes that listen, all at once. Sets the id of a cluster that has none."""

    @abstractmethod
    def unlink(self, cluster_ids: Sequence[int], timeout_ms: int, *, force: bool) -> list[LLMStatusCode]:
        """Ends links, all at once."""

    @abstractmethod
    def link_group(self, name: str, table: RankTable, total_seconds: int, tries: int) -> int:
        """Begins to link the clusters of a communicator to one another. Returns its id."""

    @abstractmethod
    def unlink_group(self, comm_id: int) -> None:
        """Ends a communicator on this side. Raises LLM_NOT_YET_LINK for an unknown one."""

    @abstractmethod
    def group_status(self, comm_id: int) -> RegisterMemStatus:
        """How far a communicator is. Raises LLM_NOT_YET_LINK for an unknown one."""

    @abstractmethod
    def has_link(self, cluster_id: int | None = None) -> bool:
        """Whether there is a link to a cluster, or any."""

    @abstractmethod
    def start(self, call: TransferCall) -> Result[None]:
        """Starts a pull or push."""

    @abstractmethod
    def cancel(self, result: Result[None]) -> None:
        """Ends a pull or push with LLM_FAILED. What a request in flight reads or writes may still come."""

    @abstractmethod
    def start_layerwise(self, call: LayerwiseCall) -> CacheTask:
        """Starts a ``transfer_cache_async``. Raises what can be known at once."""

    @abstractmethod
    def counters(self) -> dict[int, TransferCounters]:
        """What has been transferred, by cluster."""

    @abstractmethod
    def close(self) -> None:
        """Ends all links. Waits for what is in flight or leased, at most the timeout of transfers."""

    @abstractmethod
    def close_in_thread(self) -> None:
        """``close`` for a destructor, which must not wait. The next ``listen`` of the process waits for it."""


def open_remote(cluster_id: int, registry: CacheRegistry, timeout_ms: int) -> Remote:
    """The links of this process, none at first. Loads ``remote`` and its dependencies.

    Args:
        cluster_id: The cluster of this process.
        registry: Its caches, for its peers.
        timeout_ms: Milliseconds that a transfer may take.

    Raises:
        LLMException: LLM_FEATURE_NOT_ENABLED without NIXL, pyzmq or msgspec.
    """
    check_installed()
    implementation = importlib.import_module("llm_datadist_torch.remote.remote")
    remote: Remote = implementation.open_remote(cluster_id, registry, timeout_ms)
    return remote


def check_installed() -> None:
    """Raises LLM_FEATURE_NOT_ENABLED unless everything that ``remote`` needs is installed."""
    for names in (NIXL, ("zmq",), ("msgspec",)):
        if not any(importlib.util.find_spec(name) for name in names):
            raise llm_error(
                LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
                f"caches of other processes need {names[-1]}: pip install 'llm_datadist_torch[remote]'",
            )
