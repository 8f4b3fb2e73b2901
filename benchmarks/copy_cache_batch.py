# SPDX-License-Identifier: Apache-2.0
"""copy_cache_batch beside a call for each copy and advanced indexing: `python benchmarks/copy_cache_batch.py`.

1,000 copies of blocks within a cache of 160 tensors. Indexing needs a temporary, and operators for each tensor.
"""

import sys

import torch
from bench import Bench, Contenders
from torch import Tensor

copy_cache, copy_cache_batch = torch.ops.llm_datadist.copy_cache, torch.ops.llm_datadist.copy_cache_batch

TENSORS, BLOCKS, COPIES = 160, 2048, 1000
BYTES = (64, 256, 1024, 4096)
OP, INDEXING = "copy_cache_batch", "index_copy_ of index_select"


def patterns(copies: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Blocks to write, and blocks to read."""
    shuffled = torch.randperm(2 * copies, generator=torch.Generator().manual_seed(0))
    return {
        "neighbours": (torch.arange(copies) + copies, torch.arange(copies)),
        "anywhere": (shuffled[:copies], shuffled[copies:]),
        "permutation": (torch.arange(copies), shuffled[shuffled < copies]),
    }


def ways(cache: list[Tensor], batch_dim: int, dst: Tensor, src: Tensor) -> Contenders:
    copies = torch.stack([dst, src, torch.zeros_like(dst), torch.full_like(dst, -1)], dim=1)
    pairs = list(zip(dst.tolist(), src.tolist(), strict=True))
    to, of = dst.to(cache[0].device), src.to(cache[0].device)

    def one_by_one() -> None:
        for dst_block, src_block in pairs:
            copy_cache(cache, cache, dst_block, src_block, batch_dim=batch_dim)

    def indexing() -> None:
        for tensor in cache:
            tensor.index_copy_(batch_dim, to, tensor.index_select(batch_dim, of))

    def loop() -> None:
        for dst_block, src_block in pairs:
            cache[0][:, dst_block].copy_(cache[0][:, src_block])

    calls: Contenders = {
        OP: lambda: copy_cache_batch(cache, cache, copies, batch_dim=batch_dim),
        INDEXING: indexing,
        "copy_cache for each": one_by_one,
    }
    return calls | ({"loop of copy_": loop} if batch_dim else {})


def check(cache: list[Tensor], calls: Contenders, permutation: bool) -> None:
    """Exits unless all leave the same bytes. A permutation needs all to be read first, which loops do not."""
    before = [tensor.clone() for tensor in cache]
    expected: list[Tensor] = []
    for name in (INDEXING, OP) if permutation else (INDEXING, *calls):
        torch._foreach_copy_(cache, before)
        calls[name]()
        expected = expected or [tensor.clone() for tensor in cache]
        if not all(map(torch.equal, cache, expected)):
            sys.exit(f"{name}: other bytes than by indexing")


@torch.inference_mode()
def main() -> None:
    bench = Bench(f"{COPIES:,} copies of blocks within {TENSORS} tensors")
    tensors, copies, blocks = (4, 8, 16) if bench.args.tiny else (TENSORS, COPIES, BLOCKS)
    rows = []
    for size in bench.few(BYTES):
        for caches, shape in (("list", (blocks, size)), ("stacked", (tensors, blocks, size))):
            count, batch_dim = (tensors, 0) if caches == "list" else (1, 1)
            cache = [torch.randint(256, shape, dtype=torch.uint8).to(bench.device) for _ in range(count)]
            for pattern, (dst, src) in patterns(copies).items():
                calls = ways(cache, batch_dim, dst, src)
                check(cache, calls, pattern == "permutation")
                rows += bench.rows(bench.times(calls), OP, bytes=size, caches=caches, blocks=pattern)
            del cache, calls
    bench.table("one call, and other ways", rows)
    bench.end()


if __name__ == "__main__":
    main()
