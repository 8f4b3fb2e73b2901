# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: times taken side by side, bars, and the words about the machine."""

import argparse
import os
import statistics
import sys
from pathlib import Path

import torch
from torch.utils import cpp_extension

from llm_datadist_torch._native.machine import processor
from llm_datadist_torch.bench.timing import Samples as Times


def median(times: Times, name: str) -> float:
    return statistics.median(times[name])


def ratio(times: Times, op: str, contender: str) -> float:
    """Time of the contender / time of the op, the median over the rounds: paired, so that drift cancels."""
    return statistics.median(theirs / ours for theirs, ours in zip(times[contender], times[op], strict=True))


def mark(reached: float, bar: float) -> str:
    """A ratio as it is printed, with a mark where it is below its bar."""
    return f"{reached:.2f}" + ("" if reached >= bar else f" (below {bar:g})")


def load_yardsticks() -> None:
    """Compiles yardstick.cpp for this machine and registers torch.ops.yardstick."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # ninja is where python is
    cpp_extension.load(
        name="yardstick",
        sources=[str(Path(__file__).parent / "yardstick.cpp")],
        extra_cflags=["-O3", "-march=native", "-std=c++20", "-fopenmp"],
        is_python_module=False,
    )


def machine() -> str:
    """What the numbers hang on."""
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {processor()}, {os.cpu_count()} cores"


def start(description: str) -> argparse.Namespace:
    """Reads the arguments that every benchmark has, sets the threads, and prints what the numbers hang on."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: rougher numbers")
    parser.add_argument("--threads", type=int, help="torch's intra-op threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    print(f"{description}\n{machine()}, load {os.getloadavg()[0]:.1f}\n")
    return args


def effort(args: argparse.Namespace) -> tuple[int, float]:
    """Rounds and seconds of one point of the grid."""
    return (14, 0.7) if args.quick else (50, 4.0)
