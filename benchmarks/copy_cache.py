# SPDX-License-Identifier: Apache-2.0
"""copy_cache beside what one would write instead: `python benchmarks/copy_cache.py`.

Each way to copy is compared byte by byte before it is timed. Run it on an idle machine: large copies on the CPU share the
work among torch's intra-op threads, which wait for one another, on busy cores for a whole time slice of the scheduler.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from bench import Bench, Contenders
from torch import Tensor
from torch.utils import cpp_extension

from llm_datadist_torch import Cache, CacheManager, LLMConfig

copy_cache = torch.ops.llm_datadist.copy_cache

KIB, MIB = 2**10, 2**20
SIZES = [(160, 256), (160, 4 * KIB), (160, 64 * KIB), (160, MIB), (1, 256), (1, 64 * KIB)]  # tensors, bytes of a row
LARGE = [(1, MIB), (1, 16 * MIB), (1, 160 * MIB), (16, 256 * KIB)]
BATCH, DST_ROW, SRC_ROW = 4, 2, 1

# The places of dst and src, by the name of a layout.
ON_CPU = {"stacked": ("cpu", "cpu"), "list": ("cpu", "cpu")}
ON_NPU = {name: ("npu", "npu") for name in ("stacked", "views", "scattered")} | {
    f"{of} to {to}": (to, of)
    for to, of in (("npu", "pinned"), ("pinned", "npu"), ("npu", "pageable"), ("pageable", "npu"))
}

OP, EMPTY = "copy_cache", "an op that does nothing"


def tensors_of(layout: str, place: str, count: int, row: int, device: torch.device, backward: bool) -> list[Tensor]:
    """A side of a cache: one stacked tensor, separate tensors, or views of one buffer, with gaps of several sizes but
    for the layout views. No stride fits a forward and a backward list of these."""

    def filled(*shape: int) -> Tensor:
        tensor = torch.randint(256, shape, dtype=torch.uint8)
        return tensor.to(device) if place == "npu" else tensor.pin_memory() if place == "pinned" else tensor

    if layout == "stacked":
        return [filled(count, BATCH, row)]
    if layout == "list":
        return [filled(BATCH, row) for _ in range(count)]
    starts = [i * BATCH * row + (0 if layout == "views" else 64 * (8 * i + i * i % 7)) for i in range(count)]
    buffer = filled(starts[-1] + BATCH * row)
    views = [buffer[start : start + BATCH * row].view(BATCH, row) for start in starts]
    return views[::-1] if backward else views


class Case:
    """dst, src and the ways to copy a row from one to the other."""

    def __init__(self, layout: str, count: int, row: int, device: torch.device) -> None:
        self.device, self.stacked = device, layout == "stacked"
        places = (ON_CPU if device.type == "cpu" else ON_NPU)[layout]
        self.dst = tensors_of(layout, places[0], count, row, device, False)
        self.src = tensors_of(layout, places[1], count, row, device, layout not in ON_CPU | {"views": None})
        # One tensor for each row, where the cache is stacked too.
        self.to, self.of = (list(side[0]) if self.stacked else side for side in (self.dst, self.src))

    def ways(self) -> Contenders:
        dst, src, to, of, batch_dim = self.dst, self.src, self.to, self.of, int(self.stacked)
        manager = CacheManager(LLMConfig(sync_kv_timeout=60_000))
        caches = [Cache.from_tensors(t[0] if self.stacked else t, batch_dim=batch_dim) for t in (dst, src)]

        def loop() -> None:
            for d, s in zip(to, of, strict=True):
                d[DST_ROW].copy_(s[SRC_ROW], non_blocking=True)

        ways: Contenders = {
            OP: lambda: copy_cache(dst, src, DST_ROW, SRC_ROW, batch_dim=batch_dim),
            "CacheManager": lambda: manager.copy_cache(*caches, DST_ROW, SRC_ROW),
            "loop of copy_": loop,
        }
        if self.stacked:
            ways["strided copy_"] = lambda: dst[0][:, DST_ROW].copy_(src[0][:, SRC_ROW])
        else:
            ways["_foreach_copy_"] = lambda: torch._foreach_copy_([d[DST_ROW] for d in to], [s[SRC_ROW] for s in of])
        if self.device.type == "cpu":
            yardstick = torch.ops.yardstick
            ways[EMPTY] = lambda: yardstick.nothing(dst, src, DST_ROW, SRC_ROW, batch_dim=batch_dim)
            if self.stacked:
                ways["memcpy in C++"] = lambda: yardstick.copy_rows(dst[0], src[0], DST_ROW, SRC_ROW, False)
                ways["streaming stores in C++"] = lambda: yardstick.copy_rows(dst[0], src[0], DST_ROW, SRC_ROW, True)
            else:
                ways["NumPy loop"] = numpy_loop(to, of)
        elif not dst[0].is_cpu:
            if not src[0].is_cpu or src[0].is_pinned():
                ways["LLM-DataDist's pattern"] = pattern(to, of)
            if not src[0].is_cpu and find_spec("llm_datadist") is not None:
                ways["LLM-DataDist"] = original(to, of)
        return ways

    def error(self, way: Callable[[], object], bench: Bench) -> str:
        """Copies once. Returns what is wrong, or an empty text."""
        expected = [tensor.cpu().clone() for tensor in self.to]
        for wanted, to, of in zip(expected, self.to, self.of, strict=True):
            to[DST_ROW].copy_(torch.zeros(to[0].shape, dtype=torch.uint8))
            wanted[DST_ROW] = of.cpu()[SRC_ROW]
        try:
            way()
            bench.synchronize()
            right = all(torch.equal(to.cpu(), wanted) for to, wanted in zip(self.to, expected, strict=True))
        except Exception as error:  # a way that a device lacks is a line of the table
            return f"{type(error).__name__}: {error}"
        return "" if right else "wrong bytes"


def numpy_loop(dst: list[Tensor], src: list[Tensor]) -> Callable[[], object]:
    arrays = [(d.numpy(), s.numpy()) for d, s in zip(dst, src, strict=True)]

    def loop() -> None:
        for to, of in arrays:
            to[DST_ROW] = of[SRC_ROW]

    return loop


def pattern(dst: list[Tensor], src: list[Tensor]) -> Callable[[], object]:
    """Blocking copies in four threads, as LLM-DataDist makes them."""
    rows = [[t[row].data_ptr() for t in side] for side, row in ((dst, DST_ROW), (src, SRC_ROW))]
    size, from_host = dst[0][0].nbytes, src[0].is_cpu
    return lambda: torch.ops.yardstick_npu.blocking_copies(*rows, size, from_host)


@functools.cache  # a process can make one LLMDataDist, so all cases share it
def original_manager(device: torch.device) -> Any:
    """LLM-DataDist's own manager."""
    theirs: Any = importlib.import_module("llm_datadist")
    config, datadist = theirs.LLMConfig(), theirs.LLMDataDist(theirs.LLMRole.MIX, 0)
    config.device_id, config.enable_cache_manager, config.sync_kv_timeout = device.index or 0, True, 60_000
    datadist.init(config.generate_options())
    return datadist.cache_manager


