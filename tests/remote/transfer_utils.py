# SPDX-License-Identifier: Apache-2.0
"""Contents of caches here and in the peer, for the tests of transfers."""

import torch
from remote_utils import Pair
from torch import Tensor
from utils import as_bytes, filled, to_host

from llm_datadist_torch import Cache

FILL = "held.tensors[0].copy_(filled(*held.tensors[0].shape, seed=5))"


def theirs(pair: Pair, make: str) -> tuple[int, Tensor]:
    """Makes a cache of the peer and fills it. Returns its id and its contents."""
    pair.peer.do(f"held = manager.{make}\n{FILL}")
    return pair.peer.get("held.cache_id"), pair.peer.get("to_host(held.tensors[0])")


def ours(held: Cache) -> Tensor:
    held.tensors[0].copy_(filled(*held.tensors[0].shape, seed=9))
    return to_host(held.tensors[0])


def expect(held: Cache, expected: Tensor) -> None:
    assert torch.equal(as_bytes(held.tensors[0]), as_bytes(expected))
