# SPDX-License-Identifier: Apache-2.0
"""Mistakes in the plan, the CPU and meta kernels and the dispatch, which the CPU tests must find. See mutate.py."""

CORE = {
    "csrc/plan/slice.cpp": {
        "0 <= index && index < side.rows.batch_size": [
            "0 <= index && index <= side.rows.batch_size",
            "index < side.rows.batch_size",
        ],
        "0 <= offset && offset < side.rows.row_bytes": [
            "0 <= offset && offset <= side.rows.row_bytes",
            "offset < side.rows.row_bytes",
        ],
        "size <= side.rows.row_bytes - offset": [
            "offset + size <= side.rows.row_bytes",
            "size <= side.rows.row_bytes - offset + 1",
        ],
        '"dst_batch_index", slice.dst_batch_index, dst': ['"dst_batch_index", 0, dst'],
        '"src_batch_index", slice.src_batch_index, src': ['"src_batch_index", 0, src'],
        "check_offset(call, slice.offset, dst);": [""],
        "check_offset(call, slice.offset, src);": [""],
        "slice.size > 0 || slice.size == -1": ["slice.size >= -1", "slice.size != 0"],
        "rest <= dst.rows.row_bytes - slice.offset": ["true"],
        "check_size(call, slice.size, slice.offset, dst);": [""],
        "check_size(call, slice.size, slice.offset, src);": [""],
        "slice.dst_batch_index * pair.dst.rows.batch_stride + slice.offset": [
            "slice.src_batch_index * pair.dst.rows.batch_stride + slice.offset",
            "slice.dst_batch_index * pair.src.rows.batch_stride + slice.offset",
        ],
        "slice.src_batch_index * pair.src.rows.batch_stride + slice.offset": [
            "slice.src_batch_index * pair.src.rows.batch_stride"
        ],
        'checked_data(call, TensorName{"copies"}, copies);': [""],
        "row[0], row[column], row[2 * column]": ["row[column], row[0], row[2 * column]"],
        "const int64_t column = copies.stride(1);": ["const int64_t column = 1;"],
        "if (copies.size(0) == 0) {": ["if (false) {"],
        "copies.stride(0) == 0 ? std::min<int64_t>(copies.size(0), 2) : copies.size(0)": ["copies.size(0)"],
    },
    "csrc/plan/checks.cpp": {
        "CHECK_CALL(call, tensor.defined()": ["CHECK_CALL(call, true"],
        "CHECK_CALL(call, tensor.layout() == at::kStrided": ["CHECK_CALL(call, true"],
        "tensor.device() == first.device()": ["true"],
        "tensor.scalar_type() == dtype": ["true"],
        "tensor.numel() > 0": ["true"],
        "storage_bytes(geometry, bytes) && bytes <= storage.nbytes()": [
            "storage_bytes(geometry, bytes)",
            "bytes <= storage.nbytes()",
        ],
        "static_cast<uint64_t>(tensor.storage_offset) + 1": ["uint64_t{1}"],
        "data != nullptr": ["true"],
        "data + geometry.storage_offset * geometry.itemsize": ["data"],
        "if (tensor.sizes[dim] > 1) {": ["if (true) {"],
        "if (stride != elements) {": ["if (stride > elements) {"],
        "dst.size() == src.size()": ["true"],
        "!dst.empty()": ["true"],
        "if (!at::GradMode::is_enabled()) { return; }": [""],
        "!dst[index].get().requires_grad()": ["true"],
        "copies.layout() == at::kStrided": ["true"],
        "copies.scalar_type() == at::kLong": ["true"],
        "copies.dim() == 2 && copies.sym_size(1) == 4": ["copies.dim() == 2"],
        "check_batch_dim(call, name, tensor, batch_dim);": [""],
        "tensor.is_contiguous() || has_dense_rows(geometry, batch_dim)": ["true"],
        "batch_size == 1 ? row_bytes : geometry.strides[batch_dim] * geometry.itemsize": [
            "geometry.strides[batch_dim] * geometry.itemsize"
        ],
        "batch_stride >= row_bytes": ["true"],
    },
    "csrc/plan/checks.h": {
        "0 <= batch_dim && batch_dim < tensor.dim()": [
            "batch_dim < tensor.dim()",
            "0 <= batch_dim && batch_dim <= tensor.dim()",
        ],
    },
    "csrc/plan/tensor_pair.cpp": {
        "tensor.storage().mutable_data();": [""],
        "dst.sizes().slice(0, batch_dim) == src.sizes().slice(0, batch_dim)": ["true"],
        "checked_rows(call, src_name, src, batch_dim)": ["checked_rows(call, src_name, dst, batch_dim)"],
        "places == 1 || places <= static_cast<int64_t>(dst.storage().nbytes()) / bytes": ["true"],
        "pair.dst.rows.data) + dst_offset, 0, pair.src.rows.data + src_offset": [
            "pair.dst.rows.data) + src_offset, 0, pair.src.rows.data + dst_offset"
        ],
        "if (base.height == 1) {": ["if (true) {"],
    },
    "csrc/plan/step.cpp": {
        "dst_pitch >= width && src_pitch >= width &&": ["dst_pitch >= width &&"],
        "distance(last.src, base.src) == src_pitch * last.height &&": [""],
        "base.span_list == last.span_list && ": [""],
        "bytes += span_list_of(base).bytes * base.height;": ["bytes += span_list_of(base).bytes;"],
        "added.bytes += span.width;": ["added.bytes = span.width;"],
        "step.spans[i].src_offset = step.spans[i].bytes_before;": ["step.spans[i].src_offset = 0;"],
        "position += pitch * base.height;": ["position += pitch;"],
    },
    "csrc/plan/overlap.cpp": {
        "if (clearly_apart(step)) {": ["if (true) {"],
        "gap >= width && base.dst_pitch - gap >= width": ["gap >= width", "base.dst_pitch - gap >= width"],
        "dst_ascends && dst.begin >= last_dst.end": ["dst_ascends && dst.begin >= last_dst.begin"],
        "pair.begin >= last_pair.end && ": [""],
        "(disjoint(dst, src) || apart_by_pitch(base, width))": ["true"],
        "(dst_ascends && disjoint(all_dst, all_src))": ["dst_ascends"],
        "if (const auto twice = find_double_write(copies)) {": [
            "find_double_write(copies); if (std::optional<std::pair<ByteCopy, ByteCopy>> twice; twice) {"
        ],
        "std::erase_if(copies, [](const ByteCopy& copy) { return copy.onto_itself(); });": [""],
        "if (writer != static_cast<int64_t>(copy)) {": ["if (false) {"],
        "self_overlap = true;": [""],
    },
    "csrc/plan/byte_copy.cpp": {
        "b.dst < a.dst + a.width": ["b.dst == a.dst"],
        "std::sort(copies.begin(), copies.end(), by_dst);": [""],
        "std::tie(a.tensor, a.copy) < std::tie(b.tensor, b.copy)": ["false"],
        "copy.src + copy.width <= copies.front().dst ||": ["copy.src <= copies.front().dst ||"],
        "copies.back().dst + copies.back().width <= copy.src": ["copies.back().dst <= copy.src"],
        "other.dst + other.width <= copy.src": ["other.dst + other.width < copy.src"],
        "other.dst < copy.src + copy.width": ["other.dst <= copy.src + copy.width", "other.dst < copy.src"],
    },
    "csrc/plan/plan_copy.cpp": {
        "check_places(call, pair, copy.width);": [""],
        "if (step.span_lists[list].bytes == width) {": ["if (step.span_lists[list].bytes >= width) {"],
        "base.dst == base.src && (base.height == 1 || base.dst_pitch == base.src_pitch)": ["base.dst == base.src"],
        "width * base.height": ["width"],
        "step.order_matters = self_overlap;": [""],
    },
    "csrc/plan/plan_batch.cpp": {
        "alike(pair.src.rows, pairs.front()->src.rows) &&": [""],
        "a.row_bytes == b.row_bytes && ": [""],
        "a.batch_stride == b.batch_stride": ["true"],
        "offset == row_offset;": ["true;"],
        "refuse_double_write(call, group.copies);": [""],
        "refuse_double_write(call, all.copies);": [""],
        "copy.src += row_offset.value_or(0);": [""],
        "of_copy.copy = static_cast<int64_t>(group.copies.size());": [""],
        "copy.copy = of_copy.copy;": [""],
        "group.bytes += copy.width;": ["group.bytes = copy.width;"],
        "check_places(call, pair, group->bytes);": [""],
        "copy.dst += distance(origin, dst);": [""],
        "copy.src += distance(origin, src);": ["copy.src += distance(origin, dst);"],
        "copy.tensor = base.tensor;": [""],
        "-group.row_offset.value_or(0)": ["0"],
        "direct.order_matters = direct.order_matters || order.order_matters;": [""],
    },
    "csrc/plan/row_offset.cpp": {
        "dim.size > 1 && dim.stride < reach": ["false"],
        "row_offset % batch.stride != 0": ["false"],
        "dst[dim].size > 1 && dst[dim].stride != src[dim].stride": ["false"],
        "(src_batch > 1 && src.back().stride != batch.stride)": ["false"],
        "range.begin < (written ? end : written_end)": ["false", "range.begin < written_end"],
        "if (!nested(dst, pair.dst.rows.row_bytes)) {": ["if (false) {"],
    },
    "csrc/plan/schedule.cpp": {
        "state_[writer] == State::kOnPath": ["false"],
        "std::reverse(finished.begin(), finished.end());": [""],
        "last.src_offset + last.width == copy.src": ["true"],
        "return copy.onto_itself();": ["return false;"],
        "result.order_matters = orderer.order_matters();": [""],
        "append(result.staged, copies[copy], true);": ["append(result.direct, copies[copy], true);"],
    },
    "csrc/host/host_copy.cpp": {
        "column_ = skip - span_->bytes_before;": ["column_ = 0;"],
        "std::memmove(range.dst, range.src, range.bytes);": ["std::memcpy(range.dst, range.src, 1);"],
        "if (Clock::now() >= *deadline_) {": ["if (false) {"],
        "places_ -= places;": [""],
        "while (left > 0 || copied != prefetched);": ["while (left > 0);", "while (copied != prefetched);"],
        "ahead -= range.bytes;": [""],
        " && prefetched - copied < kAheadRanges": ["", " && prefetched - copied <= kAheadRanges"],
        "since_check_ += bytes;": [""],
        "if (!in_time(range.bytes)) {": ["if (false) {"],
        "if (!in_time(bytes)) {": ["if (false) {"],
        "copy_cached(range.dst + at, range.src + at": ["copy_cached(range.dst + at, range.src"],
        "copy_streaming(range.dst + at, range.src + at": ["copy_streaming(range.dst, range.src + at"],
        "done = false;": [""],
        "std::min(step.bytes, last * kUnitBytes)": ["last * kUnitBytes"],
        "const int64_t places = std::min(place, base.height);": ["const int64_t places = base.height;"],
        "if (step.order_matters) {": ["if (false) {"],
    },
    "csrc/host/copy_bytes.cpp": {"std::memcpy(dst + at, src + at, bytes - at);": [""]},
    "csrc/cpu/copy_kernel.cpp": {
        "const Slice slice{dst_batch_index, src_batch_index, offset, size}; run(": [
            "const Slice slice{src_batch_index, dst_batch_index, offset, size}; run("
        ],
        "const Slice slice{dst_batch_index, src_batch_index, offset, size}; return": [
            "const Slice slice{dst_batch_index, src_batch_index, size, offset}; return"
        ],
        "plan_batch(call, dst, src, copies, batch_dim), std::nullopt": [
            "plan_batch(call, src, dst, copies, batch_dim), std::nullopt"
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
    "csrc/unsupported/unsupported.cpp": {
        "check_copies(call, arguments[*copies].toTensor());": [""],
        "check_lists(call, tensors_of(dst), tensors_of(src));": [""],
        "TORCH_LIBRARY_IMPL(llm_datadist, CompositeExplicitAutograd, m) {": [
            "[[maybe_unused]] void not_registered(torch::Library& m) {"
        ],
        "TORCH_LIBRARY_IMPL(llm_datadist, CompositeImplicitAutogradNestedTensor, m) {": [
            "[[maybe_unused]] void not_registered(torch::Library& m) {"
        ],
    },
    "csrc/boxed_call.h": {
        'name.remove_prefix(name.find("::") + 2);': [""],
        "if (name.ends_with(suffix)) {": ["if (false) {"],
        "req_id.isInt() ? std::optional(req_id.toInt()) : std::nullopt": ["std::nullopt"],
    },
    "csrc/ad_inplace_or_view/bump_version.cpp": {
        "tensor.unsafeGetTensorImpl()->bump_version();": [""],
        "check_grad(context_of(op, *stack), tensors_of(dst));": [""],
        "if (!tensor.is_inference()) {": ["if (true) {"],
    },
    "csrc/compat/compat.h": {
        "{Tag::pt2_compliant_tag, Tag::needs_exact_strides}": [
            "{Tag::needs_exact_strides}",
            "{Tag::pt2_compliant_tag}",
        ],
    },
}
