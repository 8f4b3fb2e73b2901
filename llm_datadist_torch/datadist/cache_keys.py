# SPDX-License-Identifier: Apache-2.0
"""Keys of caches: other processes ask for a cache by its key."""

from collections.abc import Hashable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, overload

from .cache_desc import CacheDesc
from .checks import INT64, UINT32, UINT64, as_int, check_int, check_type, describe
from .status import param_invalid

NO_ID = UINT64[1]
"""The number that stands for no request and for no prefix."""


def _set_fields(key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Sets the fields of a key, with the checks and errors of LLM-DataDist instead of Python's.

    The written signatures of the keys are for type checkers. Python would raise TypeError for a missing or an unknown
    argument; users of LLM-DataDist expect LLM_PARAM_INVALID.
    """
    name, parameters = type(key).__name__, {parameter.name: parameter for parameter in fields(key)}
    if len(args) > len(parameters):
        raise param_invalid(f"Unsupported: {name} takes {len(parameters)} arguments, got {len(args)}")
    values = dict(zip(parameters, args, strict=False))
    for keyword, value in kwargs.items():
        parameter = "cluster_id" if keyword == "prompt_cluster_id" and hasattr(type(key), keyword) else keyword
        if parameter not in parameters or parameter in values:
            raise param_invalid(f"Unsupported: {name} takes each of {', '.join(parameters)} once, got {keyword}")
        values[parameter] = value
    for parameter, described in parameters.items():
        value = values.get(parameter, described.default)
        if value is MISSING:
            raise param_invalid(f"{parameter} is required by {name}")
        if as_int(value) is None:
            raise TypeError(f"{name}: {parameter} only support int, got {describe(value)}")
        number = check_int(f"{name}: {parameter}", value, described.metadata.get("limits", UINT64))
        object.__setattr__(key, parameter, number)


class _PromptClusterId:
    """``prompt_cluster_id``, LLM-DataDist's other name for ``cluster_id``."""

    cluster_id: int

    @property
    def prompt_cluster_id(self) -> int:
        """Another name for ``cluster_id``."""
        return self.cluster_id


@dataclass(frozen=True, init=False)
class CacheKey(_PromptClusterId):
    """The key of one batch entry of a cache.

    Args:
        cluster_id: The cluster that has the cache, a uint64; also called ``prompt_cluster_id``. Ignored when a cache is
            allocated or registered: it is always the local cluster.
        req_id: The request in the batch entry, a uint64. 2**64 - 1 means none: such a key, without a prefix_id, marks
            a batch entry that is not used.
        model_id: The model, a uint64.
        prefix_id: The prefix in the batch entry instead of a request, a uint64. 2**64 - 1 means none.

    Raises:
        TypeError: A value that is not an int.
        ValueError: A number that does not fit a uint64.
        LLMException: LLM_PARAM_INVALID for a missing or an unknown argument.
    """

    cluster_id: int
    req_id: int
    model_id: int = 0
    prefix_id: int = NO_ID

    @overload
    def __init__(self, cluster_id: int, req_id: int, model_id: int = 0, prefix_id: int = NO_ID) -> None: ...
    @overload
    def __init__(self, *, prompt_cluster_id: int, req_id: int, model_id: int = 0, prefix_id: int = NO_ID) -> None: ...
    def __init__(self, *args: int, **kwargs: int) -> None:
        _set_fields(self, args, kwargs)

    @property
    def identity(self) -> Hashable:
        """What a manager distinguishes keys by, or None for a key that only marks an unused batch entry.

        The req_id does not count if there is a prefix_id.
        """
        if self.prefix_id != NO_ID:
            return ("prefix", self.prefix_id, self.model_id)
        return None if self.req_id == NO_ID else ("request", self.req_id, self.model_id)


@dataclass(frozen=True, init=False)
class BlocksCacheKey(_PromptClusterId):
    """The key of a blocks cache.

    Args:
        cluster_id: The cluster that has the cache, a uint64; also called ``prompt_cluster_id``.
        model_id: The model, a uint64.

    Raises:
        TypeError, ValueError, LLMException: As for ``CacheKey``.
    """

    cluster_id: int
    model_id: int = 0

    @overload
    def __init__(self, cluster_id: int, model_id: int = 0) -> None: ...
    @overload
    def __init__(self, *, prompt_cluster_id: int, model_id: int = 0) -> None: ...
    def __init__(self, *args: int, **kwargs: int) -> None:
        _set_fields(self, args, kwargs)

    @property
    def identity(self) -> Hashable:
        """What a manager distinguishes keys by."""
        return ("blocks", self.model_id)


@dataclass(frozen=True)
class CacheKeyByIdAndIndex:
    """A batch entry of a cache, named by the id of the cache.

    Args:
        cluster_id: The cluster that has the cache, a uint64.
        cache_id: The id of the cache there, an int64.
        batch_index: The batch entry, a uint32.

    Raises:
        TypeError, ValueError, LLMException: As for ``CacheKey``.
    """

    cluster_id: int
    cache_id: int = field(metadata={"limits": INT64})
    batch_index: int = field(default=0, metadata={"limits": UINT32})

    if not TYPE_CHECKING:  # type checkers derive the signature from the fields

        def __init__(self, *args: int, **kwargs: int) -> None:
            _set_fields(self, args, kwargs)


def checked_keys(cache_desc: CacheDesc, cache_keys: Sequence[CacheKey]) -> Sequence[CacheKey]:
    """The keys of a cache: CacheKeys, at most as many as the cache has batch entries."""
    check_type("cache_desc", cache_desc, CacheDesc)
    check_type("cache_keys", cache_keys, Sequence)
    for index, key in enumerate(cache_keys):
        check_type(f"cache_keys[{index}]", key, CacheKey)
    if len(cache_keys) > cache_desc.batch_size:
        raise param_invalid(
            f"cache_keys must hold at most {cache_desc.batch_size} keys (the batch size), got {len(cache_keys)}"
        )
    return cache_keys


def checked_key(blocks_cache_key: BlocksCacheKey | None) -> Sequence[BlocksCacheKey]:
    """The keys of a blocks cache: the one given, or none."""
    if blocks_cache_key is None:
        return ()
    check_type("blocks_cache_key", blocks_cache_key, BlocksCacheKey)
    return (blocks_cache_key,)