def original(dst: list[Tensor], src: list[Tensor]) -> Callable[[], object]:
    theirs: Any = importlib.import_module("llm_datadist")
    manager, desc = (
        original_manager(dst[0].device),
        theirs.CacheDesc(len(dst), [*dst[0].shape], theirs.DataType.DT_UINT8),
    )
    caches = [manager.register_cache(desc, [tensor.data_ptr() for tensor in side]) for side in (dst, src)]
    return lambda: manager.copy_cache(*caches, DST_ROW, SRC_ROW)


def load_yardstick(device: torch.device) -> None:
    """Compiles C++ code that bounds the op, for this machine: torch.ops.yardstick, torch.ops.yardstick_npu."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # ninja is where python is
    name = "yardstick" if device.type == "cpu" else "yardstick_npu"
    options: dict[str, Any] = {"extra_cflags": ["-O3", "-march=native", "-std=c++20", "-fopenmp"]}
    if device.type != "cpu":
        folders = os.environ["LD_LIBRARY_PATH"].split(":")
        options["extra_include_paths"] = [str(Path(find_spec("torch_npu").origin).parent / "include")]
        options["extra_ldflags"] = [*(f"-L{folder}" for folder in folders if folder), "-lascendcl"]
    cpp_extension.load(name, [str(Path(__file__).with_name(f"{name}.cpp"))], is_python_module=False, **options)


def measured(bench: Bench, case: Case, **labels: object) -> list[dict[str, Any]]:
    ways = case.ways()
    errors = {name: "" if name == EMPTY else case.error(way, bench) for name, way in ways.items()}
    rows = bench.rows(bench.times({name: way for name, way in ways.items() if not errors[name]}), OP, **labels)
    if bench.device.type != "cpu":
        from npu_work import counted  # needs the runtime

        rows = [row | counted(ways[row["way"]]) for row in rows]
    return rows + [{**labels, "way": name, "error": error} for name, error in errors.items() if error]


@torch.inference_mode()  # what a server runs under, and where views cost least
def main() -> int:
    bench = Bench("copy_cache, and what one would write instead")
    load_yardstick(bench.device)
    rows: list[dict[str, Any]] = []
    on_cpu = bench.device.type == "cpu"
    for layout in ON_CPU if on_cpu else ON_NPU:
        for count, row in bench.few(SIZES + LARGE if on_cpu and layout == "stacked" else SIZES):
            case = Case(layout, count, row, bench.device)
            rows += measured(bench, case, caches=layout, tensors=count, **{"bytes of a row": row})
    bench.table("a row of each tensor", rows)
    bench.end()
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
