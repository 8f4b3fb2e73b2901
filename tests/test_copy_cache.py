# SPDX-License-Identifier: Apache-2.0
"""What the op copies, against the plain-PyTorch reference, byte for byte. What it refuses is in test_refusals.py."""

import pytest
import torch
from torch import Tensor
from torch.testing._internal.two_tensor import TwoTensor
from utils import as_bytes, assert_same_bytes, cache, copy_cache, filled, nothing_written, reference_copy, to_host

DTYPES = [
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.bool, torch.complex64),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
]


def check(dst: list[Tensor], src: list[Tensor], *args: int, **kwargs: int) -> None:
    """Calls the op and the reference; dst must be as the reference says, and src as it was."""
    expected = reference_copy(dst, src, *args, **kwargs)
    src_expected = [to_host(s) for s in src]
    shared = {t.untyped_storage().data_ptr() for t in dst} & {t.untyped_storage().data_ptr() for t in src}
    assert copy_cache(dst, src, *args, **kwargs) is None
    assert_same_bytes(dst, expected)
    if not shared:
        assert_same_bytes(src, src_expected)


class TestArguments:
    def test_defaults_copy_row_0(self, device: str) -> None:
        check(cache(3, 4, 8, device=device), cache(3, 2, 8, device=device, seed=1))

    @pytest.mark.parametrize("dst_index", [0, 1, 3])
    @pytest.mark.parametrize("src_index", [0, 1])
    def test_batch_indices(self, device: str, dst_index: int, src_index: int) -> None:
        check(cache(3, 4, 8, device=device), cache(3, 2, 8, device=device, seed=1), dst_index, src_index)

    @pytest.mark.parametrize(
        ("offset", "size"), [(0, 1), (1, 1), (3, 7), (0, 32), (5, 27), (31, 1), (0, -1), (5, -1), (31, -1)]
    )
    def test_slices_of_bytes(self, device: str, offset: int, size: int) -> None:
        check(cache(3, 4, 8, device=device), cache(3, 4, 8, device=device, seed=1), 2, 1, offset, size)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_any_dtype(self, device: str, dtype: torch.dtype) -> None:
        dst, src = (cache(2, 3, 5, dtype=dtype, device=device, seed=seed) for seed in (0, 1))
        check(dst, src, 2, 1)

    @pytest.mark.parametrize("src_row", [4, 8])
    def test_rows_may_differ_in_size(self, device: str, src_row: int) -> None:
        check(cache(2, 4, 8, device=device), cache(2, 1, src_row, device=device, seed=1), 3, 0)
        check(cache(2, 4, 8, device=device), cache(2, 1, 16, device=device, seed=1), 3, 0, 4, 28)

    def test_rows_may_differ_in_shape(self, device: str) -> None:
        dst, src = filled(4, 2, 6, device=device), filled(4, 3, 4, device=device, seed=1)
        expected = reference_copy([dst.view(4, 12)], [src.view(4, 12)], 1, 2)
        copy_cache([dst], [src], 1, 2)
        assert_same_bytes([dst], expected)

    def test_tensors_of_one_list_may_differ_in_shape(self, device: str) -> None:
        dst = [filled(4, 8, device=device), filled(6, 16, device=device)]
        src = [filled(2, 8, device=device, seed=1), filled(3, 16, device=device, seed=1)]
        check(dst, src, 3, 1)
        check(dst, src, 3, 1, 4, 8)

    @pytest.mark.parametrize("req_id", [None, 0, 7, -1, 2**63 - 1])
    def test_req_id_changes_nothing(self, device: str, req_id: int | None) -> None:
        dst, src = cache(2, 4, 8, device=device), cache(2, 4, 8, device=device, seed=1)
        expected = reference_copy(dst, src, 1, 2)
        copy_cache(dst, src, 1, 2, req_id=req_id)
        assert_same_bytes(dst, expected)

    def test_row_of_one_element(self, device: str) -> None:
        check([filled(5, device=device)], [filled(5, device=device, seed=1)], 4, 2)


