# SPDX-License-Identifier: Apache-2.0
"""CacheManager: blocks until its own copies are done, keeps its timeout, and stays in order with the stream."""

import time

import torch

from ... import Cache, CacheDesc, CacheManager, DataType, LLMConfig, LLMException, LLMStatusCode, Placement
from ..caches import CheckedCache, require_served, separate, stacked
from ..registry import DoesNotHold, NotTried, check, expect
from ..streams import held

BOTH = ("cpu", "npu")
MANAGER = "CacheManager.copy_cache, copy_blocks, swap_blocks"
TIMEOUT_MS = 50


def _manager(device: torch.device, timeout_ms: int = 60_000) -> CacheManager:
    require_served(device)
    return CacheManager(LLMConfig(sync_kv_timeout=timeout_ms, device_id=device.index or 0))


def _pair(device: torch.device) -> tuple[CheckedCache, CheckedCache, Cache, Cache]:
    dst, src = (CheckedCache(stacked(), device, seed=seed) for seed in range(2))
    return dst, src, Cache.from_tensors(dst.tensors[0], batch_dim=1), Cache.from_tensors(src.tensors[0], batch_dim=1)


@check("manager.copies", "CacheManager.copy_cache returns when the bytes are copied", used_by=MANAGER, devices=BOTH)
def copies(device: torch.device) -> str:
    dst, src, to, of = _pair(device)
    manager = _manager(device)
    manager.copy_cache(to, of, 1, 2, 64, 128)
    dst.copy_model(src, [(1, 2, 64, 128)])
    dst.expect_model()
    for memory in ("pinned", "pageable"):
        host = CheckedCache(separate(), device, memory, seed=2)
        manager.copy_cache(Cache.from_tensors(host.tensors), of, 1, 2)
        host.copy_model(src, [(1, 2, 0, -1)])
        for tensor, model in zip(host.buffers, host.model, strict=True):  # without waiting for the device
            expect(torch.equal(tensor, model), f"{memory} memory does not have the bytes when the call has returned")
        manager.copy_cache(to, Cache.from_tensors(host.tensors), 3, 1)
        dst.copy_model(host, [(3, 1, 0, -1)])
        dst.expect_model()
    return ""


@check(
    "manager.blocks",
    "allocated caches are on the device, and copy_blocks and swap_blocks copy within and between them",
    used_by=MANAGER,
    devices=BOTH,
)
def blocks(device: torch.device) -> str:
    manager = _manager(device)
    on_device, on_host = (
        CacheDesc(3, (8, 256), DataType.DT_FLOAT16, placement) for placement in (Placement.DEVICE, Placement.HOST)
    )
    first = manager.allocate_blocks_cache(on_device)
    (tensor,) = first.tensors
    has_npu = hasattr(torch, "npu")
    if device.type == "npu" or not has_npu:
        expect(tensor.device.type == device.type, f"the cache is on {tensor.device}")
    model = torch.arange(tensor.numel()).remainder(1000).to(torch.float16).view(tensor.shape)
    tensor.copy_(model)
    manager.copy_blocks(first, {0: [1, 2], 3: [4]})
    model[:, 1] = model[:, 2] = model[:, 0].clone()
    model[:, 4] = model[:, 3]
    expect(torch.equal(tensor.cpu(), model), "wrong bytes after copy_blocks")
    second = CacheManager(LLMConfig(sync_kv_timeout=60_000)).allocate_blocks_cache(on_host)
    manager.swap_blocks(first, second, {7: 0, 4: 1})
    expect(torch.equal(second.tensors[0][:, :2], model[:, [7, 4]]), "wrong bytes after swap_blocks to the host")
    manager.swap_blocks(second, first, {1: 5})
    model[:, 5] = model[:, 4]
    expect(torch.equal(tensor.cpu(), model), "wrong bytes after swap_blocks to the device")
    return ""


@check("manager.after_earlier_work", "the copies come after the earlier work of the current stream", used_by=MANAGER)
def after_earlier_work(device: torch.device) -> str:
    dst, src, to, of = _pair(device)
    manager = _manager(device)
    manager.copy_cache(of, of, 0, 0)
    late = CheckedCache(stacked(), device, seed=5)
    with held(device):
        src.tensors[0].copy_(late.tensors[0])
        manager.copy_cache(to, of, 1, 2)
    dst.copy_model(late, [(1, 2, 0, -1)])
    dst.expect_model()
    return ""


@check(
    "manager.timeout",
    f"behind work that takes longer, a call raises LLM_TIMEOUT after sync_kv_timeout ({TIMEOUT_MS} ms)",
    used_by=MANAGER,
)
def timeout(device: torch.device) -> str:
    _, _, to, of = _pair(device)
    hasty = _manager(device, TIMEOUT_MS)
    _manager(device).copy_cache(to, of, 0, 0)  # makes the side stream
    with held(device, seconds=1.0) as hold:
        begin = time.monotonic()
        try:
            hasty.copy_cache(to, of, 1, 2)
        except LLMException as error:
            expect(error.status_code is LLMStatusCode.LLM_TIMEOUT, f"raised {error}")
        else:
            raise DoesNotHold("no timeout")
        seconds = time.monotonic() - begin
        hold.expect_running("the timeout came")
    expect(seconds >= TIMEOUT_MS / 1000, f"raised too early, after {seconds * 1e3:.0f} ms")
    return f"raised after {seconds * 1e3:.0f} ms"


@check(
    "manager.after_timeout",
    "a copy that timed out comes before later work of the stream; then the manager works as before",
    used_by=MANAGER,
)
def after_timeout(device: torch.device) -> str:
    dst, src, to, of = _pair(device)
    patient, last = _manager(device), CheckedCache(stacked(), device, seed=7)
    patient.copy_cache(to, to, 0, 0)
    with held(device, seconds=0.5):
        try:
            _manager(device, TIMEOUT_MS).copy_cache(to, of, 1, 2)
        except LLMException:
            dst.tensors[0].copy_(last.tensors[0])
        else:
            raise NotTried("the call did not time out")
    dst.model[0].copy_(last.model[0])
    dst.expect_model()
    patient.copy_cache(to, of, 3, 1)
    dst.copy_model(src, [(3, 1, 0, -1)])
    dst.expect_model()
    return ""


@check("manager.other_streams", "work of other streams does not delay a call", used_by=MANAGER)
def other_streams(device: torch.device) -> str:
    dst, src, to, of = _pair(device)
    manager = _manager(device)
    manager.copy_cache(to, to, 0, 0)
    busy = torch.get_device_module(device).Stream(device)
    with held(device, busy) as hold:
        manager.copy_cache(to, of, 1, 2)
        measured = hold.expect_running("the call returned")
    dst.copy_model(src, [(1, 2, 0, -1)])
    dst.expect_model()
    return measured
