# SPDX-License-Identifier: Apache-2.0
"""Copies within an NPU by a task for each row and by the kernel: `python benchmarks/kernel.py`.

Prints the constants for csrc/npu/device_kernel.cpp. With --tiny, a stand-in takes the place of the kernel.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import Bench

from llm_datadist_torch import copy_cache, warm_up
from llm_datadist_torch._native.warm_up import KernelUse, use_kernel

ROWS, BYTES = (1, 4, 16, 64, 160, 1024), (256, 4096, 65_536, 1_048_576)
BY_TASKS, BY_KERNEL = "a task for each row", "the kernel"


@torch.inference_mode()
def main() -> None:
    bench = Bench("Copies within the device")
    torch.npu.set_device(bench.device)
    device = torch.npu.current_device()
    if bench.args.tiny:
        sys.path.append(str(Path(__file__).parents[1] / "tests/npu"))
        from kernel_stand_in import load_stand_in

        load_stand_in(device)
    elif not warm_up(device):
        sys.exit("there is no kernel to measure: the warning above says why")
    rows: list[dict[str, Any]] = []
    us: dict[tuple[str, int, int], float] = {}
    for count in bench.few(ROWS):
        for size in bench.few(BYTES):
            dst, src = ([torch.zeros(count, 2, size, dtype=torch.uint8, device=bench.device)] for _ in range(2))

            def by(use: KernelUse, dst: list = dst, src: list = src) -> Callable[[], None]:
                def call() -> None:
                    use_kernel(device, use)
                    copy_cache(dst, src, 1, 0, batch_dim=1)

                return call

            samples = bench.times({BY_TASKS: by(KernelUse.NEVER), BY_KERNEL: by(KernelUse.ALWAYS)})
            for row in bench.rows(samples, BY_KERNEL, rows=count, bytes=size):
                rows.append(row)
                us[row["way"], count, size] = row["us"]
    use_kernel(device, KernelUse.NEVER)
    bench.table("a row of each tensor of a stacked cache", rows)
    if not bench.args.tiny:
        print_constants(us)
    bench.end()


def print_constants(us: dict[tuple[str, int, int], float]) -> None:
    one, many, short, long = ROWS[0], ROWS[-1], BYTES[0], BYTES[-1]
    task, piece = ((us[way, many, short] - us[way, one, short]) / (many - one) for way in (BY_TASKS, BY_KERNEL))
    print(f"constexpr double kTaskTime = {task:.2g};")
    print(f"constexpr double kTaskSpeed = {many * long / (us[BY_TASKS, many, long] - many * task):.2g};")
    print(f"constexpr double kLaunchTime = {us[BY_KERNEL, one, short]:.2g};")
    print(f"constexpr double kPieceTime = {piece:.2g};")
    print(f"constexpr double kKernelSpeed = {many * long / us[BY_KERNEL, many, long]:.2g};")


if __name__ == "__main__":
    main()