class TestLayouts:
    """Rows lie where strides and storage offset say, and what lies between them is left alone."""

    def test_rows_further_apart_than_their_size(self, device: str) -> None:
        dst, src = filled(4, 16, device=device), filled(6, 10, device=device, seed=1)
        around = to_host(dst)
        expected = reference_copy([around[:, 3:11]], [src[:, 1:9]], 2, 5)
        check([dst[:, 3:11]], [src[:, 1:9]], 2, 5)
        around[:, 3:11] = expected[0]
        assert_same_bytes([dst], [around])

    def test_every_second_row(self, device: str) -> None:
        dst, src = filled(8, 6, device=device), filled(8, 6, device=device, seed=1)
        before = to_host(dst)
        check([dst[1::2]], [src[::2]], 3, 1)
        assert_same_bytes([dst[::2]], [before[::2]])

    def test_layers_interleaved_in_one_buffer(self, device: str) -> None:
        dst, src = filled(4, 5, 6, device=device), filled(2, 5, 6, device=device, seed=1)
        check([dst[:, i] for i in range(5)], [src[:, i] for i in range(5)], 3, 1, 4, 8)

    @pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
    def test_views_of_one_buffer_in_any_order(self, device: str, order: str) -> None:
        dst, src = filled(7, 4, 6, device=device), filled(7, 2, 6, device=device, seed=1)
        layers = {"forward": range(7), "backward": range(6, -1, -1), "shuffled": [3, 0, 6, 1, 5, 2, 4]}[order]
        check([dst[i] for i in layers], [src[i] for i in layers], 2, 1)

    def test_dense_rows_in_another_order_of_dimensions(self, device: str) -> None:
        """A row is its bytes as they lie in memory, also where its dimensions are permuted."""
        dst, src = filled(4, 3, 5, device=device), filled(4, 3, 5, device=device, seed=1)
        expected = reference_copy([dst], [src], 1, 2, 8, 20)
        copy_cache([dst.transpose(1, 2)], [src.transpose(1, 2)], 1, 2, 8, 20)
        assert_same_bytes([dst], expected)

    def test_stride_of_a_dimension_of_one_means_nothing(self, device: str) -> None:
        dst, src = filled(1, 8, device=device), filled(4, 8, device=device, seed=1)
        check([dst.as_strided((1, 8), (1, 1))], [src], 0, 3)

    def test_stride_of_a_dimension_of_one_in_a_row_means_nothing(self, device: str) -> None:
        dst, src = (filled(4, 16, device=device, seed=seed).as_strided((4, 1, 8), (16, 3, 1)) for seed in (0, 1))
        check([dst], [src], 1, 2)

    def test_a_list_of_tensors_with_other_strides(self, device: str) -> None:
        padded, dense = filled(4, 16, device=device)[:, :8], filled(4, 8, device=device, seed=1)
        others = cache(2, 4, 8, device=device, seed=2)
        check([dense, padded], others, 1, 2)
        check(others, [dense, padded], 2, 1)

    def test_a_list_in_which_a_tensor_has_fewer_dimensions(self, device: str) -> None:
        """Its sizes and strides are those of the one before as far as they go, and its rows are shorter."""
        dst, src = cache(2, 4, 16, device=device), cache(2, 4, 16, device=device, seed=1)
        expected = [*reference_copy(dst[:1], src[:1], 1, 2), to_host(dst[1])]
        expected[1][1, :8] = to_host(src[1])[2, :8]
        views = [[side[0].as_strided((4, 8, 2), (16, 1, 8)), side[1][:, :8]] for side in (dst, src)]
        copy_cache(*views, 1, 2)
        assert_same_bytes(dst, expected)

    def test_one_source_for_many_destinations(self, device: str) -> None:
        src = filled(2, 8, device=device, seed=1)
        check(cache(3, 4, 8, device=device), [src] * 3, 1, 1)

    def test_many_scattered_tensors(self, device: str) -> None:
        dst, src = cache(300, 2, 6, device=device), cache(300, 3, 6, device=device, seed=1)
        check(dst[::-1], src, 1, 2)

    def test_copy_on_write_destination(self) -> None:
        """A lazily cloned tensor shares its bytes until it is written; the op must not write the shared ones."""
        original, src = filled(4, 8), filled(4, 8, seed=1)
        before, expected = original.clone(), reference_copy([original], [src], 1, 2)
        lazy = torch._lazy_clone(original)
        copy_cache([lazy], [src], 1, 2)
        assert_same_bytes([lazy, original], [*expected, before])

    def test_copy_on_write_destination_that_is_a_source_too(self) -> None:
        """Getting bytes of its own moves it, so that happens before any address is taken, whatever the lists' order."""
        original, first, source = filled(4, 8), filled(4, 8, seed=1), filled(4, 8, seed=2)
        lazy = torch._lazy_clone(original)
        dst, src = [first, lazy], [original, source]
        expected = [reference_copy([d], [s], 1, 2)[0] for d, s in zip(dst, src, strict=True)]
        copy_cache(dst, src, 1, 2)
        assert_same_bytes(dst, expected)
        other = torch._lazy_clone(original)
        with pytest.raises(ValueError, match=r"the range to write in dst\[1\] overlaps the range to read in src\[0\]"):
            copy_cache([first, original], [original, other], 1, 1)

    def test_copy_on_write_source(self) -> None:
        """A lazily cloned source is only read, so it need not get bytes of its own."""
        dst, original = filled(4, 8), filled(4, 8, seed=1)
        expected = reference_copy([dst], [original], 1, 2)
        lazy = torch._lazy_clone(original)
        copy_cache([dst], [lazy], 1, 2)
        assert torch._C._is_cow_tensor(lazy)
        assert_same_bytes([dst], expected)


