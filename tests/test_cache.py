# SPDX-License-Identifier: Apache-2.0
"""Cache, CacheDesc, DataType and Placement: names, defaults and refusals that LLM-DataDist's users rely on."""

import ctypes
from functools import partial

import pytest
import torch
from utils import assert_same_bytes, cache, filled, refused

from llm_datadist_torch import Cache, CacheDesc, DataType, LLMException, LLMStatusCode, Placement

invalid = partial(refused, LLMStatusCode.LLM_PARAM_INVALID)


class TestDataType:
    @pytest.mark.parametrize("data_type", [d for d in DataType if d is not DataType.DT_STRING], ids=lambda d: d.name)
    def test_round_trip(self, data_type: DataType) -> None:
        assert DataType.from_torch(data_type.torch_dtype) is data_type

    def test_names_match_the_torch_dtypes(self) -> None:
        dtypes = {d.name: d.torch_dtype for d in DataType if d is not DataType.DT_STRING}
        assert dtypes.pop("DT_FLOAT") is torch.float32
        assert dtypes.pop("DT_BF16") is torch.bfloat16
        assert dtypes.pop("DT_DOUBLE") is torch.float64
        assert len(dtypes) == 10
        for name, dtype in dtypes.items():
            assert str(dtype) == "torch." + name.removeprefix("DT_").lower()

    def test_string_has_no_dtype(self) -> None:
        invalid("DT_STRING has no torch dtype", lambda: DataType.DT_STRING.torch_dtype)

    def test_float8_has_no_data_type(self) -> None:
        invalid("torch.float8_e4m3fn has no DataType", DataType.from_torch, torch.float8_e4m3fn)


def test_placement_numbers() -> None:
    assert (Placement.HOST, Placement.DEVICE) == (0, 1)


