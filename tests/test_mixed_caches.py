# SPDX-License-Identifier: Apache-2.0
"""Caches whose tensors differ in shape and dtype: their descriptions, and the copies of CacheManager."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from utils import assert_same_bytes, cache, filled, reference_batch, reference_copy, refused, to_host

from llm_datadist_torch import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheManager,
    LayerSynchronizer,
    LLMStatusCode,
    Placement,
    TransferConfig,
)

invalid = partial(refused, LLMStatusCode.LLM_PARAM_INVALID)
# For each kind of model, the tensors of one layer: what follows the batch dimension, and the dtype.
KINDS: dict[str, list[tuple[tuple[int, ...], torch.dtype]]] = {
    "mla": [((16, 512), torch.bfloat16), ((16, 64), torch.bfloat16)],
    "int8_with_scales": [((16, 8, 32), torch.int8), ((16, 8), torch.float16)],
    "indexer": [((16, 576), torch.bfloat16), ((16, 128), torch.float8_e4m3fn), ((16, 1), torch.float32)],
    "state_space": [((3, 96), torch.bfloat16), ((4, 24, 16), torch.float32)],
}
# fmt: off
DTYPES = [
    dtype for dtype in sorted({v for v in vars(torch).values() if isinstance(v, torch.dtype)}, key=str)
    if not str(dtype).startswith("torch.q")  # the ops refuse what torch itself has quantized
]
# fmt: on


def layers(kind: str, batch: int, device: str, count: int = 2, seed: int = 0) -> list[Tensor]:
    tensors = KINDS[kind] * count
    return [
        filled(batch, *shape, dtype=dtype, device=device, seed=100 * seed + i)
        for i, (shape, dtype) in enumerate(tensors)
    ]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


class TestDescriptions:
    def test_one_for_each_run_of_equal_tensors(self) -> None:
        latent, rope = cache(3, 4, 512, dtype=torch.bfloat16), cache(2, 4, 64, dtype=torch.bfloat16)
        scales = cache(1, 4, 64, dtype=torch.float16)
        held = Cache.from_tensors([*latent, *rope, *scales])
        desc = partial(CacheDesc, placement=Placement.HOST)
        expected = (
            desc(3, (4, 512), torch.bfloat16),
            desc(2, (4, 64), torch.bfloat16),
            desc(1, (4, 64), torch.float16),
        )
        assert (held.cache_descs, held.cache_desc, held.num_tensors) == (expected, expected[0], 6)
        assert held.row_bytes == [1024] * 3 + [128] * 3
        assert held.tensors == held.unstacked == [*latent, *rope, *scales]
        assert held.tensor_addrs == [t.data_ptr() for t in held.tensors]
        assert "(4, 512)" in repr(held) and "(4, 64)" in repr(held)

    def test_equal_tensors_have_one(self) -> None:
        for held in (Cache.from_tensors(cache(3, 4, 8)), Cache.from_tensors(filled(3, 4, 8), batch_dim=1)):
            assert held.cache_descs == (held.cache_desc,)
            assert (held.num_tensors, held.row_bytes) == (3, [32] * 3)

    def test_other_numbers_of_dimensions(self) -> None:
        held = Cache.from_tensors([filled(2, 4, 8), filled(1, 4, 2, 3), filled(5, 4)], batch_dim=1)
        assert [desc.batch_size for desc in held.cache_descs] == [4, 4, 4]
        assert held.row_bytes == [64, 24, 20]

    def test_refusals_name_the_tensor(self) -> None:
        tensors = layers("mla", 4, "cpu")
        for text, wrong, batch_dim in (
            ("tensors[4] must have the batch size of tensors[0], 4, got 5", filled(5, 64), 0),
            ("tensors[4] must have the device of tensors[0], cpu, got meta", filled(4, 64).to("meta"), 0),
            ("batch_dim (1) out of range [0, 1), the dimensions of tensors[4]", filled(4), 1),
            ("tensors[4] must have dimensions, each greater than 0, got the shape (4, 0)", torch.empty(4, 0), 0),
        ):
            invalid(text, Cache.from_tensors, [*tensors, wrong], batch_dim=batch_dim)


class TestCopyCache:
    @pytest.mark.parametrize("part", [(0, -1), (3, 29)])
    def test_bytes(self, device: str, kind: str, part: tuple[int, int]) -> None:
        """With -1, each tensor copies the rest of its own row."""
        dst, src = layers(kind, 4, device), layers(kind, 2, device, seed=1)
        expected = [t for d, s in zip(dst, src, strict=True) for t in reference_copy([d], [s], 3, 1, *part)]
        CacheManager().copy_cache(Cache.from_tensors(dst), Cache.from_tensors(src), 3, 1, *part)
        assert_same_bytes(dst, expected)

    def test_refusals_write_nothing(self, device: str) -> None:
        manager, tensors = CacheManager(), layers("mla", 4, device)
        held, before = Cache.from_tensors(tensors), [to_host(t) for t in tensors]
        invalid("runs past the row of dst[1], 2048 bytes", manager.copy_cache, held, held, 1, 2, 0, 2049)
        other_dim = Cache.from_tensors(tensors, batch_dim=1)
        invalid("same batch_dim_index, got batch_dim_index 0 and 1", manager.copy_cache, held, other_dim, 1)
        assert_same_bytes(tensors, before)


class TestBlocks:
    @pytest.mark.parametrize("to_host_side", [True, False])
    def test_swap_blocks(self, device: str, kind: str, to_host_side: bool) -> None:
        on_device, on_host = layers(kind, 4, device), layers(kind, 6, "cpu", seed=1)
        src, dst = (on_device, on_host) if to_host_side else (on_host, on_device)
        expected = reference_batch(dst, src, [(3, 0, 0, -1), (0, 2, 0, -1)])
        held = [Cache.from_tensors(tensors, is_blocks_cache=True) for tensors in (src, dst)]
        CacheManager().swap_blocks(*held, {0: 3, 2: 0})
        assert_same_bytes(dst, expected)

    def test_another_block_size_names_the_tensor(self, device: str) -> None:
        tensors = layers("mla", 4, device)
        before = [to_host(t) for t in tensors]
        larger = [*tensors[:3], filled(4, 16, 128, dtype=torch.bfloat16, device=device)]
        src, dst = (Cache.from_tensors(side, is_blocks_cache=True) for side in (tensors, larger))
        text = "src_cache and dst_cache must have the same block size, got 2048 and 4096 bytes in tensors[3]"
        invalid(text, CacheManager().swap_blocks, src, dst, {0: 1})
        assert_same_bytes(tensors, before)


class Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        return True


@pytest.mark.parametrize(
    ("call", "name", "args", "blocks"),
    [
        ("pull_cache", "cache", lambda held: (CacheKey(1, 7), held), False),
        ("pull_blocks", "dst_cache", lambda held: (BlocksCacheKey(1), held, [0], [1]), True),
        ("push_cache", "src_cache", lambda held: (CacheKeyByIdAndIndex(1, 1), held), False),
        ("push_blocks", "src_cache", lambda held: (BlocksCacheKey(1), held, [0], [1]), True),
        ("transfer_cache_async", "src_cache", lambda held: (held, Ready(), [TransferConfig(1, [8] * 8)]), False),
    ],
)
def test_transfers_to_other_processes_are_refused(
    call: str, name: str, args: Callable[[Cache], tuple[Any, ...]], blocks: bool
) -> None:
    held = Cache.from_tensors([*cache(3, 4, 512), *cache(1, 4, 64)], is_blocks_cache=blocks)
    text = f"{call}: {name}: tensors[3] must have the shape and dtype of tensors[0], (4, 512) and torch.float32, got (4, 64)"
    invalid(text, getattr(CacheManager(), call), *args(held))


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_every_dtype(device: str) -> None:
    """All in one cache."""

    def tensor(dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
        """A tensor of random bytes, and its bytes."""
        raw = filled(4, 48, dtype=torch.uint8, device=device, seed=seed)
        return torch.empty(0, dtype=dtype, device=device).set_(raw.untyped_storage(), 0, (4, 48 // dtype.itemsize)), raw

    dst, src = ([tensor(dtype, 50 * side + i) for i, dtype in enumerate(DTYPES)] for side in (0, 1))
    expected = reference_copy([raw for _, raw in dst], [raw for _, raw in src], 3, 1, 5, 20)
    held = [Cache.from_tensors([tensor for tensor, _ in side]) for side in (dst, src)]
    assert [desc.torch_dtype for desc in held[0].cache_descs] == DTYPES
    assert held[0].row_bytes == [48] * len(DTYPES)
    CacheManager().copy_cache(*held, 3, 1, 5, 20)
    assert_same_bytes([raw for _, raw in dst], expected)
