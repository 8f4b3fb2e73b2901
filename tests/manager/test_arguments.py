# SPDX-License-Identifier: Apache-2.0
"""What CacheManager itself refuses: Python types, LLM-DataDist's integer types and kinds of caches."""

import logging
import re
from enum import IntEnum

import pytest
import torch
from manager_utils import desc
from utils import assert_same_bytes, cache, filled, nothing_written, reference_copy

from llm_datadist_torch import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheManager,
    DataType,
    LLMException,
    LLMStatusCode,
    Placement,
)


class TestCopyCache:
    def setup_method(self) -> None:
        self.dst, self.src = (Cache.from_tensors(cache(2, 4, 8, seed=seed)) for seed in (0, 1))

    def refused(self, error: type[Exception], text: str, *args: object, **kwargs: object) -> Exception:
        with nothing_written(*self.dst.tensors), pytest.raises(error, match=re.escape(text)) as refusal:
            CacheManager().copy_cache(*args, **kwargs)
        return refusal.value

    @pytest.mark.parametrize("wrong", [None, 1, "cache", [torch.zeros(4, 8)]], ids=lambda wrong: type(wrong).__name__)
    def test_caches_of_another_type(self, wrong: object) -> None:
        self.refused(TypeError, "dst must be Cache, got", wrong, self.src)
        self.refused(TypeError, "src must be Cache, got", self.dst, wrong)

    def test_messages_print_no_tensors(self) -> None:
        error = self.refused(TypeError, "dst must be Cache", [torch.zeros(4, 8)] * 80, self.src)
        assert str(error) == "copy_cache: dst must be Cache, got list"

    @pytest.mark.parametrize("name", ["dst_batch_index", "src_batch_index", "offset", "size", "req_id"])
    @pytest.mark.parametrize("wrong", [True, 1.0, "1", [1]], ids=repr)
    def test_numbers_of_another_type(self, name: str, wrong: object) -> None:
        self.refused(TypeError, f"{name} must be int, got {type(wrong).__name__}", self.dst, self.src, **{name: wrong})

    def test_int_subclasses_are_ints(self, caplog: pytest.LogCaptureFixture) -> None:
        """An IntEnum for every number, also in blocks and descriptions. Messages have the number."""
        number = IntEnum("number", {"ZERO": 0, "ONE": 1, "FOUR": 4, "EIGHT": 8})
        expected = reference_copy(self.dst.tensors, self.src.tensors, 1, 0, 4, 8)
        with caplog.at_level(logging.DEBUG, "LLM_DATADIST"):
            CacheManager().copy_cache(
                self.dst, self.src, number.ONE, number.ZERO, number.FOUR, number.EIGHT, number.EIGHT
            )
        assert_same_bytes(self.dst.tensors, expected)
        assert "offset 4, size 8 (req_id 8)" in caplog.text
        self.refused(LLMException, "(req_id 1)", self.dst, self.src, number.FOUR, req_id=number.ONE)

        described = CacheDesc(number.ONE, [number.FOUR, number.EIGHT], DataType.DT_INT8, Placement.HOST, number.ZERO)
        blocks = CacheManager().allocate_blocks_cache(described)
        blocks.tensors[0].copy_(filled(1, 4, 8, dtype=torch.int8))
        CacheManager().copy_blocks(blocks, {number.ZERO: [number.ONE]})
        assert torch.equal(blocks.tensors[0][0, 1], blocks.tensors[0][0, 0])

    @pytest.mark.parametrize("name", ["dst_batch_index", "src_batch_index", "offset", "size"])
    def test_none_for_a_number(self, name: str) -> None:
        self.refused(TypeError, f"{name} must be int, got NoneType", self.dst, self.src, **{name: None})

    @pytest.mark.parametrize(
        ("name", "value", "limits"),
        [
            *(
                (name, value, [0, 2**32 - 1])
                for name in ("dst_batch_index", "src_batch_index")
                for value in (-1, 2**32)
            ),
            *((name, value, [0, 2**64 - 1]) for name in ("offset", "req_id") for value in (-1, 2**64)),
            *(("size", value, [-(2**63), 2**63 - 1]) for value in (-(2**63) - 1, 2**63)),
        ],
    )
    def test_numbers_outside_their_integer_type(self, name: str, value: int, limits: list[int]) -> None:
        error = self.refused(ValueError, f"{name} ({value}) out of range {limits}", self.dst, self.src, **{name: value})
        assert not isinstance(error, LLMException)

    @pytest.mark.parametrize("offset", [2**63, 2**64 - 1])
    def test_offset_above_int64(self, offset: int) -> None:
        text = f"copy_cache: offset ({offset}) must be at most {2**63 - 1}: no row is longer (req_id 7)"
        error = self.refused(LLMException, text, self.dst, self.src, offset=offset, req_id=7)
        assert error.status_code is LLMStatusCode.LLM_PARAM_INVALID

    @pytest.mark.parametrize("side", ["dst", "src"])
    def test_blocks_cache(self, side: str) -> None:
        blocks = Cache.from_tensors(cache(2, 4, 8), is_blocks_cache=True)
        caches = {"dst": self.dst, "src": self.src, side: blocks}
        error = self.refused(
            LLMException,
            f"copy_cache: {side} must be a contiguous cache, got a blocks cache",
            caches["dst"],
            caches["src"],
        )
        assert error.status_code is LLMStatusCode.LLM_PARAM_INVALID

    def test_stacked_caches_of_different_num_tensors(self) -> None:
        two, one = (Cache.from_tensors(filled(count, 4, 8), batch_dim=1) for count in (2, 1))
        text = "copy_cache: dst and src must have the same num_tensors, got num_tensors 2 and 1"
        self.refused(LLMException, text, two, one)
        self.refused(LLMException, text, self.dst, one)

    def test_none_is_a_type_error(self) -> None:
        """LLM-DataDist's pages promise AttributeError in these calls."""
        manager = CacheManager()
        for call, *args in (
            (manager.register_cache, desc(), None),
            (manager.register_cache, None, [8]),
            (manager.register_blocks_cache, desc(), None),
            (manager.register_blocks_cache, None, [8]),
            (Cache.create_cpu_cache, desc(), None),
            (Cache.create_cpu_cache, None, [8]),
            (manager.swap_blocks, None, None, {}),
        ):
            with pytest.raises(TypeError, match=r"must be .*, got NoneType"):
                call(*args)

    def test_device_without_a_kernel(self) -> None:
        quantized = torch._empty_affine_quantized([4, 8], scale=1.0, zero_point=0, dtype=torch.quint8)
        held = Cache([quantized], self.dst.cache_desc, 0, False)
        error = self.refused(
            LLMException, "copy_cache: no kernel for QuantizedCPU and QuantizedCPU tensors on cpu and cpu", held, held
        )
        assert error.status_code is LLMStatusCode.LLM_FAILED
        assert isinstance(error.__cause__, NotImplementedError)


