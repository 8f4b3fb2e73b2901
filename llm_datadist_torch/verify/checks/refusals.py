# SPDX-License-Identifier: Apache-2.0
"""Wrong arguments are refused, and nothing is written."""

from collections.abc import Callable, Iterable
from functools import partial

import torch

from ... import Cache, CacheManager, LLMException, LLMStatusCode
from ...ops import copy_cache, copy_cache_batch
from ..caches import ROW, CheckedCache, require_served, separate, stacked, table
from ..registry import DoesNotHold, check, expect

BOTH = ("cpu", "npu")
Call = Callable[[], object]


def _expect_refused(calls: Iterable[tuple[Call, str]], *caches: CheckedCache) -> str:
    """Each call must raise ValueError with the text, and change no byte of the caches."""
    count = 0
    for call, text in calls:
        try:
            call()
        except ValueError as error:
            expect(text in str(error), f"refused without {text!r}: {error}")
        else:
            raise DoesNotHold(f"accepted, in place of a refusal with {text!r}")
        for cache in caches:
            cache.expect_model()
        count += 1
    return f"{count} calls"


@check(
    "refusals.numbers",
    "an index, offset or size outside its range is refused, with nothing written",
    used_by="serving code that catches ValueError",
    devices=BOTH,
)
def numbers(device: torch.device) -> str:
    dst, src = CheckedCache(separate(), device), CheckedCache(separate(), device, seed=1)
    wrong: tuple[tuple[tuple[int, ...], str], ...] = (
        ((4, 0), "dst_batch_index (4) out of range"),
        ((-1, 0), "dst_batch_index (-1) out of range"),
        ((0, 4), "src_batch_index (4) out of range"),
        ((0, 0, ROW), f"offset ({ROW})"),
        ((0, 0, -1), "offset (-1)"),
        ((0, 0, 0, 0), "size (0)"),
        ((0, 0, 0, -2), "size (-2)"),
        ((0, 0, 64, ROW), f"size ({ROW})"),
        ((0, 0, 64, 2**63 - 1), f"size ({2**63 - 1})"),
    )
    calls: list[tuple[Call, str]] = []
    for given, text in wrong:
        full = (*given, *(0, -1)[len(given) - 2 :])
        calls.append((partial(copy_cache, dst.tensors, src.tensors, *given), text))
        # The second row is wrong: the first one must not have been copied.
        batch = table([(1, 2, 0, -1), full])
        calls.append((partial(copy_cache_batch, dst.tensors, src.tensors, batch), "copies[1]"))
    return _expect_refused(calls, dst, src)


@check(
    "refusals.lists",
    "lists that do not match, dtypes that differ, rows that are not dense and a wrong batch_dim are refused",
    used_by="serving code that catches ValueError",
    devices=BOTH,
)
def lists(device: torch.device) -> str:
    dst, src = CheckedCache(separate(), device), CheckedCache(separate(), device, seed=1)
    d, s = dst.tensors, src.tensors
    calls: list[tuple[Call, str]] = [
        (lambda: copy_cache(d, s[:-1]), "src"),
        (lambda: copy_cache([], []), "dst"),
        (lambda: copy_cache(d, [*s[:-1], s[-1].view(torch.int16)]), f"src[{len(s) - 1}]"),
        (lambda: copy_cache([t[:, ::2] for t in d], [t[:, ::2] for t in s]), "dst[0]"),
        (lambda: copy_cache(d, s, batch_dim=2), "batch_dim (2)"),
        (lambda: copy_cache_batch(d, s, table([(0, 1, 0, -1)]).int()), "copies"),
        (lambda: copy_cache_batch(d, s, table([(0, 1, 0, -1)])[:, :3]), "copies"),
    ]
    return _expect_refused(calls, dst, src)


@check(
    "refusals.overlap",
    "ranges whose overlap would make the result depend on the order are refused, with nothing written",
    used_by="serving code that catches ValueError",
    devices=BOTH,
)
def overlap(device: torch.device) -> str:
    cache = CheckedCache(separate(), device)
    a, b = cache.tensors[:2]
    calls: list[tuple[Call, str]] = [
        (lambda: copy_cache([a, a], [a, b], 0, 1), "overlap"),
        (lambda: copy_cache([a, b], [b, a], 1, 1), "depend on the order"),
        (lambda: copy_cache_batch([a], [a], table([(0, 1, 0, -1), (0, 2, 0, -1)])), "copies["),
    ]
    return _expect_refused(calls, cache)


@check(
    "refusals.manager",
    "CacheManager refuses the same calls with LLM_PARAM_INVALID, with nothing written",
    used_by="code written for LLM-DataDist",
    devices=BOTH,
)
def manager(device: torch.device) -> str:
    require_served(device)
    dst, src = (CheckedCache(stacked(), device, seed=seed) for seed in range(2))
    to, of = (Cache.from_tensors(cache.tensors[0], batch_dim=1) for cache in (dst, src))
    wrong: tuple[tuple[int, ...], ...] = ((4, 0), (0, 4), (0, 0, ROW), (0, 0, 0, 0), (0, 0, 64, ROW))
    for given in wrong:
        try:
            CacheManager().copy_cache(to, of, *given)
        except LLMException as error:
            code = error.status_code
            expect(code is LLMStatusCode.LLM_PARAM_INVALID, f"refused {given} with {code}: {error}")
        else:
            raise DoesNotHold(f"accepted {given}")
        dst.expect_model()
        src.expect_model()
    return ""
