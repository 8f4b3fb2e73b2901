# SPDX-License-Identifier: Apache-2.0
"""What copy_cache copies, compared with the plain PyTorch reference. See test_refusals.py for refused calls."""

import pytest
import torch
from utils import assert_same_bytes, cache, check_copy, copy_cache, filled, reference_copy, to_host

DTYPES = [
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.bool, torch.complex64),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
]


class TestArguments:
    def test_defaults_copy_row_0(self, device: str) -> None:
        check_copy(cache(3, 4, 8, device=device), cache(3, 2, 8, device=device, seed=1))

    @pytest.mark.parametrize(("dst_index", "src_index"), [(0, 1), (1, 0), (3, 1)])
    def test_batch_indices(self, device: str, dst_index: int, src_index: int) -> None:
        check_copy(cache(3, 4, 8, device=device), cache(3, 2, 8, device=device, seed=1), dst_index, src_index)

    @pytest.mark.parametrize(
        ("offset", "size"), [(0, 1), (1, 1), (3, 7), (0, 32), (5, 27), (31, 1), (0, -1), (5, -1), (31, -1)]
    )
    def test_byte_ranges(self, device: str, offset: int, size: int) -> None:
        check_copy(cache(3, 4, 8, device=device), cache(3, 4, 8, device=device, seed=1), 2, 1, offset, size)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_any_dtype(self, device: str, dtype: torch.dtype) -> None:
        dst, src = (cache(2, 3, 5, dtype=dtype, device=device, seed=seed) for seed in (0, 1))
        check_copy(dst, src, 2, 1)

    def test_rows_may_differ_in_size(self, device: str) -> None:
        check_copy(cache(2, 4, 8, device=device), cache(2, 1, 4, device=device, seed=1), 3, 0)
        check_copy(cache(2, 4, 8, device=device), cache(2, 1, 16, device=device, seed=1), 3, 0, 4, 28)

    def test_rows_may_differ_in_shape(self, device: str) -> None:
        dst, src = filled(4, 2, 6, device=device), filled(4, 3, 4, device=device, seed=1)
        expected = reference_copy([dst.view(4, 12)], [src.view(4, 12)], 1, 2)
        copy_cache([dst], [src], 1, 2)
        assert_same_bytes([dst], expected)

    def test_tensors_of_one_list_may_differ_in_shape(self, device: str) -> None:
        dst = [filled(4, 8, device=device), filled(6, 16, device=device)]
        src = [filled(2, 8, device=device, seed=1), filled(3, 16, device=device, seed=1)]
        check_copy(dst, src, 3, 1)
        check_copy(dst, src, 3, 1, 4, 8)

    @pytest.mark.parametrize("req_id", [0, 7, -1, 2**63 - 1])
    def test_req_id_changes_nothing(self, device: str, req_id: int) -> None:
        check_copy(cache(2, 4, 8, device=device), cache(2, 4, 8, device=device, seed=1), 1, 2, 0, -1, req_id)

    def test_rows_of_one_element(self, device: str) -> None:
        check_copy([filled(5, device=device)], [filled(5, device=device, seed=1)], 4, 2)