def test_wrong_types_in_other_calls() -> None:
    manager = CacheManager()
    held = manager.allocate_blocks_cache(desc())
    for text, call, *args in (
        ("cache must be Cache, got NoneType", manager.copy_blocks, None, {}),
        ("copy_block_info must be Mapping, got list", manager.copy_blocks, held, [(0, 1)]),
        ("copy_block_info[0] must be Sequence, got int: 1", manager.copy_blocks, held, {0: 1}),
        ("a block of copy_block_info must be int, got str: '0'", manager.copy_blocks, held, {"0": [1]}),
        ("a block of copy_block_info must be int, got bool: True", manager.copy_blocks, held, {0: [True]}),
        ("src_cache must be Cache, got list", manager.swap_blocks, [], held, {}),
        ("dst_cache must be Cache, got NoneType", manager.swap_blocks, held, None, {}),
        ("src_to_dst must be Mapping, got list", manager.swap_blocks, held, held, [0, 1]),
        ("a block of src_to_dst must be int, got str: '1'", manager.swap_blocks, held, held, {0: "1"}),
        ("cache_desc must be CacheDesc, got NoneType", manager.allocate_cache, None),
        ("cache_desc must be CacheDesc, got NoneType", manager.allocate_blocks_cache, None),
        ("cache_keys must be Sequence, got CacheKey", manager.allocate_cache, desc(), CacheKey(0, 1)),
        ("cache_keys[0] must be CacheKey, got BlocksCacheKey", manager.allocate_cache, desc(), [BlocksCacheKey(0)]),
        (
            "blocks_cache_key must be BlocksCacheKey, got CacheKey",
            manager.allocate_blocks_cache,
            desc(),
            CacheKey(0, 1),
        ),
        ("cache must be Cache, got int: 1", manager.deallocate_cache, 1),
        ("cache must be Cache, got int: 1", manager.deallocate_blocks_cache, 1),
        ("cache_id must be int, got Cache", manager.unregister_cache, held),
        ("cache_key must be CacheKey, got BlocksCacheKey", manager.remove_cache_key, BlocksCacheKey(0)),
    ):
        with pytest.raises(TypeError) as refusal:
            call(*args)
        assert str(refusal.value) == f"{call.__name__}: {text}"
