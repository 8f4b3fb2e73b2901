# SPDX-License-Identifier: Apache-2.0
"""from_transformers on the caches of transformers. See test_examples.py for beam search with a static cache."""

import pytest
import torch
from transformers import Cache as TransformersCache
from transformers import DynamicCache, EncoderDecoderCache, LlamaConfig, QuantizedCache, StaticCache
from transformers.cache_utils import DynamicLayer
from utils import assert_same_bytes, filled, load_example, reference_copy, refused

from llm_datadist_torch import CacheManager, LLMStatusCode
from llm_datadist_torch.transformers import from_transformers

CONFIG = LlamaConfig(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32)
SLIDING = LlamaConfig(
    num_hidden_layers=2, layer_types=["full_attention", "sliding_attention"], sliding_window=4, hidden_size=32
)


def of(held: TransformersCache) -> list[torch.Tensor]:
    return [tensor for layer in held.layers for tensor in (layer.keys, layer.values)]


def computed(held: TransformersCache, batch: int = 3, tokens: int = 6) -> TransformersCache:
    """The cache after a model with two layers has computed some tokens."""
    for layer in range(2):
        held.update(filled(batch, 2, tokens, 8, seed=layer), filled(batch, 2, tokens, 8, seed=2 + layer), layer)
    return held


class TestWraps:
    def test_static_cache(self) -> None:
        """A copy into the wrapped cache is a copy into the cache that the model goes on with."""
        running, prefilled = (computed(StaticCache(CONFIG, max_cache_len=8), *n) for n in ((4, 5), (1, 7)))
        held = from_transformers(running)
        assert all(a is b for a, b in zip(held.unstacked, of(running), strict=True))
        assert (held.batch_dim, held.cache_desc.shape, held.num_tensors) == (0, (4, 2, 8, 8), 4)
        expected = reference_copy(of(running), of(prefilled), 2, 0)
        CacheManager().copy_cache(held, from_transformers(prefilled), 2, 0)
        assert_same_bytes(of(running), expected)

    def test_dynamic_cache(self) -> None:
        held = computed(DynamicCache())
        assert all(a is b for a, b in zip(from_transformers(held).unstacked, of(held), strict=True))

    def test_encoder_decoder_cache(self) -> None:
        both = computed(DynamicCache(), tokens=6), computed(DynamicCache(), tokens=9)
        held = from_transformers(EncoderDecoderCache(*both)).unstacked
        assert all(a is b for a, b in zip(held, of(both[0]) + of(both[1]), strict=True))


class OwnLayer(DynamicLayer):
    pass


OTHER = "of cache must be a StaticLayer or a DynamicLayer, got"
NONE = "of cache must have keys and values, got none: no token was computed yet"
REFUSED = {
    f"layer 1 {OTHER} StaticSlidingWindowLayer": computed(StaticCache(SLIDING, max_cache_len=8)),
    f"layer 1 {OTHER} DynamicSlidingWindowLayer": computed(DynamicCache(config=SLIDING)),
    f"layer 0 {OTHER} Fp8QuantizedLayer": QuantizedCache("fp8", CONFIG),
    f"layer 0 {OTHER} OwnLayer: use Cache.from_tensors": TransformersCache(layers=[OwnLayer()]),
    f"layer 0 {NONE}": StaticCache(CONFIG, max_cache_len=8),
    f"layer 2 {NONE}": EncoderDecoderCache(computed(DynamicCache()), DynamicCache(config=CONFIG)),
    "tensors must hold at least one tensor, got an empty list": DynamicCache(),
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: str) -> None:
    refused(LLMStatusCode.LLM_PARAM_INVALID, text, from_transformers, REFUSED[text])


def test_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="cache must be a Cache of transformers, got Cache"):
        from_transformers(from_transformers(computed(DynamicCache())))


@pytest.mark.slow
def test_beams_of_an_encoder_decoder_model() -> None:
    """Reordered in place, self-attention and cross-attention: the sequences of transformers' own cache."""
    from transformers import T5Config, T5ForConditionalGeneration  # takes seconds

    torch.manual_seed(0)
    own = load_example("beam_search").InPlaceCache
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    model, prompts = T5ForConditionalGeneration(config).eval(), torch.randint(1, 64, (2, 9))
    settings = {"num_beams": 4, "max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    sequences = [
        model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            cache=EncoderDecoderCache(kind(config, max_cache_len=16), kind(config, max_cache_len=9)),
            disable_compile=True,
            **settings,
        )
        for kind in (StaticCache, own)
    ]
    assert torch.equal(*sequences)
