# SPDX-License-Identifier: Apache-2.0
"""CacheManager: LLM-DataDist's blocking way to the op."""

from . import ops
from ._checks import INT64, UINT32, UINT64, check_int, check_type
from ._logging import logger
from ._products import check_served
from .cache import Cache
from .config import LLMConfig
from .status import LLMException, LLMParamInvalid, LLMStatusCode

_DEFAULT_TIMEOUT_MS = 1000


class CacheManager:
    """Copies between caches, and returns when the bytes are there.

    For code written for LLM-DataDist. Model code calls ``torch.ops.llm_datadist.copy_cache`` instead, which does not
    wait.

    Args:
        config: The settings; ``sync_kv_timeout`` is read when the manager is made.
    """

    def __init__(self, config: LLMConfig | None = None) -> None:
        if config is not None:
            check_type("config", config, LLMConfig)
        timeout = config.sync_kv_timeout if config is not None else None
        self._timeout_ms = _DEFAULT_TIMEOUT_MS if timeout is None else int(timeout)

    def copy_cache(
        self,
        dst: Cache,
        src: Cache,
        dst_batch_index: int = 0,
        src_batch_index: int = 0,
        offset: int = 0,
        size: int = -1,
        req_id: int | None = None,
    ) -> None:
        """Copies a slice of one row of ``src`` to a row of ``dst``, in every tensor, and waits for it.

        The arguments mean what they mean to ``ops.copy_cache``: ``offset`` and ``size`` are bytes, the same for every
        tensor. The contract is that of LLM-DataDist's page of ``CacheManager.copy_cache``.

        Args:
            dst: The cache to write to.
            src: The cache to read from; it may be ``dst``. As many tensors, and of the same type.
            dst_batch_index: The row to write to, a uint32.
            src_batch_index: The row to read from, a uint32.
            offset: Where the slice begins in each row, in bytes, a uint64.
            size: The length of the slice in bytes, or -1 for the rest of the source row, an int64.
            req_id: The request this call belongs to, a uint64. Log lines and errors of the call name it.

        Raises:
            TypeError: An argument of the wrong type.
            ValueError: A number that does not fit its integer type.
            LLMException: By ``status_code``. LLM_PARAM_INVALID (also a ValueError): the op refused the call, or one
                of the caches is a blocks cache; nothing was written. LLM_TIMEOUT: not done after ``sync_kv_timeout``;
                what the destination range holds is undefined. LLM_FAILED: the device or the runtime failed; the
                original error is the cause. LLM_FEATURE_NOT_ENABLED: a cache is on a chip that is not served.
        """
        check_type("dst", dst, Cache)
        check_type("src", src, Cache)
        check_int("dst_batch_index", dst_batch_index, UINT32)
        check_int("src_batch_index", src_batch_index, UINT32)
        check_int("offset", offset, UINT64)
        check_int("size", size, INT64)
        if req_id is not None:
            check_int("req_id", req_id, UINT64)
        request = "" if req_id is None else f" (req_id {req_id})"
        try:
            for name, cache in (("dst", dst), ("src", src)):
                if cache.is_blocks_cache:
                    raise LLMParamInvalid(f"copy_cache: {name} must be a contiguous cache, got a blocks cache{request}")
                check_served(cache.tensors[0].device)
            if offset > INT64[1]:
                raise LLMParamInvalid(f"copy_cache: offset ({offset}) lies beyond any row{request}")
            done = self._copy(dst, src, dst_batch_index, src_batch_index, offset, size, req_id)
            if not done:
                raise LLMException(
                    f"copy_cache: not done after sync_kv_timeout, {self._timeout_ms} ms; what the destination range "
                    f"holds is undefined{request}",
                    LLMStatusCode.LLM_TIMEOUT,
                )
        except LLMException as error:
            logger.error("%s", error)
            raise
        logger.debug(
            "copy_cache: cache %d row %d to cache %d row %d, offset %d, size %d%s",
            *(src.cache_id, src_batch_index, dst.cache_id, dst_batch_index, offset, size, request),
        )

    def _copy(
        self,
        dst: Cache,
        src: Cache,
        dst_batch_index: int,
        src_batch_index: int,
        offset: int,
        size: int,
        req_id: int | None,
    ) -> bool:
        """Calls the op, with its errors turned into LLMException. Returns whether the copy was done in time."""
        # A stacked cache and a list can be copied to one another, tensor by tensor.
        alike = dst.batch_dim == src.batch_dim
        try:
            return ops.copy_cache_blocking(
                dst.tensors if alike else dst.separate_tensors,
                src.tensors if alike else src.separate_tensors,
                dst_batch_index,
                src_batch_index,
                offset,
                size,
                # The schema carries an int64; the op reads its bits as a uint64.
                req_id if req_id is None or req_id <= INT64[1] else req_id - 2**64,
                batch_dim=dst.batch_dim if alike else dst.cache_desc.batch_dim,
                timeout_ms=self._timeout_ms,
            )
        except ValueError as error:
            raise LLMParamInvalid(str(error)) from error
        except RuntimeError as error:
            raise LLMException(str(error), LLMStatusCode.LLM_FAILED) from error