class TestBatchDim:
    """Dimensions before batch_dim are as good as separate tensors."""

    def test_stacked_cache(self, device: str) -> None:
        check([filled(5, 4, 8, device=device)], [filled(5, 2, 8, device=device, seed=1)], 3, 1, 4, 9, batch_dim=1)

    def test_stacked_equals_list(self, device: str) -> None:
        dst, src = filled(5, 4, 8, device=device), filled(5, 2, 8, device=device, seed=1)
        as_list = dst.clone()
        copy_cache([dst], [src], 3, 1, 4, 9, batch_dim=1)
        copy_cache(list(as_list), list(src), 3, 1, 4, 9)
        assert_same_bytes([dst], [as_list])

    @pytest.mark.parametrize(("dst_batch", "src_batch"), [(1, 2), (2, 1), (1, 1)])
    def test_without_gaps_on_one_side_or_both(self, device: str, dst_batch: int, src_batch: int) -> None:
        dst, src = filled(5, dst_batch, 8, device=device), filled(5, src_batch, 8, device=device, seed=1)
        check([dst], [src], dst_batch - 1, src_batch - 1, batch_dim=1)

    def test_key_and_value_blocks(self, device: str) -> None:
        dst, src = (cache(3, 2, 6, 4, device=device, seed=seed) for seed in (0, 1))
        check(dst, src, 5, 2, batch_dim=1)

    @pytest.mark.parametrize("permutation", [(0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 1, 3), (2, 1, 0, 3)])
    def test_many_leading_dimensions_in_any_order(self, device: str, permutation: tuple[int, ...]) -> None:
        shape = [(2, 3, 4, 6)[permutation.index(dim)] for dim in range(4)]
        dst, src = (filled(*shape, device=device, seed=seed).permute(permutation) for seed in (0, 1))
        assert dst.shape == (2, 3, 4, 6)
        check([dst], [src], 3, 1, batch_dim=2)

    def test_batch_is_the_last_dimension(self, device: str) -> None:
        check([filled(3, 4, device=device)], [filled(3, 4, device=device, seed=1)], 3, 1, batch_dim=1)

    def test_heads_before_the_batch(self, device: str) -> None:
        """[batch, heads, seq, dim] seen as [heads, batch, seq, dim]: a slice of every head in one call."""
        dst, src = filled(4, 3, 5, 2, device=device), filled(2, 3, 5, 2, device=device, seed=1)
        check([dst.transpose(0, 1)], [src.transpose(0, 1)], 3, 1, 8, 16, batch_dim=1)

    def test_broadcast_source(self, device: str) -> None:
        src = filled(2, 8, device=device, seed=1).expand(3, 2, 8)
        check([filled(3, 4, 8, device=device)], [src], 1, 1, batch_dim=1)