class TestCacheDesc:
    def test_defaults_and_properties(self) -> None:
        desc = CacheDesc(80, [4, 2, 8], DataType.DT_FLOAT16)
        assert (desc.num_tensors, desc.shape, desc.data_type) == (80, [4, 2, 8], DataType.DT_FLOAT16)
        assert (desc.placement, desc.batch_dim, desc.seq_len_dim_index) == (Placement.DEVICE, 0, -1)
        assert (desc.batch_size, desc.size, desc.kv_tensor_format) == (4, 128, None)

    def test_shape_is_given_back_as_it_was_given(self) -> None:
        shape = [4, 256]
        as_list, as_tuple = CacheDesc(80, shape, DataType.DT_FLOAT16), CacheDesc(80, (4, 256), DataType.DT_FLOAT16)
        assert as_list.shape == [4, 256] and [1] + as_list.shape[1:] == [1, 256]
        assert as_tuple.shape == (4, 256) and (1,) + as_tuple.shape[1:] == (1, 256)
        assert as_list == as_tuple and hash(as_list) == hash(as_tuple)
        shape[0] = 5
        assert as_list.shape == [4, 256]

    @pytest.mark.parametrize("kind", [list, tuple])
    def test_update_dim(self, kind: type) -> None:
        desc = CacheDesc(1, kind((4, 2, 8)), DataType.DT_INT8)
        desc.update_dim(0, 3)
        desc.update_dim(-1, 16)
        assert (desc.shape, desc.batch_size, desc.size) == (kind((3, 2, 16)), 3, 96)
        assert desc == CacheDesc(1, (3, 2, 16), DataType.DT_INT8)
        invalid("dim_index (3) out of range [-3, 3)", desc.update_dim, 3, 1)
        invalid("must have dimensions, each greater than 0", desc.update_dim, 0, 0)
        with pytest.raises(TypeError, match=r"shape\[0\] must be int"):
            desc.update_dim(0, "1")
        assert desc.shape == kind((3, 2, 16))

    def test_by_position(self) -> None:
        desc = CacheDesc(1, (4, 2, 8), DataType.DT_INT64, Placement.HOST, 1, 2, "BNSD")
        assert (desc.placement, desc.batch_dim, desc.seq_len_dim_index) == (Placement.HOST, 1, 2)
        assert (desc.batch_size, desc.size, desc.kv_tensor_format) == (2, 512, "BNSD")

    def test_torch_dtypes(self) -> None:
        assert CacheDesc(1, (4, 2), torch.bfloat16) == CacheDesc(1, (4, 2), DataType.DT_BF16)
        assert CacheDesc(1, (4, 2), torch.float8_e5m2).size == 8

    @pytest.mark.parametrize(
        ("kwargs", "name"),
        [
            ({"num_tensors": "1"}, "num_tensors"),
            ({"num_tensors": True}, "num_tensors"),
            ({"shape": 4}, "shape"),
            ({"shape": (4, 2.0)}, "shape[1]"),
            ({"data_type": "DT_FLOAT"}, "data_type"),
            ({"placement": 1}, "placement"),
            ({"batch_dim_index": None}, "batch_dim_index"),
            ({"seq_len_dim_index": "0"}, "seq_len_dim_index"),
            ({"kv_tensor_format": 1}, "kv_tensor_format"),
        ],
    )
    def test_wrong_types(self, kwargs: dict, name: str) -> None:
        with pytest.raises(TypeError) as refusal:
            CacheDesc(**{"num_tensors": 1, "shape": (4, 2), "data_type": DataType.DT_FLOAT, **kwargs})
        assert str(refusal.value).startswith(f"{name} must be")

    @pytest.mark.parametrize(
        ("kwargs", "text"),
        [
            ({"num_tensors": -1}, "num_tensors (-1) out of range [0, 4294967295]"),
            ({"num_tensors": 2**32}, "num_tensors (4294967296) out of range"),
            ({"shape": (4, 2**63)}, "shape[1] (9223372036854775808) out of range"),
        ],
    )
    def test_numbers_outside_their_integer_type(self, kwargs: dict, text: str) -> None:
        with pytest.raises(ValueError) as refusal:
            CacheDesc(**{"num_tensors": 1, "shape": (4, 2), "data_type": DataType.DT_FLOAT, **kwargs})
        assert text in str(refusal.value)
        assert not isinstance(refusal.value, LLMException)

    @pytest.mark.parametrize(
        ("kwargs", "text"),
        [
            ({"num_tensors": 0}, "num_tensors (0) must be greater than 0"),
            ({"shape": ()}, "shape (()) must have dimensions"),
            ({"shape": (4, 0)}, "shape ((4, 0)) must have dimensions, each greater than 0"),
            ({"shape": (4, -1)}, "shape ((4, -1)) must have dimensions, each greater than 0"),
            ({"batch_dim_index": 2}, "batch_dim_index (2) out of range [0, 2)"),
            ({"batch_dim_index": -1}, "batch_dim_index (-1) out of range [0, 2)"),
            ({"seq_len_dim_index": 2}, "seq_len_dim_index (2) out of range [-1, 2)"),
            ({"seq_len_dim_index": -2}, "seq_len_dim_index (-2) out of range [-1, 2)"),
            ({"data_type": DataType.DT_STRING}, "data_type (DT_STRING) has no torch dtype"),
        ],
    )
    def test_invalid_values(self, kwargs: dict, text: str) -> None:
        invalid(text, CacheDesc, **{"num_tensors": 1, "shape": (4, 2), "data_type": DataType.DT_FLOAT, **kwargs})


