# SPDX-License-Identifier: Apache-2.0
"""A paged KV cache as serving engines keep it: fork a sequence, swap one out to the host and back in.

Each layer is one tensor [2, num_blocks, block_size, heads, head_dim], keys and values, and a sequence is a list of
block numbers. copy_blocks and swap_blocks take pairs (from, to) of them, and copy in all layers in one call, in stream
order.

    python examples/paged_blocks.py    # on the NPU where there is one
"""

import argparse

import torch
from torch import Tensor

from llm_datadist_torch import copy_blocks, swap_blocks

LAYERS, BLOCKS, BLOCK_SIZE, HEADS, HEAD_DIM = 4, 16, 8, 2, 16


def make_caches(device: str = "cpu", pin_memory: bool = False) -> list[Tensor]:
    shape = (2, BLOCKS, BLOCK_SIZE, HEADS, HEAD_DIM)
    caches = [torch.randn(shape, dtype=torch.float16) for _ in range(LAYERS)]
    return [cache.pin_memory() if pin_memory else cache.to(device) for cache in caches]


def contents(kv_caches: list[Tensor], block_table: list[int]) -> Tensor:
    """What a sequence's blocks hold in all layers, in host memory."""
    return torch.stack([cache.cpu()[:, block_table] for cache in kv_caches])


def check(what: str, actual: Tensor, expected: Tensor) -> None:
    if not torch.equal(actual, expected):
        raise AssertionError(f"{what}: other contents than before")
    print(f"{what}: {actual.nbytes / 2**10:.0f} KiB as they were")


def main() -> None:
    npu = hasattr(torch, "npu") and torch.npu.is_available()
    parser = argparse.ArgumentParser(description="Fork and swap sequences of a paged KV cache.")
    parser.add_argument("--device", default="npu" if npu else "cpu", help="default: %(default)s")
    device = parser.parse_args().device
    torch.manual_seed(0)
    caches = make_caches(device)
    host = make_caches(pin_memory=device != "cpu")

    # Fork: the last block of a sequence is still being filled, so each child gets one of its own.
    parent, children = [0, 1, 2], [[0, 1, 3], [0, 1, 4]]
    before = contents(caches, parent)
    copy_blocks(caches, [(2, 3), (2, 4)], batch_dim=1)
    for child in children:
        check(f"fork, blocks {child}", contents(caches, child), before)

    # Swap out, let others use the blocks, swap in to blocks that are free now.
    swapped, away, back = [5, 9, 6], [0, 1, 2], [11, 12, 13]
    before = contents(caches, swapped)
    swap_blocks(caches, host, torch.tensor([swapped, away]).T, batch_dim=1)  # pinned host caches: does not wait
    copy_blocks(caches, [(0, 5), (1, 9), (2, 6)], batch_dim=1)
    swap_blocks(host, caches, torch.tensor([away, back]).T, batch_dim=1)
    check(f"out and in, blocks {swapped} to {back}", contents(caches, back), before)

    # Defragment: any permutation of blocks, cycles and all, in one call.
    order = torch.randperm(BLOCKS)
    before = contents(caches, order.tolist())
    copy_blocks(caches, torch.stack([order, torch.arange(BLOCKS)], dim=1), batch_dim=1)
    check(f"permutation of {BLOCKS} blocks", contents(caches, list(range(BLOCKS))), before)


if __name__ == "__main__":
    main()
