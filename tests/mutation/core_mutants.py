# SPDX-License-Identifier: Apache-2.0
"""Mistakes in the plan, the CPU and meta kernels and the dispatch, which the CPU tests must find. See mutate.py."""

CORE = {
    "csrc/plan/slice.cpp": {
        "0 <= index && index < rows.batch_size": ["0 <= index && index <= rows.batch_size", "index < rows.batch_size"],
        "0 <= offset && offset < rows.row_bytes": [
            "0 <= offset && offset <= rows.row_bytes",
            "offset < rows.row_bytes",
        ],
        "size <= rows.row_bytes - offset": ["offset + size <= rows.row_bytes", "size <= rows.row_bytes - offset + 1"],
        '"dst_batch_index", slice.dst_batch_index, dst_item, dst': ['"dst_batch_index", 0, dst_item, dst'],
        '"src_batch_index", slice.src_batch_index, src_item, src': ['"src_batch_index", 0, src_item, src'],
        "check_offset(call, slice.offset, dst_item, dst);": [""],
        "check_offset(call, slice.offset, src_item, src);": [""],
        "slice.size > 0 || slice.size == -1": ["slice.size >= -1", "slice.size != 0"],
        "rest <= dst.row_bytes - slice.offset": ["true"],
        "check_size(call, slice.size, slice.offset, dst_item, dst);": [""],
        "check_size(call, slice.size, slice.offset, src_item, src);": [""],
        "copies.scalar_type() == at::kLong": ["true"],
        "copies.dim() == 2 && copies.sym_size(1) == 4": ["copies.dim() == 2"],
        'checked_memory(call, Item{"copies"}, copies);': [""],
        "row[0], row[step], row[2 * step]": ["row[step], row[0], row[2 * step]"],
        "const int64_t step = copies.stride(1);": ["const int64_t step = 1;"],
        "copies.layout() == at::kStrided": ["true"],
        "if (copies.size(0) == 0) {": ["if (false) {"],
        "copies.stride(0) == 0 ? std::min<int64_t>(copies.size(0), 2) : copies.size(0)": ["copies.size(0)"],
    },
    "csrc/plan/row_layout.cpp": {
        "dst.size() == src.size()": ["true"],
        "tensor.defined()": ["true"],
        "tensor.layout() == at::kStrided": ["true"],
        "tensor.device() == first.device()": ["true"],
        "tensor.scalar_type() == like.scalar_type()": ["true"],
        "!dst[index].get().requires_grad()": ["true"],
        "0 <= batch_dim && batch_dim < tensor.dim()": [
            "batch_dim < tensor.dim()",
            "0 <= batch_dim && batch_dim <= tensor.dim()",
        ],
        "tensor.numel() > 0": ["true"],
        "*bytes <= room - first": ["*bytes <= room"],
        "first <= room &&": [""],
        "data != nullptr": ["true"],
        "has_dense_rows(tensor, batch_dim)": ["true"],
        "batch_stride >= row_bytes": ["true"],
        "if (stride != elements)": ["if (stride > elements)"],
        "CHECK_CALL(call, inside,": ["CHECK_CALL(call, true,"],
        "!dst.empty()": ["true"],
        "at::GradMode::is_enabled() &&": [""],
        "if (sizes[dim] > 1) {": ["if (true) {"],
        "return memory_in_storage(call, item, tensor, bytes);": ["return memory_in_storage(call, item, tensor, 0);"],
    },
    "csrc/plan/tensor_pair.cpp": {
        "pair.dst->sizes().slice(0, batch_dim) == pair.src->sizes().slice(0, batch_dim)": ["true"],
        "row_layout(call, pair.src_item(), *pair.src, batch_dim)": [
            "row_layout(call, pair.src_item(), *pair.dst, batch_dim)"
        ],
        "pair.to() + dst_offset, 0, pair.from() + src_offset": ["pair.to() + src_offset, 0, pair.from() + dst_offset"],
        "dst_pitch >= width && src_pitch >= width": ["dst_pitch >= width"],
        "base.src - last.src == src_pitch * last.height": ["true"],
        "!same_layout(next_dst, *pair.dst) ||": [""],
        "|| !same_layout(next_src, *pair.src)": [""],
        "same(a.sizes(), b.sizes()) &&": [""],
        "&& same(a.strides(), b.strides())": [""],
        "bool equal = a.size() == b.size();": ["bool equal = true;"],
        "++pair.index;": [""],
        "next_dst, pair.dst_memory.bytes": ["next_dst, 0"],
        "next_src, pair.src_memory.bytes": ["next_src, 0", "next_src, pair.dst_memory.bytes"],
    },
    "csrc/plan/overlap.cpp": {
        "if (clearly_apart(step)) {": ["if (true) {"],
        "gap >= width && base.dst_pitch - gap >= width": ["gap >= width", "base.dst_pitch - gap >= width"],
        "(first || extent.begin >= last.end)": ["(first || extent.begin >= last.begin)"],
        "(first || extent.end <= last.begin)": ["(first || extent.begin <= last.begin)"],
        "&& disjoint(all_dst, all_src)": [""],
        "if (reaches(last_dst)) {": ["if (false) {"],
        "!range.onto_itself && reaches(src)": ["reaches(src)", "false"],
        "reaches(last_written) && last_written->position != range.position": ["false"],
        "shifts = shifts || (!onto_itself && !disjoint(dst, src));": [""],
    },
    "csrc/plan/copy_plan.cpp": {
        "check_room(call, pair, width);": [""],
        "materialize(dst);": [""],
        "slice.dst_batch_index * pair.dst_rows.batch_stride + slice.offset": [
            "slice.src_batch_index * pair.dst_rows.batch_stride + slice.offset"
        ],
        "slice.src_batch_index * pair.src_rows.batch_stride + slice.offset": [
            "slice.src_batch_index * pair.src_rows.batch_stride"
        ],
        "if (step.lists[list].bytes == width) {": ["if (step.lists[list].bytes >= width) {"],
    },
    "csrc/plan/batch_plan.cpp": {
        "slice.dst_batch_index * pair.dst_rows.batch_stride + slice.offset": [
            "slice.dst_batch_index * pair.src_rows.batch_stride + slice.offset"
        ],
        "if (const auto twice = find_double_write(moves)) {": [
            "find_double_write(moves); if (const std::optional<std::pair<int64_t, int64_t>> twice = std::nullopt) {"
        ],
        "pair.dst_rows == first.dst_rows && pair.src_rows == first.src_rows && shift == group.shift": [
            "pair.dst_rows == first.dst_rows && shift == group.shift",
            "pair.dst_rows == first.dst_rows && pair.src_rows == first.src_rows",
        ],
        "move.src += group.shift.value_or(0);": [""],
        "check_room(call, pair, groups[group_of.back()].bytes);": [""],
        "direct.in_order = direct.in_order || order.in_order;": [""],
        "materialize(dst);": [""],
        "{call.op, call.req_id, copy}": ["{call.op, call.req_id}"],
        "sort_by_dst(call, group.moves,": ["if (false) sort_by_dst(call, group.moves,"],
        "sort_by_dst(call, groups[0].moves,": ["if (false) sort_by_dst(call, groups[0].moves,"],
        "before + move.index": ["move.index"],
        "move % copies": ["move"],
        "-groups[list].shift.value_or(0)": ["0"],
    },
    "csrc/plan/grid.cpp": {
        "dim.size > 1 && dim.stride < reach": ["false"],
        "shift % batch.stride != 0": ["false"],
        "dst[dim].size > 1 && dst[dim].stride != src[dim].stride": ["false"],
        "extent.begin < (written ? end : written_end)": ["false"],
    },
    "csrc/plan/schedule.cpp": {
        "moves[i].dst < moves[i - 1].dst + moves[i - 1].width": ["moves[i].dst == moves[i - 1].dst"],
        "staged_[move] = true; } else": ["} else"],
        "std::reverse(done.begin(), done.end());": [""],
        "last.src + last.width == move.src": ["true"],
    },
    "csrc/plan/staging.cpp": {
        "step.spans[i].src = step.spans[i].before;": ["step.spans[i].src = 0;"],
        "at += pitch * base.height;": ["at += pitch;"],
    },
    "csrc/plan/host_copy.cpp": {
        "column_ = skip - span_->before;": ["column_ = 0;"],
        "std::memmove(range.dst, range.src, range.bytes);": ["std::memcpy(range.dst, range.src, 1);"],
        "if (Clock::now() >= *deadline_) {": ["if (false) {"],
        "places_ -= places;": [""],
        "while (left > 0 || copied != fetched);": ["while (left > 0);", "while (copied != fetched);"],
        "ahead -= range.bytes;": [""],
        "&& fetched - copied < kAheadRanges": [""],
        "fetched - copied < kAheadRanges": ["fetched - copied <= kAheadRanges"],
        "since_look_ += bytes;": [""],
        "if (!in_time(range.bytes)) {": ["if (false) {"],
        "if (!in_time(bytes)) {": ["if (false) {"],
        "copy_cached(range.dst + at, range.src + at": ["copy_cached(range.dst + at, range.src"],
        "copy_streaming(range.dst + at, range.src": ["copy_streaming(range.dst, range.src"],
        "done = false;": [""],
        "std::min(step.bytes, last * kUnitBytes)": ["last * kUnitBytes"],
    },
    "csrc/plan/copy_bytes.cpp": {
        "std::memcpy(dst + at, src + at, bytes - at);": [""],
    },
    "csrc/cpu/copy_kernel.cpp": {
        '{"copy_cache", req_id}; const Slice slice{dst_batch_index, src_batch_index, offset, size}; run(': [
            '{"copy_cache", req_id}; const Slice slice{src_batch_index, dst_batch_index, offset, size}; run('
        ],
        '{"copy_cache", req_id}; const Slice slice{dst_batch_index, src_batch_index, offset, size}; return': [
            '{"copy_cache", req_id}; const Slice slice{dst_batch_index, src_batch_index, size, offset}; return'
        ],
        "run(call, plan_batch(call, dst, src, copies, batch_dim), std::nullopt);": [
            "run(call, plan_batch(call, src, dst, copies, batch_dim), std::nullopt);"
        ],
        "plan_batch(call, dst, src, copies, batch_dim), deadline": [
            "plan_batch(call, src, dst, copies, batch_dim), deadline",
            "plan_batch(call, dst, src, copies, batch_dim), std::nullopt",
        ],
        "plan_copy(call, dst, src, slice, batch_dim), deadline": [
            "plan_copy(call, dst, src, slice, batch_dim), std::nullopt"
        ],
    },
    "csrc/meta/copy_kernel.cpp": {
        "check_lists(call, dst, src);": [""],
        "check_copies(call, copies);": [""],
        'check_batch_dim(call, {"dst", index}, dst[index], batch_dim);': [""],
        'check_batch_dim(call, {"src", index}, src[index], batch_dim);': [""],
        "dst.front().get().is_meta() || src.front().get().is_meta()": ["true"],
        "dst.front().get().is_meta() && src.front().get().is_meta()": ["true"],
    },
    "csrc/composite/refuse.cpp": {
        "check_copies(call, arguments[2].toTensor());": [""],
        "check_lists(call, tensors_of(dst), tensors_of(src));": [""],
        "TORCH_LIBRARY_IMPL(llm_datadist, CompositeExplicitAutograd, m) {": [
            "[[maybe_unused]] void not_registered(torch::Library& m) {"
        ],
        "TORCH_LIBRARY_IMPL(llm_datadist, CompositeImplicitAutogradNestedTensor, m) {": [
            "[[maybe_unused]] void not_registered(torch::Library& m) {"
        ],
    },
    "csrc/boxed_call.h": {
        'arguments[2].isTensor() ? "copy_cache_batch" : "copy_cache"': ['"copy_cache"'],
        "req_id.isInt() ? std::optional(req_id.toInt()) : std::nullopt": ["std::nullopt"],
    },
    "csrc/ad_inplace_or_view/bump_version.cpp": {
        "tensor.unsafeGetTensorImpl()->bump_version();": [""],
        "check_grad(call_of(op, *stack), tensors_of(dst));": [""],
        "if (!tensor.is_inference()) {": ["if (true) {"],
    },
    "csrc/library.cpp": {
        "at::Tag::pt2_compliant_tag,": [""],
        ", at::Tag::needs_exact_strides": [""],
    },
}