class TestSameCache:
    """dst and src may be one cache; the result is as if every source were read before any destination is written."""

    @pytest.mark.parametrize(("dst_index", "src_index"), [(0, 3), (3, 0), (1, 2)])
    def test_row_to_row(self, device: str, dst_index: int, src_index: int) -> None:
        tensors = cache(3, 4, 8, device=device)
        check(tensors, tensors, dst_index, src_index, 4, 20)

    @pytest.mark.parametrize(("dst_index", "src_index"), [(0, 3), (3, 0), (1, 2)])
    def test_row_to_row_stacked(self, device: str, dst_index: int, src_index: int) -> None:
        stacked = filled(5, 4, 8, device=device)
        check([stacked], [stacked], dst_index, src_index, batch_dim=1)

    def test_row_to_row_of_interleaved_layers(self, device: str) -> None:
        whole = filled(4, 5, 6, device=device)
        layers = [whole[:, i] for i in range(5)]
        check(layers, layers, 3, 1)

    def test_row_onto_itself_is_a_no_op(self, device: str) -> None:
        tensors = cache(3, 4, 8, device=device)
        check(tensors, tensors, 2, 2)

    def test_first_range_in_place_and_the_others_not(self, device: str) -> None:
        buffer = filled(80, dtype=torch.uint8, device=device)
        expected = to_host(buffer)
        expected[16:24], expected[32:40] = expected[24:32].clone(), expected[48:56].clone()
        dst, src = (buffer.as_strided((3, 1, 8), (pitch, 8, 1)) for pitch in (16, 24))
        copy_cache([dst], [src], batch_dim=1)
        assert_same_bytes([buffer], [expected])

    def test_a_range_in_place_beside_one_that_reads_it(self, device: str) -> None:
        a, b = filled(4, 8, device=device), filled(4, 8, device=device, seed=1)
        check([a, b], [a, a], 1, 1)

    @pytest.mark.parametrize("shift", [1, -1, 4, -4, 31, -31])
    def test_range_that_partly_overlaps_its_own_source(self, device: str, shift: int) -> None:
        buffer = filled(200, dtype=torch.uint8, device=device)
        expected = to_host(buffer)
        expected[50 + shift : 82 + shift] = expected[50:82].clone()
        copy_cache([buffer[50 + shift : 82 + shift].view(1, 32)], [buffer[50:82].view(1, 32)])
        assert_same_bytes([buffer], [expected])

    def test_stacked_ranges_that_partly_overlap_their_own_sources(self, device: str) -> None:
        buffer = filled(6, 100, dtype=torch.uint8, device=device)
        expected = to_host(buffer)
        expected[:, 10:50] = expected[:, 7:47].clone()
        copy_cache([buffer[:, 10:50].unsqueeze(1)], [buffer[:, 7:47].unsqueeze(1)], batch_dim=1)
        assert_same_bytes([buffer], [expected])

    @pytest.mark.parametrize("shift", [1, -1, 64, -4096])
    @pytest.mark.parametrize("size", [5_000, 1_000_000])
    @pytest.mark.parametrize("rows", [1, 3])
    def test_large_ranges_that_partly_overlap_their_own_sources(self, size: int, shift: int, rows: int) -> None:
        """Large enough for a copy loop that is not careful, and for the threads, to get it wrong."""
        buffer = filled(rows, size + 10_000, dtype=torch.uint8)
        expected = buffer.clone()
        expected[:, 5_000 + shift : 5_000 + shift + size] = buffer[:, 5_000 : 5_000 + size]
        dst, src = (buffer[:, start : start + size].unsqueeze(1) for start in (5_000 + shift, 5_000))
        copy_cache([dst], [src], batch_dim=1)
        assert_same_bytes([buffer], [expected])

    def test_disjoint_slices_of_one_buffer_with_other_strides(self, device: str) -> None:
        buffer = filled(64, dtype=torch.uint8, device=device)
        expected = to_host(buffer)
        dst = buffer.as_strided((4, 1, 2), (16, 2, 1), 0)
        src = buffer.as_strided((4, 1, 2), (8, 2, 1), 4)
        expected.as_strided((4, 1, 2), (16, 2, 1), 0).copy_(to_host(src))
        # src ranges begin at 4, 12, 20, 28 and dst ranges at 0, 16, 32, 48: interleaved, and none touches another.
        copy_cache([dst], [src], batch_dim=1)
        assert_same_bytes([buffer], [expected])


