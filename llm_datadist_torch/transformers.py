# SPDX-License-Identifier: Apache-2.0
"""Caches of Hugging Face transformers as caches of this package. Importing it needs transformers, which it does not install."""

from transformers import Cache as TransformersCache
from transformers import EncoderDecoderCache
from transformers.cache_utils import DynamicLayer, StaticLayer

from .datadist.cache import Cache
from .datadist.checks import describe
from .datadist.status import param_invalid


def from_transformers(cache: TransformersCache) -> Cache:
    """Wraps the tensors of a transformers cache as a Cache, without a copy.

    The keys and the values of each layer follow one another, each ``[batch, heads, tokens, head_dim]``; those of
    cross-attention come last. The numbers of tokens seen belong to transformers, and no copy changes them.

    Args:
        cache: A StaticCache; a DynamicCache, whose tensors are only those of now, because every step makes new ones; or an
            EncoderDecoderCache of such. Its layers hold tokens already, or are made by ``early_initialization``.

    Returns:
        A cache with ``batch_dim`` 0 unless it is stacked. To copy tokens, pass its ``unstacked`` to ``copy_tokens`` with
        ``token_dim=2``.

    Raises:
        TypeError: ``cache`` is not a transformers cache.
        LLMException: LLM_PARAM_INVALID for a layer of another kind than StaticLayer and DynamicLayer: sliding windows
            hold tokens in another order, quantised and other layers hold more than keys and values. Also for a layer
            without tensors yet, and as for ``Cache.from_tensors``.
    """
    if not isinstance(cache, TransformersCache):
        raise TypeError(f"cache must be a Cache of transformers, got {describe(cache)}")
    parts = [cache]
    if isinstance(cache, EncoderDecoderCache):
        parts = [cache.self_attention_cache, cache.cross_attention_cache]
    layers = [layer for part in parts for layer in part.layers]
    for index, layer in enumerate(layers):
        # Of this very type: subclasses keep other state, which a copy of keys and values would leave behind.
        if type(layer) not in (StaticLayer, DynamicLayer):
            raise param_invalid(
                f"layer {index} of cache must be a StaticLayer or a DynamicLayer, got {type(layer).__name__}: use "
                "Cache.from_tensors for tensors whose rows are all that is to be copied"
            )
        if not layer.is_initialized:
            raise param_invalid(
                f"layer {index} of cache must have keys and values, got none: no token was computed yet"
            )
    return Cache.from_tensors([tensor for layer in layers for tensor in (layer.keys, layer.values)])
