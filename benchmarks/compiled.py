# SPDX-License-Identifier: Apache-2.0
"""What a call costs in a compiled graph, against the eager call: `python benchmarks/compiled.py [--quick]`.

The graph is as small as can be, a copy and nothing else, and the row changes from call to call. What a compiled call
adds is the same for any graph: its guards are checked, once for each tensor, and its inputs are handed over.
"""

import itertools

import torch
from bench import effort, median, start
from tabulate import tabulate
from torch import Tensor

from llm_datadist_torch.bench.timing import in_turns

TENSORS, BATCH, ROW = 160, 8, 256


def copy_rows(dst: list[Tensor], src: list[Tensor], row: int, batch_dim: int) -> None:
    torch.ops.llm_datadist.copy_cache(dst, src, row, 1, batch_dim=batch_dim)


@torch.inference_mode()
def main() -> None:
    args = start(f"copy_cache of {TENSORS} x {ROW} B, eager and as a compiled graph")
    table = []
    for stacked in (False, True):
        shape = (TENSORS, BATCH, ROW) if stacked else (BATCH, ROW)
        dst, src = ([torch.zeros(shape, dtype=torch.uint8) for _ in range(1 if stacked else TENSORS)] for _ in "ds")
        torch._dynamo.reset()
        compiled = torch.compile(copy_rows, fullgraph=True)
        for row in range(2, BATCH):  # compiles for one row, then for any
            compiled(dst, src, row, int(stacked))
        rows = itertools.cycle(range(2, BATCH))
        times = in_turns(
            {
                "eager": lambda: copy_rows(dst, src, next(rows), int(stacked)),  # noqa: B023
                "compiled": lambda: compiled(dst, src, next(rows), int(stacked)),  # noqa: B023
            },
            *effort(args),
        )
        eager, graph = (median(times, name) * 1e6 for name in ("eager", "compiled"))
        layout = "stacked" if stacked else "list"
        table.append([layout, len(dst) + len(src), f"{eager:.1f}", f"{graph:.1f}", f"{graph - eager:.1f}"])
    headers = ["cache", "tensors handed over", "eager, us", "compiled, us", "added, us"]
    print(tabulate(table, headers, disable_numparse=True, colalign=["right"] * len(headers)))


if __name__ == "__main__":
    main()
