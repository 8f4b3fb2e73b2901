# SPDX-License-Identifier: Apache-2.0
"""copy_cache_batch on the CPU, 1,000 block copies over 160 tensors: `python benchmarks/copy_cache_batch.py [--quick]`.

Side by side with 1,000 calls of copy_cache and with advanced indexing, which needs a temporary and a row per tensor.
"""

import sys

import torch
from bench import effort, mark, median, ratio, start
from tabulate import tabulate
from torch import Tensor

from llm_datadist_torch.bench.timing import Contenders, in_turns

copy_cache = torch.ops.llm_datadist.copy_cache
copy_cache_batch = torch.ops.llm_datadist.copy_cache_batch

TENSORS, BLOCKS, COPIES = 160, 2048, 1000
ROWS = (64, 256, 1024, 4096)


def patterns() -> dict[str, tuple[Tensor, Tensor]]:
    """Blocks to write, and blocks to read."""
    shuffled = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(0))
    return {
        "neighbours": (torch.arange(COPIES) + COPIES, torch.arange(COPIES)),
        "anywhere": (shuffled[:COPIES], shuffled[COPIES : 2 * COPIES]),
        "permutation": (torch.arange(COPIES), shuffled[shuffled < COPIES]),
    }


def contenders(cache: list[Tensor], batch_dim: int, dst: Tensor, src: Tensor) -> Contenders:
    copies = torch.stack([dst, src, torch.zeros_like(dst), torch.full_like(dst, -1)], dim=1)
    pairs = list(zip(dst.tolist(), src.tolist(), strict=True))

    def one_by_one() -> None:
        for to, of in pairs:
            copy_cache(cache, cache, to, of, batch_dim=batch_dim)

    def indexing() -> None:
        for tensor in cache:
            tensor.index_copy_(batch_dim, dst, tensor.index_select(batch_dim, src))

    return {
        "one call": lambda: copy_cache_batch(cache, cache, copies, batch_dim=batch_dim),
        "1,000 calls": one_by_one,
        "indexing": indexing,
    }


def check(cache: list[Tensor], batch_dim: int, calls: Contenders, in_order: bool) -> None:
    """Exits unless all leave the same bytes; a permutation comes out right only if all is read first."""
    results = {}
    for name, call in calls.items():
        for index, tensor in enumerate(cache):
            tensor.random_(generator=torch.Generator().manual_seed(index))
        call()
        results[name] = [tensor.clone() for tensor in cache]
    for name in ("one call", "1,000 calls") if in_order else ("one call",):
        if not all(map(torch.equal, results[name], results["indexing"])):
            sys.exit(f"{name}: other bytes than by indexing")


@torch.inference_mode()
def main() -> None:
    args = start(f"{COPIES:,} copies of blocks within {TENSORS} tensors of {BLOCKS} blocks")
    table = []
    for row in ROWS:
        for stacked in (False, True):
            shape = (TENSORS, BLOCKS, row) if stacked else (BLOCKS, row)
            cache = [torch.empty(shape, dtype=torch.uint8) for _ in range(1 if stacked else TENSORS)]
            for pattern, (dst, src) in patterns().items():
                calls = contenders(cache, int(stacked), dst, src)
                check(cache, int(stacked), calls, in_order=pattern != "permutation")
                times = in_turns(calls, *effort(args))
                taken = median(times, "one call")
                table.append(
                    [
                        f"{row} B",
                        "stacked" if stacked else "list",
                        pattern,
                        f"{taken * 1e3:.3f}",
                        f"{2 * COPIES * TENSORS * row / taken / 1e9:.1f}",
                        mark(ratio(times, "one call", "1,000 calls"), 1 if stacked else 20),
                        mark(ratio(times, "one call", "indexing"), 1),
                    ]
                )
            del cache, calls
    print("One call: median ms, and GB/s read and written. The others: their time / that of one call.")
    headers = ["block", "cache", "blocks", "one call,\nms", "GB/s", "1,000\ncalls", "index_copy_ of\nindex_select"]
    print(tabulate(table, headers, disable_numparse=True, colalign=["right"] * len(headers)))


if __name__ == "__main__":
    main()
