# SPDX-License-Identifier: Apache-2.0
"""A call in a compiled graph beside the eager call: `python benchmarks/compiled.py`.

The graph is a copy and nothing else, and the row changes from call to call. What a compiled call adds is the same for any
graph: its guards are checked, once for each tensor, and its inputs are passed.
"""

import itertools

import torch
from bench import Bench
from torch import Tensor

TENSORS, BATCH, ROW = 160, 8, 256


def copy_rows(dst: list[Tensor], src: list[Tensor], row: int, batch_dim: int) -> None:
    torch.ops.llm_datadist.copy_cache(dst, src, row, 1, batch_dim=batch_dim)


@torch.inference_mode()
def main() -> None:
    bench = Bench(f"copy_cache of {TENSORS} x {ROW} B, eager and in a compiled graph")
    backend = "inductor" if bench.device.type == "cpu" else "aot_eager"
    tensors, rows = 2 if bench.args.tiny else TENSORS, []
    for caches, shape, count in (("stacked", (tensors, BATCH, ROW), 1), ("list", (BATCH, ROW), tensors)):
        dst, src = ([torch.zeros(shape, dtype=torch.uint8).to(bench.device) for _ in range(count)] for _ in "ds")
        batch_dim = len(shape) - 2
        torch._dynamo.reset()
        compiled = torch.compile(copy_rows, fullgraph=True, backend=backend)
        for row in range(2, BATCH):  # compiles for one row, then for any
            compiled(dst, src, row, batch_dim)
        numbers = itertools.cycle(range(2, BATCH))
        ways = {"eager": copy_rows, backend: compiled}
        calls = {name: lambda f=f: f(dst, src, next(numbers), batch_dim) for name, f in ways.items()}  # noqa: B023
        rows += bench.rows(bench.times(calls), "eager", caches=caches, tensors=2 * count)
    bench.table("a call", rows)
    bench.end()


if __name__ == "__main__":
    main()
