# SPDX-License-Identifier: Apache-2.0
"""Graph capture, replay, and torch.compile."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...ops import copy_cache, copy_cache_batch
from ..caches import CheckedCache, Layout, scattered, stacked, synchronize, table
from ..registry import DoesNotHold, NotTried, check

BOTH = ("cpu", "npu")
CAPTURE = "decoding steps in captured graphs"


def _graph(device: torch.device, call: Callable[[], object]) -> Callable[[], object]:
    """Captures a call. Returns the replay."""
    npu = torch.get_device_module(device)
    if not hasattr(npu, "NPUGraph"):
        raise NotTried("torch_npu has no NPUGraph")
    graph = npu.NPUGraph()
    try:
        with npu.graph(graph):
            call()
    except RuntimeError as error:
        if "TASK_QUEUE_ENABLE" in str(error):
            raise NotTried(str(error)) from error
        raise
    replay: Callable[[], object] = graph.replay
    return replay


def _write(cache: CheckedCache, seed: int) -> None:
    """Writes other bytes to a cache and its model."""
    generator = torch.Generator().manual_seed(seed)
    for buffer, model in zip(cache.buffers, cache.model, strict=True):
        model.copy_(torch.randint(256, model.shape, dtype=torch.uint8, generator=generator))
        buffer.copy_(model)


def _expect_replays(dst: CheckedCache, src: CheckedCache, copies: Sequence[tuple[int, int, int, int]]) -> None:
    """Captures the copies, and compares three replays on other bytes with the model."""
    batch_dim = dst.layout.batch_dim

    def call() -> None:
        if len(copies) == 1:
            copy_cache(dst.tensors, src.tensors, *copies[0], batch_dim=batch_dim)
        else:
            copy_cache_batch(dst.tensors, src.tensors, table(copies), batch_dim=batch_dim)

    replay = _graph(dst.device, call)
    dst.expect_model()  # the capture copies nothing
    for seed in (10, 20, 30):
        _write(src, seed)
        synchronize(dst.device)
        dst.copy_model(src, copies)
        replay()
        dst.expect_model()


def _check_capture(name: str, layout: Layout) -> None:
    @check(f"graph.{name}", f"captured copies are replayed on new bytes, for the layout {name}", used_by=CAPTURE)
    def run(device: torch.device) -> str:
        dst, src = CheckedCache(layout, device), CheckedCache(layout, device, seed=1)
        _expect_replays(dst, src, [(1, 2, 0, -1)])
        _expect_replays(dst, dst, [(0, 1, 0, -1), (1, 0, 0, -1), (3, 2, 64, 128)])
        return ""


_check_capture("stacked", stacked())
_check_capture("scattered", scattered())


@check(
    "graph.pinned", "captured copies between pinned memory and the device are replayed on new bytes", used_by=CAPTURE
)
def pinned(device: torch.device) -> str:
    for to, of in (("device", "pinned"), ("pinned", "device")):
        for layout in (stacked(), scattered()):
            dst, src = CheckedCache(layout, device, to), CheckedCache(layout, device, of, seed=1)
            _expect_replays(dst, src, [(1, 2, 0, -1)])
            _expect_replays(dst, src, [(0, 1, 0, -1), (3, 2, 64, 128)])
    return ""


@check(
    "graph.pageable_is_refused", "pageable memory is refused during a capture, with nothing written", used_by=CAPTURE
)
def pageable_is_refused(device: torch.device) -> str:
    for to, of in (("device", "pageable"), ("pageable", "device")):
        dst, src = CheckedCache(stacked(), device, to), CheckedCache(stacked(), device, of, seed=1)
        refusals: list[str] = []

        def call(dst: CheckedCache = dst, src: CheckedCache = src, refusals: list[str] = refusals) -> None:
            try:
                copy_cache(dst.tensors, src.tensors, 1, 2, batch_dim=1)
            except ValueError as error:
                refusals.append(str(error))

        _graph(device, call)
        if not refusals or "pinned memory" not in refusals[0]:
            raise DoesNotHold(f"{of} to {to} was accepted")
        dst.expect_model()
    return ""


def _expect_compiled(device: torch.device, backend: str) -> None:
    """Compiles a copy, and compares calls on other bytes and rows with the model."""
    torch._dynamo.reset()
    dst, src = CheckedCache(stacked(), device), CheckedCache(stacked(), device, seed=1)
    for tensor in (*dst.tensors, *src.tensors):
        torch._dynamo.mark_static_address(tensor)

    def function(to: list[Tensor], of: list[Tensor], row: int) -> None:
        copy_cache(to, of, row, 1, batch_dim=1)

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for seed, row in enumerate((2, 2, 3, 3, 2)):
        _write(src, seed)
        dst.copy_model(src, [(row, 1, 0, -1)])
        compiled(dst.tensors, src.tensors, row)
        dst.expect_model()


@check(
    "compile.aot_eager", "torch.compile with aot_eager, without a graph break", used_by="compiled models", devices=BOTH
)
def aot_eager(device: torch.device) -> str:
    _expect_compiled(device, "aot_eager")
    return ""


@check(
    "compile.inductor",
    "torch.compile with Inductor, without a graph break",
    used_by="compiled models",
    devices=("cpu",),
)
def inductor(device: torch.device) -> str:
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _expect_compiled(device, "inductor")
    except Exception as error:
        if isinstance(error, InvalidCxxCompiler) or isinstance(error.__cause__, InvalidCxxCompiler):
            raise NotTried("Inductor finds no C++ compiler") from error
        raise
    return ""


@check(
    "compile.npugraph_ex",
    "torch.compile with npugraph_ex: one graph, replayed on new bytes",
    used_by="compiled models on NPUs",
)
def npugraph_ex(device: torch.device) -> str:
    import torch_npu  # noqa: F401

    if "npugraph_ex" not in torch._dynamo.list_backends(exclude_tags=()):
        raise NotTried("torch_npu has no backend npugraph_ex")
    _expect_compiled(device, "npugraph_ex")
    return ""
