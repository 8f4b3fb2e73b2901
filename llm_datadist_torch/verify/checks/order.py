# SPDX-License-Identifier: Apache-2.0
"""Streams: the op does not wait, and runs after earlier and before later work."""

import os
import threading
import time

import torch

from ...ops import copy_cache, copy_cache_batch
from ..caches import BATCH, CheckedCache, scattered, stacked, synchronize, table, views
from ..registry import DoesNotHold, NotTried, check, expect
from ..runtime import SYNC_TIMEOUT, call
from ..streams import Hold, held

MODEL_CODE = "every call in a model: without it, the ops of the model and the copies race"


@check("order.hold", "a stream can be kept busy for a known time", used_by="the checks of order alone")
def hold(device: torch.device) -> str:
    stream = torch.get_device_module(device).current_stream(device)
    synchronize(device)
    begin = time.monotonic()
    work = Hold(device, stream, 0.3)
    synchronize(device)
    seconds = time.monotonic() - begin
    if seconds < 0.15:
        raise DoesNotHold(f"the stream was busy for {seconds:.2f} s, for {work.seconds:.2f} s of work")
    return f"{seconds:.2f} s, for {work.seconds:.2f} s of work"


@check(
    "order.no_wait",
    "copy_cache returns while the stream is busy with earlier work",
    used_by="overlap of host and device",
)
def no_wait(device: torch.device) -> str:
    pairs = [
        (CheckedCache(layout, device, to), CheckedCache(layout, device, of, seed=1))
        for layout in (stacked(), scattered())
        for to, of in (("device", "device"), ("device", "pinned"), ("pinned", "device"), ("device", "pageable"))
    ]
    with held(device) as hold:
        for dst, src in pairs:
            dst.copy_model(src, [(1, 2, 0, -1), (3, 0, 0, 64)])
            copy_cache(dst.tensors, src.tensors, 1, 2, batch_dim=dst.layout.batch_dim)
            copy_cache_batch(dst.tensors, src.tensors, table([(3, 0, 0, 64)]), batch_dim=dst.layout.batch_dim)
        measured = hold.expect_running(f"{2 * len(pairs)} calls returned")
    for dst, _ in pairs:
        dst.expect_model()
    return measured


@check(
    "order.no_wait_for_queue",
    "copy_cache returns while torch_npu's task queue is blocked",
    used_by="overlap of host and device",
)
def no_wait_for_queue(device: torch.device) -> str:
    if os.environ.get("TASK_QUEUE_ENABLE", "1") == "0":
        raise NotTried("TASK_QUEUE_ENABLE=0: there is no queue")
    dst, src = CheckedCache(stacked(), device), CheckedCache(stacked(), device, seed=1)
    pageable = CheckedCache(stacked(), device, "pageable", seed=2)
    with held(device) as hold:
        # The runtime copies to pageable memory in the call, which is in the thread of the queue.
        copy_cache(pageable.tensors, src.tensors, 0, 0, batch_dim=1)
        begin = time.monotonic()
        copy_cache(dst.tensors, src.tensors, 1, 2, batch_dim=1)
        seconds = time.monotonic() - begin
    expect(seconds < hold.seconds / 2, f"returned after {seconds * 1e3:.0f} ms of {hold.seconds * 1e3:.0f} ms")
    dst.copy_model(src, [(1, 2, 0, -1)])
    dst.expect_model()
    return f"returned after {seconds * 1e3:.2f} ms"


@check("order.one_stream", "copies come after earlier and before later work of the current stream", used_by=MODEL_CODE)
def one_stream(device: torch.device) -> str:
    for layout in (stacked(), scattered(), views()):
        dst, src, first, last = (CheckedCache(layout, device, seed=seed) for seed in range(4))
        with held(device, seconds=0.1):
            for to, of in zip(src.buffers, first.buffers, strict=True):
                to.copy_(of)
            copy_cache(dst.tensors, src.tensors, 1, 2, batch_dim=layout.batch_dim)
            for to, of in zip(src.buffers, last.buffers, strict=True):
                to.copy_(of)
        dst.copy_model(first, [(1, 2, 0, -1)])
        dst.expect_model()
    return ""


