# SPDX-License-Identifier: Apache-2.0
"""Times of a call: on the device by events, on the host until it returns, and until the bytes are there."""

import random
import statistics
import time
from collections.abc import Callable
from timeit import repeat, timeit
from typing import NamedTuple

import torch

Contenders = dict[str, Callable[[], object]]
Samples = dict[str, list[float]]


class Times(NamedTuple):
    """Medians of one call, in seconds.

    Attributes:
        device: On the device, by events around many calls; on the CPU, the same as ``host``.
        host: Until the call returns.
        total: One call on an idle device, until its bytes are there.
    """

    device: float
    host: float
    total: float


def in_turns(contenders: Contenders, rounds: int, seconds: float) -> Samples:
    """Seconds of one call of each contender in each round: at most so many rounds, and no new one after so long."""
    # timeit (perf_counter, no garbage collection) and not torch.utils.benchmark.Timer, which sets one thread and times
    # one statement to its end before the next: here each round takes one sample of every contender, so that drift hits
    # all alike, in shuffled order: who always follows the same one finds what that one left in the cache.
    # A sample is as many calls as take 1 ms, ten thousand times what the clock resolves.
    numbers = {name: max(1, round(3e-3 / min(repeat(call, number=3)))) for name, call in contenders.items()}
    names = list(contenders)
    samples: Samples = {name: [] for name in names}
    end = time.perf_counter() + seconds
    shuffle = random.Random(0).sample
    for turn in range(rounds):
        for name in shuffle(names, len(names)):
            samples[name].append(timeit(contenders[name], number=numbers[name]) / numbers[name])
        if turn > 0 and time.perf_counter() > end:  # two rounds at least
            break
    return samples


def measure(contenders: Contenders, device: torch.device, rounds: int, seconds: float) -> dict[str, Times]:
    """The times of each contender. They take turns, in shuffled order."""
    if device.type == "cpu":
        medians = {name: statistics.median(taken) for name, taken in in_turns(contenders, rounds, seconds).items()}
        return {name: Times(median, median, median) for name, median in medians.items()}
    samples: dict[str, list[Times]] = {name: [] for name in contenders}
    numbers = {name: _calls(call, device) for name, call in contenders.items()}
    end = time.perf_counter() + seconds
    shuffle = random.Random(0).sample
    for turn in range(rounds):
        for name in shuffle(list(contenders), len(contenders)):
            samples[name].append(_sample(contenders[name], device, numbers[name]))
        if turn > 0 and time.perf_counter() > end:
            break
    return {
        name: Times(*(statistics.median(parts) for parts in zip(*taken, strict=True)))
        for name, taken in samples.items()
    }


def _calls(call: Callable[[], object], device: torch.device) -> int:
    """As many calls as take about 20 ms, and at most 50: many would fill torch_npu's task queue."""
    call()
    return max(1, min(50, round(20e-3 / _sample(call, device, 1).total)))


def _sample(call: Callable[[], object], device: torch.device, number: int) -> Times:
    npu = torch.get_device_module(device)
    npu.synchronize(device)
    begin = time.perf_counter()
    call()
    returned = time.perf_counter() - begin
    npu.synchronize(device)
    total = time.perf_counter() - begin
    before, after = npu.Event(enable_timing=True), npu.Event(enable_timing=True)
    before.record()
    for _ in range(number):
        call()
    after.record()
    npu.synchronize(device)
    return Times(before.elapsed_time(after) / 1e3 / number, returned, total)
