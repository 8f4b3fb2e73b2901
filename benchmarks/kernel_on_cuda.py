# SPDX-License-Identifier: Apache-2.0
"""The kernel for copies within an NPU on a CUDA device, beside what CUDA and torch have: `python benchmarks/kernel_on_cuda.py`.

It shows the design on hardware: one launch over tables of addresses. It needs torch with CUDA and triton, and not this
package: the op has no CUDA kernel. Times are those of the device, in a CUDA graph. The tables lie on the device, as the
runtime of an NPU puts them there with the arguments of a launch.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from itertools import chain, pairwise, starmap
from pathlib import Path
from types import ModuleType

import torch
import triton
from cuda.bindings import runtime as cudart
from tabulate import tabulate
from torch import Tensor
from triton.testing import do_bench_cudagraph

TENSORS = 160
# A GPU hides the time of a load by many programs on a processor, and wants small tiles. A vector core of an NPU does so by
# two buffers in one program, and wants long ones.
TILE_BYTES, WARPS, PROGRAMS_OF_A_PROCESSOR = 8192, 4, 8


def load_kernel() -> ModuleType:
    """The module of the kernel, without the hint that triton-ascend alone knows."""
    source = Path(__file__).parents[1] / "llm_datadist_torch/_native/kernel.py"
    path = Path(tempfile.mkdtemp()) / "kernel.py"  # triton reads the source of its functions
    path.write_text(source.read_text().replace(", care_padding=False", ""))
    spec = importlib.util.spec_from_file_location("kernel", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kernel = load_kernel()


def launch_of(dst: Sequence[Tensor], src: Sequence[Tensor], copies: Sequence[tuple[int, int]]) -> Callable[[], object]:
    """One launch of `copy_pieces`, which copies whole rows (to, from) of caches with rows of one size."""
    row = dst[0][0].nbytes
    programs = PROGRAMS_OF_A_PROCESSOR * torch.cuda.get_device_properties(0).multi_processor_count
    even = len(dst) * len(copies) * row // (4 * programs) // 512 * 512
    longest = max(4096, min(even, TILE_BYTES))
    pieces = [
        [to * row + at, of * row + at, min(longest, row - at)] for to, of in copies for at in range(0, row, longest)
    ]
    bases = [
        [to.data_ptr() - dst[0].data_ptr(), of.data_ptr() - src[0].data_ptr()] for to, of in zip(dst, src, strict=True)
    ]
    work = len(bases) * len(pieces)
    ends = [work * program // programs for program in range(programs + 1)]
    shares = [[*divmod(begin, len(pieces)), end - begin] for begin, end in pairwise(ends) if end > begin]
    words_of_bases = [[to // 4, of // 4, 0, len(pieces)] for to, of in bases]
    words_of_pieces = [[number // 4 for number in piece] for piece in pieces]
    tables = [torch.tensor(each, dtype=torch.int64).cuda() for each in (shares, words_of_bases, words_of_pieces)]
    return lambda: kernel.copy_pieces[(len(shares),)](dst[0], src[0], *tables, TILE=TILE_BYTES // 4, num_warps=WARPS)


def launch_by_device_table(dst: Tensor, src: Tensor, copies: Tensor) -> Callable[[], object]:
    """One launch of `copy_rows`, which reads rows of `copies` on the device. The caches are stacked."""
    tensors, batch, row = dst.shape[0], dst.shape[1], dst[0, 0].nbytes
    pitch = batch * row
    places = [[at, row, 0, 1, at, row, 0, 1, batch, row, batch, row] for at in range(0, tensors * pitch, pitch)]
    table, skipped = torch.tensor(places).cuda(), torch.zeros(2, dtype=torch.int32).cuda()
    tiles = -(-row // TILE_BYTES)
    work = tensors * len(copies) * tiles
    programs = min(work, PROGRAMS_OF_A_PROCESSOR * torch.cuda.get_device_properties(0).multi_processor_count)
    arguments = dst.view(torch.int8), src.view(torch.int8), table, copies, skipped, len(copies), 4, tiles, work
    return lambda: kernel.copy_rows[(programs,)](*arguments, TILE=TILE_BYTES, num_warps=WARPS)


def strided_copy(dst: Tensor, src: Tensor, to: int, of: int) -> Callable[[], object]:
    row, pitch, kind = dst[0, 0].nbytes, dst[0].nbytes, cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    addresses = dst[0, to].data_ptr(), src[0, of].data_ptr()
    return lambda: cudart.cudaMemcpy2DAsync(
        addresses[0], pitch, addresses[1], pitch, row, len(dst), kind, torch.cuda.current_stream().cuda_stream
    )


def stacked(batch: int, row: int) -> tuple[Tensor, Tensor]:
    dst, src = (torch.randint(2**31, (TENSORS, batch, row // 4), dtype=torch.int32, device="cuda") for _ in range(2))
    return dst, src


def measured(ways: dict[str, Callable[[], object]], dst: Sequence[Tensor], **labels: object) -> list[dict[str, object]]:
    """A row for each way. All must copy the same bytes as the last one does."""
    before = [each.clone() for each in dst]
    results, us = [], []
    for way in ways.values():
        for each, content in zip(dst, before, strict=True):
            each.copy_(content)
        way()
        results.append([each.clone() for each in dst])
        us.append(do_bench_cudagraph(way, rep=50, return_mode="median") * 1e3)
    for name, result in zip(ways, results, strict=True):
        if not all(map(torch.equal, result, results[-1])):
            raise RuntimeError(f"{name} has copied other bytes")
    return [
        {**labels, "way": name, "us": time, "time / kernel's": time / us[0]}
        for name, time in zip(ways, us, strict=True)
    ]


def rows_of_one_cache(row: int) -> list[dict[str, object]]:
    dst, src = stacked(4, row)
    ways = {
        "kernel": launch_of(dst, src, [(2, 1)]),
        "cudaMemcpy2DAsync": strided_copy(dst, src, 2, 1),
        "dst[:, to].copy_(src[:, of])": lambda: dst[:, 2].copy_(src[:, 1]),
    }
    return measured(ways, [dst], bytes=row)


def rows_of_a_list(row: int) -> list[dict[str, object]]:
    # In storages of their own, as they are in a model.
    dst, src = ([each.clone() for each in cache] for cache in stacked(4, row))
    to, of = [each[2] for each in dst], [each[1] for each in src]
    ways = {
        "kernel": launch_of(dst, src, [(2, 1)]),
        "_foreach_copy_": lambda: torch._foreach_copy_(to, of),
        "a loop of copy_": lambda: [each.copy_(other) for each, other in zip(to, of, strict=True)],
    }
    return measured(ways, dst, bytes=row)


def blocks(count: int, row: int) -> list[dict[str, object]]:
    dst, src = stacked(1000, row)
    to, of = torch.randperm(1000)[:count], torch.randperm(1000)[:count]
    table = torch.stack([to, of, torch.zeros_like(to), torch.full_like(to, -1)], dim=1)
    cuda_to, cuda_of = to.cuda(), of.cuda()
    ways = {
        "kernel": launch_of(dst, src, list(zip(to.tolist(), of.tolist(), strict=True))),
        "kernel, table on the device": launch_by_device_table(dst, src, table.cuda()),
        "index_select, index_copy_": lambda: dst.index_copy_(1, cuda_to, src.index_select(1, cuda_of)),
        "dst[:, to] = src[:, of]": lambda: dst.__setitem__((slice(None), cuda_to), src[:, cuda_of]),
    }
    return measured(ways, [dst], blocks=count, bytes=row)


def main() -> None:
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    row_bytes = 256, 4096, 65_536, 1_048_576
    counts = (64, 4096), (64, 32_768), (1000, 4096), (1000, 32_768)
    for title, cases in (
        ("A row of each of 160 tensors, stacked", map(rows_of_one_cache, row_bytes)),
        ("A row of each of 160 tensors, a list", map(rows_of_a_list, row_bytes)),
        ("Blocks of 160 tensors, stacked", starmap(blocks, counts)),
    ):
        rows = list(chain.from_iterable(cases))
        print(f"\n{title}\n" + tabulate(rows, headers="keys", floatfmt=".3g", intfmt=","), flush=True)


if __name__ == "__main__":
    main()