def test_leading_dimension_of_one_with_any_stride(device: str) -> None:
    """Its stride is never walked. To multiply it would overflow, which UndefinedBehaviorSanitizer found."""
    tensor = filled(8, device=device)
    odd = tensor.as_strided((1, 1, 2, 4), (2**62, 2**62, 4, 1))
    expected = reference_copy([tensor.view(2, 4)], [tensor.view(2, 4)], 0, 1)
    copy_cache([odd], [odd], 0, 1, batch_dim=2)
    assert_same_bytes([tensor.view(2, 4)], expected)


class TestLargeCopies:
    """Above a few hundred KiB the bytes are shared among threads; every cut must be right."""

    @pytest.mark.parametrize(
        ("count", "row_bytes"),
        [
            (1, 262_143),
            (1, 262_144),
            (1, 5_000_001),
            (1, 17_000_001),
            (3, 1_000_003),
            (160, 8_191),
            (7, 65_537),
            (2, 3_000_000),
        ],
    )
    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_shared_among_threads(self, count: int, row_bytes: int, threads: int) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            dst, src = (cache(count, 2, row_bytes, dtype=torch.uint8, seed=seed) for seed in (0, 1))
            check(dst, src, 1, 0, 1)
        finally:
            torch.set_num_threads(before)

    def test_memory_does_not_grow_with_the_bytes_copied(self) -> None:
        def peak() -> int:
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

        size = 128 * 2**20
        dst, src = (torch.full((2, size), seed, dtype=torch.uint8) for seed in (0, 1))
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")  # resets the peak to what is resident now
        before = peak()
        copy_cache([dst], [src], 1, 0)
        copy_cache([dst], [dst[:, 1:].as_strided((2, size - 1), (size, 1), 1)], 0, 0, 0, size - 1)  # shifted
        assert peak() - before < size // 8
        assert dst[1].all()