@check("order.running_stream", "the same in 500 steps on a stream that is not kept busy", used_by=MODEL_CODE)
def running_stream(device: torch.device) -> str:
    dst, src = (torch.zeros(2, 4, 1024, dtype=torch.uint8).to(device) for _ in range(2))
    result = torch.empty(500, 2, 1024, dtype=torch.uint8, device=device)
    for step in range(len(result)):
        src.fill_(step % 251)
        copy_cache([dst], [src], step % 4, 3 - step % 4, batch_dim=1)
        result[step].copy_(dst[:, step % 4])
        dst.fill_(255)
    expected = torch.arange(len(result)).remainder(251).to(torch.uint8).view(-1, 1, 1).expand(result.shape)
    wrong = torch.nonzero((result.cpu() != expected).flatten(1).any(1)).flatten().tolist()
    expect(not wrong, f"{len(wrong)} of {len(result)} steps are wrong, the first is {wrong[:1]}")
    return ""


@check(
    "order.two_streams", "a stream that waits for an event runs its copies after what was recorded", used_by=MODEL_CODE
)
def two_streams(device: torch.device) -> str:
    npu = torch.get_device_module(device)
    one, two = npu.Stream(device), npu.Stream(device)
    for layout in (stacked(), scattered(backward=True)):
        last, middle, first = (CheckedCache(layout, device, seed=seed) for seed in range(3))
        last.copy_model(first, [(row, row, 0, -1) for row in range(BATCH)])
        with held(device, one, seconds=0.2):
            with npu.stream(one):
                for row in range(BATCH):
                    copy_cache(middle.tensors, first.tensors, row, row, batch_dim=layout.batch_dim)
                written = npu.Event()
                written.record(one)
            with npu.stream(two):
                two.wait_event(written)
                for row in range(BATCH):
                    copy_cache(last.tensors, middle.tensors, row, row, batch_dim=layout.batch_dim)
        last.expect_model()
    return ""


@check(
    "order.independent_streams",
    "a busy stream does not delay another stream",
    used_by="the side stream of CacheManager; prefetching beside a model",
)
def independent_streams(device: torch.device) -> str:
    npu = torch.get_device_module(device)
    busy, free = npu.Stream(device), npu.Stream(device)
    dst, src = CheckedCache(stacked(), device), CheckedCache(stacked(), device, seed=1)
    with held(device, busy) as hold:
        with npu.stream(free):
            copy_cache(dst.tensors, src.tensors, 1, 2, batch_dim=1)
        free.synchronize()
        measured = hold.expect_running("the copy on the other stream was done")
    return measured


@check("order.threads", "threads with streams of their own copy at the same time", used_by="servers with many threads")
def threads(device: torch.device) -> str:
    npu = torch.get_device_module(device)
    caches = [(CheckedCache(stacked(), device, seed=i), CheckedCache(stacked(), device, seed=9 + i)) for i in range(4)]

    def copy(dst: CheckedCache, src: CheckedCache) -> None:
        npu.set_device(device)
        with npu.stream(npu.Stream(device)) as stream:
            for step in range(100):
                copy_cache(dst.tensors, src.tensors, step % BATCH, (step + 1) % BATCH, batch_dim=1)
        del stream

    workers = [threading.Thread(target=copy, args=pair) for pair in caches]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    synchronize(device)
    for dst, src in caches:
        dst.copy_model(src, [(row, (row + 1) % BATCH, 0, -1) for row in range(BATCH)])
        dst.expect_model()
    return ""


@check(
    "acl.sync_timeout",
    f"aclrtSynchronizeStreamWithTimeout returns {SYNC_TIMEOUT} on a busy stream, in time; the stream goes on",
    used_by="the timeout of CacheManager",
)
def sync_timeout(device: torch.device) -> str:
    npu = torch.get_device_module(device)
    stream = npu.Stream(device)
    with held(device, stream) as hold:
        begin = time.monotonic()
        code = call("aclrtSynchronizeStreamWithTimeout", stream.npu_stream, 20)
        seconds = time.monotonic() - begin
        measured = hold.expect_running(f"it returned {code}")
        shortest = call("aclrtSynchronizeStreamWithTimeout", stream.npu_stream, 1)
    expect(code == shortest == SYNC_TIMEOUT, f"returned {code} for 20 ms and {shortest} for 1 ms")
    expect(seconds >= 0.02, f"returned after {seconds * 1e3:.1f} ms, too early for 20 ms")
    code = call("aclrtSynchronizeStreamWithTimeout", stream.npu_stream, 60_000)
    if code != 0:
        raise DoesNotHold(f"returned {code} when the work was done")
    return measured
