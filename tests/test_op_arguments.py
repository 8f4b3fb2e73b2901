# SPDX-License-Identifier: Apache-2.0
"""Arguments that only the op accepts: a Cache cannot hold them, or CacheManager refuses them first."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from utils import cache, copy_cache, filled, nothing_written, shrunk


class TestCopyCache:
    def refused(self, text: str, dst: list[Tensor], src: list[Tensor], *args: int, **kwargs: int) -> None:
        real = [t for t in dst + src if t.layout == torch.strided and not t.is_meta]
        with nothing_written(*real), pytest.raises(ValueError) as refusal:
            copy_cache(dst, src, *args, **kwargs)
        assert str(refusal.value).startswith("copy_cache: ")
        assert text in str(refusal.value)

    def test_negative_numbers(self, device: str) -> None:
        dst, src = cache(2, 4, 8, device=device), cache(2, 4, 8, device=device, seed=1)
        self.refused("dst_batch_index (-1) out of range [0, 4), the batch of dst[0]", dst, src, -1)
        self.refused("src_batch_index (-1) out of range [0, 4), the batch of src[0]", dst, src, 0, -1)
        self.refused("offset (-1) out of range [0, 32), the bytes of a row of dst[0]", dst, src, 0, 0, -1)
        self.refused(f"dst_batch_index ({-(2**63)}) out of range", dst, src, -(2**63))

    @pytest.mark.parametrize("batch_dim", [-1, 2, 2**63 - 1, -(2**63)])
    def test_batch_dim_out_of_range(self, device: str, batch_dim: int) -> None:
        dst, src = cache(2, 4, 8, device=device), cache(2, 4, 8, device=device, seed=1)
        text = f"batch_dim ({batch_dim}) out of range [0, 2), the dimensions of dst[0]"
        self.refused(text, dst, src, batch_dim=batch_dim)

    def test_batch_dim_out_of_range_of_meta_tensors(self) -> None:
        """This is checked while tracing."""
        stacked, row = torch.empty(2, 4, 8, device="meta"), torch.empty(4, device="meta")
        self.refused("batch_dim (1) out of range [0, 1), the dimensions of dst[0]", [row], [stacked], batch_dim=1)
        self.refused("batch_dim (1) out of range [0, 1), the dimensions of src[0]", [stacked], [row], batch_dim=1)

    def test_empty_lists(self) -> None:
        self.refused("expected dst and src to hold at least one tensor, got empty lists", [], [])

    def test_one_empty_list(self, device: str) -> None:
        text = "expected dst and src to hold the same number of tensors, got 1 and 0"
        self.refused(text, [filled(4, 8, device=device)], [])

    def test_zero_dim_tensor(self, device: str) -> None:
        scalar = filled(1, device=device)[0]
        self.refused(
            "batch_dim (0) out of range [0, 0), the dimensions of src[0]", [filled(1, device=device)], [scalar]
        )

    @pytest.mark.parametrize("shape", [(0, 8), (4, 0)])
    def test_empty_tensor(self, device: str, shape: tuple[int, ...]) -> None:
        empty = torch.empty(shape, device=device)
        self.refused(
            f"expected dst[0] not to be empty, got shape {list(shape)}", [empty], [filled(4, 8, device=device)]
        )
        self.refused(
            f"expected src[0] not to be empty, got shape {list(shape)}", [filled(4, 8, device=device)], [empty]
        )

    def test_dtypes_within_a_list(self, device: str) -> None:
        mixed = [filled(4, 8, device=device), filled(4, 8, dtype=torch.int32, device=device)]
        same = cache(2, 4, 8, device=device)
        self.refused("expected dst[1] to have the dtype of dst[0], Float, got Int", mixed, same)
        self.refused("expected src[1] to have the dtype of dst[0], Float, got Int", same, mixed)

    def test_second_tensor_is_checked(self, device: str) -> None:
        dst = [filled(4, 8, device=device), filled(2, 8, device=device)]
        src = cache(2, 4, 8, device=device, seed=1)
        self.refused("dst_batch_index (2) out of range [0, 2), the batch of dst[1]", dst, src, 2)
        self.refused("src_batch_index (2) out of range [0, 2), the batch of src[1]", src, dst, 0, 2)

    def test_second_tensor_outside_its_storage(self, device: str) -> None:
        """With the sizes and strides of the first one."""
        whole, small = cache(2, 4, 8, device=device, seed=1), [filled(4, 8, device=device), shrunk(device)]
        self.refused("expected dst[1] to lie inside its storage of 64 bytes", small, whole)
        self.refused("expected src[1] to lie inside its storage of 64 bytes", whole, small)

    def test_wrapper_subclass_without_memory(self) -> None:
        """Its storage has a size but no address. Other subclasses unwrap themselves first."""

        class Wrapper(torch.Tensor):
            @classmethod
            def __torch_dispatch__(
                cls, func: Callable, types: object, args: tuple = (), kwargs: object = None
            ) -> object:
                with torch._C._DisableTorchDispatch():
                    return func(*args, **(kwargs or {}))

        wrapper = torch.Tensor._make_wrapper_subclass(Wrapper, (4, 8))
        for dst, src, name in ((wrapper, filled(4, 8), "dst"), (filled(4, 8), wrapper, "src")):
            with pytest.raises(ValueError, match=rf"copy_cache: expected {name}\[0\] to have memory"):
                copy_cache([dst], [src], 1, 2)

    def test_meta_beside_real(self) -> None:
        text = "expected dst and src to be both meta tensors, got meta and cpu"
        self.refused(text, [torch.empty(4, 8, device="meta")], [filled(4, 8)])

    def test_devices_within_a_list(self) -> None:
        mixed = [filled(4, 8), torch.empty(4, 8, device="meta")]
        self.refused("expected dst[1] to be on the device of dst[0], cpu, got meta", mixed, cache(2, 4, 8))
        self.refused("expected src[1] to be on the device of src[0], cpu, got meta", cache(2, 4, 8), mixed)

    @pytest.mark.parametrize(("layout", "name"), [("to_sparse", "Sparse"), ("to_mkldnn", "Mkldnn")])
    def test_layouts_that_are_not_strided(self, layout: str, name: str) -> None:
        other = getattr(filled(4, 8), layout)()
        self.refused(f"expected dst[0] to have the strided layout, got {name}", [other], [filled(4, 8)])
        self.refused(f"expected src[0] to have the strided layout, got {name}", [filled(4, 8)], [other])

    def test_device_without_a_kernel(self) -> None:
        quantized = torch._empty_affine_quantized([4, 8], scale=1.0, zero_point=0, dtype=torch.quint8)
        text = r"copy_cache: no kernel for QuantizedCPU and QuantizedCPU tensors on cpu and cpu.*\(req_id 7\)"
        with pytest.raises(NotImplementedError, match=text):
            copy_cache([quantized], [quantized], 1, req_id=7)

    def test_nested_tensors(self) -> None:
        rows = [filled(4, 8), filled(2, 8)]
        jagged = torch.nested.nested_tensor(rows, layout=torch.jagged)
        self.refused("expected dst[0] to have the strided layout, got Jagged", [jagged], [jagged])
        with pytest.raises(NotImplementedError, match="copy_cache: no kernel for NestedTensorCPU and NestedTensorCPU"):
            copy_cache([torch.nested.nested_tensor(rows)], [torch.nested.nested_tensor(rows)])

    @pytest.mark.parametrize("wrong", ["1", 1.5, None, [1]], ids=repr)
    @pytest.mark.parametrize("position", range(4), ids=["dst_batch_index", "src_batch_index", "offset", "size"])
    def test_wrong_types_of_numbers(self, wrong: object, position: int) -> None:
        dst, src = cache(1, 4, 8), cache(1, 4, 8, seed=1)
        args: list[object] = [0, 0, 0, -1]
        args[position] = wrong
        with nothing_written(*dst), pytest.raises((TypeError, RuntimeError), match="copy_cache"):
            copy_cache(dst, src, *args)

    @pytest.mark.parametrize("wrong", [None, 1, "cache", [None], [1]], ids=repr)
    def test_wrong_types_of_lists(self, wrong: object) -> None:
        for args in ((wrong, cache(1, 4, 8)), (cache(1, 4, 8), wrong)):
            with pytest.raises((TypeError, RuntimeError), match="copy_cache"):
                copy_cache(*args)

    @pytest.mark.parametrize("position", range(5))
    @pytest.mark.parametrize("number", [2**63, 2**64, -(2**63) - 1])
    def test_numbers_that_do_not_fit_64_bits(self, position: int, number: int) -> None:
        dst, src = cache(1, 4, 8), cache(1, 4, 8, seed=1)
        args = [0, 0, 0, -1, 0]
        args[position] = number
        with nothing_written(*dst), pytest.raises((TypeError, RuntimeError, OverflowError)):
            copy_cache(dst, src, *args)