class TestFromTensors:
    def test_list(self, device: str) -> None:
        tensors = cache(3, 4, 8, dtype=torch.float16, device=device)
        held = Cache.from_tensors(tensors)
        assert all(a is b for a, b in zip(held.tensors, tensors, strict=True))
        placement = Placement.HOST if device == "cpu" else Placement.DEVICE
        assert held.cache_desc == CacheDesc(3, (4, 8), DataType.DT_FLOAT16, placement)
        assert (held.cache_id, held.is_blocks_cache, held.batch_dim) == (-1, False, 0)
        assert held.tensor_addrs == [t.data_ptr() for t in tensors]

    def test_one_tensor(self) -> None:
        tensor = filled(4, 8)
        held = Cache.from_tensors(tensor)
        assert held.cache_desc == CacheDesc(1, (4, 8), DataType.DT_FLOAT, Placement.HOST)
        assert held.tensor_addrs == [tensor.data_ptr()]

    def test_stacked(self) -> None:
        stacked = filled(5, 4, 8)
        held = Cache.from_tensors(stacked, batch_dim=1)
        assert held.cache_desc == CacheDesc(5, (4, 8), DataType.DT_FLOAT, Placement.HOST)
        assert (held.tensors, held.batch_dim) == ([stacked], 1)
        assert held.tensor_addrs == [stacked[i].data_ptr() for i in range(5)]
        assert_same_bytes(held.unstacked, list(stacked))

    def test_list_with_a_dimension_before_the_batch(self) -> None:
        tensors = cache(3, 2, 4, 8)
        held = Cache.from_tensors(tensors, batch_dim=1, is_blocks_cache=True)
        assert held.cache_desc == CacheDesc(3, (2, 4, 8), DataType.DT_FLOAT, Placement.HOST, batch_dim_index=1)
        assert held.unstacked == held.tensors
        assert held.is_blocks_cache

    def test_float8(self) -> None:
        held = Cache.from_tensors(cache(2, 4, 8, dtype=torch.float8_e4m3fn))
        assert (held.cache_desc.data_type, held.cache_desc.size) == (torch.float8_e4m3fn, 32)

    @pytest.mark.parametrize("wrong", [None, 1, "t", {}], ids=repr)
    def test_wrong_types(self, wrong: object) -> None:
        with pytest.raises(TypeError, match=r"tensors(\[0\])? must be"):
            Cache.from_tensors(wrong)
        with pytest.raises(TypeError, match=r"tensors\[1\] must be Tensor"):
            Cache.from_tensors([filled(4, 8), wrong])
        with pytest.raises(TypeError, match="is_blocks_cache must be bool"):
            Cache.from_tensors(filled(4, 8), is_blocks_cache=wrong)

    def test_invalid_values(self) -> None:
        a = filled(4, 8)
        invalid("tensors must hold at least one tensor", Cache.from_tensors, [])
        invalid("tensors[1] must have the batch size of tensors[0], 4, got 5", Cache.from_tensors, [a, filled(5, 8)])
        invalid("tensors[1] must have the device of tensors[0]", Cache.from_tensors, [a, a.to("meta")])
        invalid("batch_dim (2) out of range [0, 2)", Cache.from_tensors, a, batch_dim=2)
        invalid("batch_dim (-1) out of range [0, 2)", Cache.from_tensors, a, batch_dim=-1)
        invalid("must have dimensions, each greater than 0", Cache.from_tensors, torch.empty(0, 8))


class TestCreateCpuCache:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.uint64], ids=str)
    def test_wraps_the_memory_itself(self, dtype: torch.dtype) -> None:
        owners = cache(2, 4, 8, dtype=dtype)
        desc = CacheDesc(2, (4, 8), dtype, Placement.HOST)
        held = Cache.create_cpu_cache(desc, [t.data_ptr() for t in owners])
        assert held.tensor_addrs == [t.data_ptr() for t in owners]
        assert held.cache_desc == desc
        assert_same_bytes(held.tensors, owners)
        owners[1].copy_(filled(4, 8, dtype=dtype, seed=9))
        assert_same_bytes(held.tensors, owners)

    def test_takes_exactly_its_size(self) -> None:
        size = 4 * 8 * 4
        guarded = (ctypes.c_char * (size + 2))(*b"\xaa" * (size + 2))
        held = Cache.create_cpu_cache(
            CacheDesc(1, (4, 8), DataType.DT_FLOAT, Placement.HOST), [ctypes.addressof(guarded) + 1]
        )
        held.tensors[0].view(torch.uint8).fill_(0)
        assert bytes(guarded) == b"\xaa" + bytes(size) + b"\xaa"

    def test_refusals(self) -> None:
        desc = CacheDesc(2, (4, 8), DataType.DT_FLOAT, Placement.HOST)
        on_device = CacheDesc(2, (4, 8), DataType.DT_FLOAT)
        invalid("cache_desc.placement must be HOST, got DEVICE", Cache.create_cpu_cache, on_device, [8, 8])
        invalid("addrs must hold 2 addresses (num_tensors), got 1", Cache.create_cpu_cache, desc, [8])
        invalid("addrs[1] (0) must not be 0", Cache.create_cpu_cache, desc, [8, 0])
        with pytest.raises(TypeError, match="cache_desc must be CacheDesc"):
            Cache.create_cpu_cache(None, [8, 8])
        with pytest.raises(TypeError, match=r"addrs\[1\] must be int"):
            Cache.create_cpu_cache(desc, [8, "8"])
        with pytest.raises(ValueError, match=r"addrs\[0\] \(-1\) out of range"):
            Cache.create_cpu_cache(desc, [-1, 8])


def test_repr() -> None:
    text = repr(Cache.from_tensors(filled(2, 4, 8), batch_dim=1))
    assert "num_tensors=2" in text and "shape=(4, 8)" in text and "DT_FLOAT" in text
