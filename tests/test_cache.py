# SPDX-License-Identifier: Apache-2.0
"""Cache, CacheDesc, DataType and Placement: names, defaults and refusals that LLM-DataDist's users rely on."""

import ctypes
from functools import partial

import pytest
import torch
from utils import assert_same_bytes, cache, filled, refused

from llm_datadist_torch import Cache, CacheDesc, DataType, LLMException, LLMStatusCode, Placement

invalid = partial(refused, LLMStatusCode.LLM_PARAM_INVALID)


def test_data_types() -> None:
    dtypes = {d: d.torch_dtype for d in DataType if d is not DataType.DT_STRING}
    assert len(dtypes) == 13
    short = {"float": "float32", "bf16": "bfloat16", "double": "float64"}
    for data_type, dtype in dtypes.items():
        name = data_type.name.removeprefix("DT_").lower()
        assert str(dtype) == f"torch.{short.get(name, name)}"
        assert DataType.from_torch(dtype) is data_type
    invalid("DT_STRING has no torch dtype", lambda: DataType.DT_STRING.torch_dtype)
    invalid("torch.float8_e4m3fn has no DataType", DataType.from_torch, torch.float8_e4m3fn)


def test_placement_numbers() -> None:
    assert (Placement.HOST, Placement.DEVICE) == (0, 1)


def described(**kwargs: object) -> CacheDesc:
    return CacheDesc(**{"num_tensors": 1, "shape": (4, 2), "data_type": DataType.DT_FLOAT, **kwargs})


class TestCacheDesc:
    def test_properties(self) -> None:
        desc = CacheDesc(80, [4, 2, 8], DataType.DT_FLOAT16)
        assert (desc.num_tensors, desc.shape, desc.data_type) == (80, [4, 2, 8], DataType.DT_FLOAT16)
        assert (desc.placement, desc.batch_dim, desc.seq_len_dim_index) == (Placement.DEVICE, 0, -1)
        assert (desc.batch_size, desc.size, desc.kv_tensor_format) == (4, 128, None)
        desc = CacheDesc(1, (4, 2, 8), DataType.DT_INT64, Placement.HOST, 1, 2, "BNSD")
        assert (desc.placement, desc.batch_dim, desc.seq_len_dim_index) == (Placement.HOST, 1, 2)
        assert (desc.batch_size, desc.size, desc.kv_tensor_format) == (2, 512, "BNSD")

    def test_shape_is_given_back_as_it_was_given(self) -> None:
        shape = [4, 256]
        as_list, as_tuple = described(shape=shape), described(shape=(4, 256))
        shape[0] = 5
        assert (as_list.shape, as_tuple.shape) == ([4, 256], (4, 256))
        assert as_list == as_tuple and hash(as_list) == hash(as_tuple)

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

    def test_torch_dtypes(self) -> None:
        assert described(data_type=torch.bfloat16) == described(data_type=DataType.DT_BF16)
        assert described(data_type=torch.float8_e5m2).size == 8

    @pytest.mark.parametrize(
        ("name", "wrong"),
        [
            *(("num_tensors", "1"), ("num_tensors", True), ("shape", 4), ("shape[1]", (4, 2.0)), ("placement", 1)),
            *(
                ("data_type", "DT_FLOAT"),
                ("batch_dim_index", None),
                ("seq_len_dim_index", "0"),
                ("kv_tensor_format", 1),
            ),
        ],
    )
    def test_wrong_types(self, name: str, wrong: object) -> None:
        with pytest.raises(TypeError) as refusal:
            described(**{name.partition("[")[0]: wrong})
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
            described(**kwargs)
        assert text in str(refusal.value)
        assert not isinstance(refusal.value, LLMException)

    @pytest.mark.parametrize(
        ("kwargs", "text"),
        [
            ({"num_tensors": 0}, "num_tensors (0) must be greater than 0"),
            ({"shape": ()}, "shape (()) must have dimensions"),
            ({"shape": (4, 0)}, "shape ((4, 0)) must have dimensions, each greater than 0"),
            ({"batch_dim_index": 2}, "batch_dim_index (2) out of range [0, 2)"),
            ({"batch_dim_index": -1}, "batch_dim_index (-1) out of range [0, 2)"),
            ({"seq_len_dim_index": 2}, "seq_len_dim_index (2) out of range [-1, 2)"),
            ({"seq_len_dim_index": -2}, "seq_len_dim_index (-2) out of range [-1, 2)"),
            ({"data_type": DataType.DT_STRING}, "data_type (DT_STRING) has no torch dtype"),
        ],
    )
    def test_invalid_values(self, kwargs: dict, text: str) -> None:
        invalid(text, described, **kwargs)


class TestFromTensors:
    def test_list(self, device: str) -> None:
        tensors = cache(3, 4, 8, dtype=torch.float16, device=device)
        held = Cache.from_tensors(tensors)
        assert all(a is b for a, b in zip(held.tensors, tensors, strict=True))
        placement = Placement.HOST if device == "cpu" else Placement.DEVICE
        assert held.cache_desc == CacheDesc(3, (4, 8), DataType.DT_FLOAT16, placement)
        assert (held.cache_id, held.is_blocks_cache, held.batch_dim) == (-1, False, 0)
        assert held.tensor_addrs == [t.data_ptr() for t in tensors]
        for part in ("num_tensors=3", "shape=(4, 8)", "DT_FLOAT16"):
            assert part in repr(held)

    def test_stacked_tensor(self) -> None:
        stacked = filled(5, 4, 8)
        held = Cache.from_tensors(stacked, batch_dim=1)
        assert held.cache_desc == CacheDesc(5, (4, 8), DataType.DT_FLOAT, Placement.HOST)
        assert (held.tensors, held.batch_dim) == ([stacked], 1)
        assert held.tensor_addrs == [stacked[i].data_ptr() for i in range(5)]
        assert_same_bytes(held.unstacked, list(stacked))

    def test_wrong_types(self) -> None:
        for wrong in (None, 1, "t", {}):
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
    def test_wraps_exactly_its_memory(self, dtype: torch.dtype) -> None:
        size = 4 * 8 * dtype.itemsize
        guarded = (ctypes.c_char * (size + 2))(*b"\xaa" * (size + 2))
        desc = CacheDesc(1, (4, 8), dtype, Placement.HOST)
        held = Cache.create_cpu_cache(desc, [ctypes.addressof(guarded) + 1])
        assert (held.tensor_addrs, held.cache_desc) == ([ctypes.addressof(guarded) + 1], desc)
        held.tensors[0].view(torch.uint8).fill_(0)
        assert bytes(guarded) == b"\xaa" + bytes(size) + b"\xaa"

    def test_refusals(self) -> None:
        """See manager/test_register.py for addresses."""
        desc = CacheDesc(2, (4, 8), DataType.DT_FLOAT, Placement.HOST)
        on_device = CacheDesc(2, (4, 8), DataType.DT_FLOAT)
        invalid("cache_desc.placement must be HOST, got DEVICE", Cache.create_cpu_cache, on_device, [8, 8])
        invalid("addrs must hold 2 addresses (num_tensors), got 1", Cache.create_cpu_cache, desc, [8])
        for wrong in ((None, [8, 8]), (desc, None), (desc, [8, "8"])):
            with pytest.raises(TypeError, match="must be"):
                Cache.create_cpu_cache(*wrong)