class TestLayouts:
    """Strides and storage offset decide where rows are. Bytes between rows are not written."""

    def test_rows_further_apart_than_their_size(self, device: str) -> None:
        dst, src = filled(4, 16, device=device), filled(6, 10, device=device, seed=1)
        expected = to_host(dst)
        expected[2, 3:11] = to_host(src)[5, 1:9]
        copy_cache([dst[:, 3:11]], [src[:, 1:9]], 2, 5)
        assert_same_bytes([dst], [expected])

    def test_every_second_row(self, device: str) -> None:
        dst, src = filled(8, 6, device=device), filled(8, 6, device=device, seed=1)
        expected = to_host(dst)
        expected[7] = to_host(src)[2]
        copy_cache([dst[1::2]], [src[::2]], 3, 1)
        assert_same_bytes([dst], [expected])

    def test_layers_interleaved_in_one_buffer(self, device: str) -> None:
        dst, src = filled(4, 5, 6, device=device), filled(2, 5, 6, device=device, seed=1)
        check_copy([dst[:, i] for i in range(5)], [src[:, i] for i in range(5)], 3, 1, 4, 8)

    @pytest.mark.parametrize("layers", [range(7), range(6, -1, -1), [3, 0, 6, 1, 5, 2, 4]])
    def test_views_of_one_buffer_in_any_order(self, device: str, layers: list[int]) -> None:
        dst, src = filled(7, 4, 6, device=device), filled(7, 2, 6, device=device, seed=1)
        check_copy([dst[i] for i in layers], [src[i] for i in layers], 2, 1)

    def test_dense_rows_with_permuted_dimensions(self, device: str) -> None:
        """offset and size count the bytes of a row in memory order."""
        dst, src = filled(4, 3, 5, device=device), filled(4, 3, 5, device=device, seed=1)
        expected = reference_copy([dst], [src], 1, 2, 8, 20)
        copy_cache([dst.transpose(1, 2)], [src.transpose(1, 2)], 1, 2, 8, 20)
        assert_same_bytes([dst], expected)

    def test_dimensions_of_one_with_any_stride(self, device: str) -> None:
        """A product with such a stride could overflow, which UndefinedBehaviorSanitizer reports."""
        check_copy(
            [filled(1, 8, device=device).as_strided((1, 8), (1, 1))], [filled(4, 8, device=device, seed=1)], 0, 3
        )
        dst, src = (filled(4, 16, device=device, seed=seed).as_strided((4, 1, 8), (16, 3, 1)) for seed in (0, 1))
        check_copy([dst], [src], 1, 2)
        leading = filled(8, device=device).as_strided((1, 1, 2, 4), (2**62, 2**62, 4, 1))
        check_copy([leading], [leading], 0, 1, batch_dim=2)

    def test_tensors_of_one_list_may_differ_in_strides(self, device: str) -> None:
        padded, dense = filled(4, 16, device=device)[:, :8], filled(4, 8, device=device, seed=1)
        others = cache(2, 4, 8, device=device, seed=2)
        check_copy([dense, padded], others, 1, 2)
        check_copy(others, [dense, padded], 2, 1)

    def test_tensors_of_one_list_may_differ_in_rank(self, device: str) -> None:
        """Its sizes and strides begin like those of the tensor before it, and its rows are shorter."""
        dst, src = cache(2, 4, 16, device=device), cache(2, 4, 16, device=device, seed=1)
        expected = [*reference_copy(dst[:1], src[:1], 1, 2), to_host(dst[1])]
        expected[1][1, :8] = to_host(src[1])[2, :8]
        views = [[side[0].as_strided((4, 8, 2), (16, 1, 8)), side[1][:, :8]] for side in (dst, src)]
        copy_cache(*views, 1, 2)
        assert_same_bytes(dst, expected)

    def test_one_source_for_many_destinations(self, device: str) -> None:
        src = filled(2, 8, device=device, seed=1)
        check_copy(cache(3, 4, 8, device=device), [src] * 3, 1, 1)

    def test_many_scattered_tensors(self, device: str) -> None:
        dst, src = cache(300, 2, 6, device=device), cache(300, 3, 6, device=device, seed=1)
        check_copy(dst[::-1], src, 1, 2)


class TestBatchDim:
    """Dimensions before batch_dim act like separate tensors."""

    def test_stacked_cache(self, device: str) -> None:
        check_copy([filled(5, 4, 8, device=device)], [filled(5, 2, 8, device=device, seed=1)], 3, 1, 4, 9, batch_dim=1)

    @pytest.mark.parametrize(("dst_batch", "src_batch"), [(1, 2), (2, 1), (1, 1)])
    def test_without_gaps_on_one_side_or_both(self, device: str, dst_batch: int, src_batch: int) -> None:
        dst, src = filled(5, dst_batch, 8, device=device), filled(5, src_batch, 8, device=device, seed=1)
        check_copy([dst], [src], dst_batch - 1, src_batch - 1, batch_dim=1)

    def test_key_and_value_blocks(self, device: str) -> None:
        dst, src = (cache(3, 2, 6, 4, device=device, seed=seed) for seed in (0, 1))
        check_copy(dst, src, 5, 2, batch_dim=1)

    @pytest.mark.parametrize("permutation", [(0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 1, 3), (2, 1, 0, 3)])
    def test_many_leading_dimensions_in_any_order(self, device: str, permutation: tuple[int, ...]) -> None:
        shape = [(2, 3, 4, 6)[permutation.index(dim)] for dim in range(4)]
        dst, src = (filled(*shape, device=device, seed=seed).permute(permutation) for seed in (0, 1))
        assert dst.shape == (2, 3, 4, 6)
        check_copy([dst], [src], 3, 1, batch_dim=2)

    def test_batch_is_the_last_dimension(self, device: str) -> None:
        check_copy([filled(3, 4, device=device)], [filled(3, 4, device=device, seed=1)], 3, 1, batch_dim=1)

    def test_heads_before_the_batch(self, device: str) -> None:
        """[batch, heads, seq, dim] viewed as [heads, batch, seq, dim]: one call copies a slice of every head."""
        dst, src = filled(4, 3, 5, 2, device=device), filled(2, 3, 5, 2, device=device, seed=1)
        check_copy([dst.transpose(0, 1)], [src.transpose(0, 1)], 3, 1, 8, 16, batch_dim=1)

    def test_broadcast_source(self, device: str) -> None:
        src = filled(2, 8, device=device, seed=1).expand(3, 2, 8)
        check_copy([filled(3, 4, 8, device=device)], [src], 1, 1, batch_dim=1)