class TestTorch:
    """What the rest of PyTorch may rely on."""

    def test_version_counters_of_dst_are_bumped(self, device: str) -> None:
        dst, src = cache(3, 4, 8, device=device), cache(3, 4, 8, device=device)
        versions = [t._version for t in dst + src]
        copy_cache(dst, src, 1, 2)
        assert [t._version for t in dst + src] == [v + 1 for v in versions[:3]] + versions[3:]

    def test_autograd_sees_that_a_saved_tensor_was_written(self) -> None:
        saved, weight = filled(4, 8), torch.ones(4, 8, requires_grad=True)
        loss = (weight * saved).sum()
        copy_cache([saved], [filled(4, 8, seed=1)])
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_requires_grad_is_allowed_under_no_grad(self) -> None:
        dst, src = torch.zeros(4, 8, requires_grad=True), filled(4, 8)
        with torch.no_grad():
            check([dst], [src], 1, 2)

    def test_source_may_require_grad(self) -> None:
        dst, src = filled(4, 8), filled(4, 8, seed=1).requires_grad_()
        expected = reference_copy([dst], [src.detach()], 1, 2)
        copy_cache([dst], [src], 1, 2)
        assert_same_bytes([dst], expected)
        assert not dst.requires_grad

    def test_requires_grad_is_refused_above_tensors_that_wrap_others(self) -> None:
        """The tensors inside do not require grad: seen there alone, gradients would be silently wrong."""
        leaf = TwoTensor(filled(4, 8), filled(4, 8)).requires_grad_()
        with pytest.raises(ValueError, match=r"copy_cache: dst\[0\] requires grad"):
            copy_cache([leaf * 1], [TwoTensor(filled(4, 8), filled(4, 8))], 1, 2)

        def overwrites(x: torch.Tensor) -> torch.Tensor:
            copy_cache([x], [filled(4, 8)], 1, 2)
            return (x * x).sum()

        with pytest.raises(ValueError, match=r"copy_cache: dst\[0\] requires grad"):
            torch.func.grad(overwrites)(filled(4, 8))

    def test_inference_tensors(self, device: str) -> None:
        with torch.inference_mode():
            dst, src = cache(2, 4, 8, device=device), cache(2, 4, 8, device=device, seed=1)
            check(dst, src, 1, 2)
        # Only one that is no inference tensor leads past the version counters, which those have not.
        check(dst, cache(2, 4, 8, device=device, seed=2), 1, 2)

    def test_conjugated_source_is_read_as_its_values(self) -> None:
        dst, src = filled(4, 2, dtype=torch.complex64), torch.randn(4, 2, dtype=torch.complex64)
        copy_cache([dst], [src.conj()], 1, 2)
        assert torch.equal(dst[1], src[2].conj())

    def test_parameters_and_tuples_are_taken(self) -> None:
        dst = torch.nn.Parameter(filled(4, 8), requires_grad=False)
        expected = reference_copy([dst], [filled(4, 8, seed=1)], 1, 2)
        copy_cache((dst,), (filled(4, 8, seed=1),), 1, 2)
        assert_same_bytes([dst], expected)

    def test_batch_dim_is_checked_while_tracing(self) -> None:
        meta = [torch.empty(4, 8, device="meta")]
        with pytest.raises(ValueError, match=r"batch_dim \(2\) out of range \[0, 2\), the dimensions of dst\[0\]"):
            copy_cache(meta, meta, batch_dim=2)

    def test_meta_tensors_pass_through(self) -> None:
        meta = [torch.empty(4, 8, device="meta")]
        copy_cache(meta, meta, 1, 2)

    def test_python_function_is_the_op(self) -> None:
        import llm_datadist_torch as package

        dst, src = cache(2, 3, 4, 8), cache(2, 3, 4, 8, seed=1)
        expected = reference_copy(dst, src, 1, 2, 3, 4, batch_dim=1)
        package.copy_cache(dst, src, 1, 2, 3, 4, 5, batch_dim=1)
        assert_same_bytes(dst, expected)

    def test_a_refused_call_bumps_nothing(self) -> None:
        dst, src = filled(4, 8), filled(4, 8, seed=1)
        with nothing_written(dst), pytest.raises(ValueError):
            copy_cache([dst], [src], 4)

    def test_bytes_of_a_nan_survive(self) -> None:
        bits = torch.tensor([[0x7FA00001, 0x7FC00002]], dtype=torch.int64).to(torch.int32)
        dst = torch.zeros(1, 2)
        copy_cache([dst], [bits.view(torch.float32)])
        assert torch.equal(as_bytes(dst), as_bytes(bits))
