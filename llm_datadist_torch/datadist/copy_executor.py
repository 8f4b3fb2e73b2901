# SPDX-License-Identifier: Apache-2.0
"""Runs the blocking ops on caches: one at a time, within the timeout, with LLM-DataDist's errors."""

import functools
import time
from collections.abc import Callable
from typing import Any

import torch

from .. import ops
from .cache import Cache
from .checks import ANY_INT, check_int
from .fork import ForkSafeLock
from .memory import check_served
from .status import LLMException, LLMStatusCode, llm_error, param_invalid


class CopyExecutor:
    """Runs the copies of one manager, one after the other.

    Args:
        timeout_ms: Milliseconds that a copy may take, including the wait for the copy before it.
    """

    def __init__(self, timeout_ms: int) -> None:
        self._timeout_ms = timeout_ms
        self._lock = ForkSafeLock()
        self._closed = False

    def close(self) -> None:
        """Waits for the running copy, and refuses new ones.

        A signal handler or a destructor that interrupts a copy cannot wait for it. That copy is refused after the
        handler returns, or completes if it already holds its tensors.
        """
        with self._lock.current:
            self._closed = True

    def copy(self, op: Callable[..., bool], dst: tuple[str, Cache], src: tuple[str, Cache], *args: Any) -> None:
        """Calls an op with the tensors of two caches.

        Args:
            op: The op. Takes the tensors of dst and of src, ``args``, ``batch_dim`` and ``timeout_ms``; returns False
                if it timed out.
            dst: The cache to write to, with its name in messages.
            src: The cache to read from, with its name in messages.
            args: What else the op takes.

        Raises:
            LLMException: LLM_KV_CACHE_NOT_EXIST for a cache that has ended, LLM_FEATURE_NOT_ENABLED on a chip that is
                not served, LLM_PARAM_INVALID if the op refuses the call, LLM_FAILED for its other errors, LLM_TIMEOUT,
                LLM_ENGINE_FINALIZED after ``close``.
        """
        lock, timeout, begin = self._lock.current, self._timeout_ms / 1000, time.monotonic()
        try:
            # In the block, because a signal handler may raise as soon as the lock is held: Note [Interrupts] in registry.py.
            done = lock.acquire(timeout=timeout)
            if done:
                if self._closed:
                    raise llm_error(LLMStatusCode.LLM_ENGINE_FINALIZED, "the manager is finalized")
                tensors, batch_dim = _tensors_of(dst, src)
                left = self._timeout_ms - int((time.monotonic() - begin) * 1000)
                done = op(*tensors, *args, batch_dim=batch_dim, timeout_ms=max(1, left))
        except LLMException:
            raise
        except ValueError as error:
            raise param_invalid(str(error)) from error
        except (RuntimeError, MemoryError) as error:  # std::bad_alloc becomes a MemoryError
            raise llm_error(LLMStatusCode.LLM_FAILED, str(error)) from error
        finally:
            try:  # noqa: SIM105  (suppress would be a call before the release, where a signal handler may raise)
                lock.release()
            except RuntimeError:
                pass  # this thread did not acquire it
        if not done:
            raise llm_error(
                LLMStatusCode.LLM_TIMEOUT,
                f"not done after sync_kv_timeout, {self._timeout_ms} ms; what the destination range holds is undefined",
            )

    def copy_rows(
        self, argument: str, dst: tuple[str, Cache], src: tuple[str, Cache], rows: list[tuple[int, int]]
    ) -> None:
        """Copies whole rows, all in one call. Raises the errors of ``copy``.

        Checks the rows itself: the op's error would name a row of the ``copies`` table, which the caller has not seen.

        Args:
            argument: The name of the caller's argument that gave the rows, for messages.
            dst: The cache to write to, with its name in messages.
            src: The cache to read from, with its name in messages.
            rows: For each copy, the row to write and the row to read.
        """
        check_block = functools.partial(check_int, f"a block of {argument}", limits=ANY_INT)
        rows = [(check_block(target), check_block(source)) for target, source in rows]

        def op(into: list[torch.Tensor], out_of: list[torch.Tensor], **kwargs: int) -> bool:
            # Checked after the caches: a cache that has ended is refused as such, whatever the rows are.
            copies = _copies_of(argument, dst, src, rows)
            return ops.copy_cache_batch_blocking(into, out_of, copies, None, **kwargs)

        self.copy(op, dst, src)


def _copies_of(
    argument: str, dst: tuple[str, Cache], src: tuple[str, Cache], rows: list[tuple[int, int]]
) -> torch.Tensor:
    """The rows as ``copies`` of the op. Refuses blocks of different sizes, unknown ones, and those with two sources."""
    read, written = src[1].row_bytes, dst[1].row_bytes
    if read != written:
        index = [a == b for a, b in zip(read, written, strict=True)].index(False)
        raise param_invalid(
            f"{src[0]} and {dst[0]} must have the same block size, got {read[index]} and {written[index]} bytes in "
            f"tensors[{index}]"
        )
    for side, (name, cache) in enumerate((dst, src)):
        blocks = cache.cache_desc.batch_size
        for pair in rows:
            if not 0 <= pair[side] < blocks:
                raise param_invalid(f"{argument}: block {pair[side]} out of range [0, {blocks}), the blocks of {name}")
    source_of = dict(rows)
    for target, source in rows if len(source_of) < len(rows) else ():
        if source_of[target] != source:
            raise param_invalid(
                f"{argument}: block {target} would be written from block {source} and from block {source_of[target]}; "
                "a block can be written from one source only"
            )
    copies = [(target, source, 0, -1) for target, source in source_of.items()]
    return torch.tensor(copies, dtype=torch.int64, device="cpu").view(-1, 4)


def _tensors_of(dst: tuple[str, Cache], src: tuple[str, Cache]) -> tuple[list[list[torch.Tensor]], int]:
    """The tensors of both caches as an op takes them, and their batch_dim. Refuses caches that cannot be copied."""
    # Between a stacked cache and a list, the op gets the tensors of both as lists.
    alike = dst[1].batch_dim == src[1].batch_dim
    both = []
    for name, cache in (dst, src):
        # Read once, because another thread may end the cache.
        tensors = cache.tensors if alike else cache.unstacked
        if not tensors:
            raise llm_error(
                LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, f"{name}: cache {cache.cache_id} was deallocated or unregistered"
            )
        check_served(tensors[0].device)
        both.append(tensors)
    for name, of_dst, of_src in (
        ("num_tensors", dst[1].num_tensors, src[1].num_tensors),
        ("batch_dim_index", dst[1].cache_desc.batch_dim, src[1].cache_desc.batch_dim),
    ):
        if of_dst != of_src:
            raise param_invalid(f"{dst[0]} and {src[0]} must have the same {name}, got {name} {of_dst} and {of_src}")
    return both, dst[1].batch_dim if alike else dst[1].cache_desc.batch_dim
