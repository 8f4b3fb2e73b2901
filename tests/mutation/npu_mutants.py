# SPDX-License-Identifier: Apache-2.0
"""Mistakes in the NPU kernel, and in the plan where only NPUs show them. The NPU tests must find them: mutate.py."""

NPU = {
    "csrc/npu/copy_commands.cpp": {
        "copy.dst + row * copy.dst_pitch, copy.src + row * copy.src_pitch, copy.width, copy.name": [
            "copy.dst + row * copy.src_pitch, copy.src + row * copy.dst_pitch, copy.width, copy.name"
        ],
        "if (memcpy_2d == nullptr || copy.width > kMax2dWidth) {": ["if (memcpy_2d == nullptr) {"],
        "row += kMax2dHeight": ["row += copy.height"],
        "if (row == 0 && unsupported(code)) {": ["if (false) {"],
        "if (first_ && unsupported(code)) {": ["if (false) {"],
        "done += kMaxBytes": ["done += bytes"],
        "if (step.order_matters || over_places <= over_spans) {": ["if (over_places <= over_spans) {", "if (true) {"],
        "length > 1 && spans[1].dst_offset - spans[0].dst_offset >= spans[0].width &&": ["length > 1 &&"],
        "spans[1].src_offset - spans[0].src_offset >= spans[0].width": ["true"],
        "spans[next].width == last.width &&": [""],
        "spans[next].dst_offset - last.dst_offset == spans[1].dst_offset - spans[0].dst_offset &&": ["true &&"],
        "spans[next].src_offset - last.src_offset == spans[1].src_offset - spans[0].src_offset": ["true"],
        "runs[base.span_list] * base.height": ["runs[0] * base.height", "runs[base.span_list]"],
        "first_ = false;": [""],
        "to_device ? on_device : on_host, to_device ? on_host : on_device": [
            "to_device ? on_host : on_device, to_device ? on_device : on_host"
        ],
        "if (dst_.size() == kMaxBatch) { flush();": [
            "if (dst_.size() == kMaxBatch) { dst_.clear(); src_.clear(); bytes_.clear(); names_.clear();"
        ],
    },
    "csrc/npu/submission.cpp": {
        "dst_device.is_cpu() || src_device.is_cpu() || dst_device == src_device": ["true"],
        'check_format(call, "dst", dst);': [""],
        'check_format(call, "src", src);': [""],
        'refuse_pageable_capture(call, "src");': [""],
        'refuse_pageable_capture(call, "dst");': [""],
        "if (buffer.const_data_ptr() == nullptr) {": ["if (false) {"],
        "submission->owned.assign(dst.begin(), dst.end());": [""],
        "if (!deadline) {": ["if (true) {"],
        "!all_pinned(src)": ["false"],
        "!all_pinned(dst)": ["false"],
        "return std::all_of(tensors.begin()": ["return std::any_of(tensors.begin()"],
        "deadline); submission->buffers.push_back(buffer);": ["deadline);"],
        "std::move(to_buffer))); submission->buffers.push_back(buffer);": ["std::move(to_buffer)));"],
        "std::move(owned.begin(), owned.end(), std::back_inserter(deferred_releases().tensors));": [""],
        "tensors.swap(deferred_releases().tensors);": [
            "",
            "tensors.swap(deferred_releases().tensors); tensors.clear();",
        ],
    },
    "csrc/npu/copy_kernel.cpp": {
        "record_pinned(src, stream);": [""],
        "record_pinned(dst, stream);": [""],
        "record_pinned(submission->buffers, stream);": [""],
        "in_use.insert(in_use.end(), dst.begin(), dst.end());": [""],
        "CHECK_ACL(call, aclrtStreamWaitEvent(side.stream, side.before)": ["CHECK_ACL(call, aclError{ACL_SUCCESS}"],
        "if (issued.wait_until(deadline) != std::future_status::ready) {": ["issued.wait(); if (false) {"],
        "if (code == compat::kStreamSyncTimeout) {": ["if (false) {"],
        "if (submission->timed_out) {": ["if (false) {"],
        "std::move(in_use)}); });": ["{}}); });"],
        "const Slice slice{dst_batch_index, src_batch_index, offset, size}; submit_async(": [
            "const Slice slice{src_batch_index, dst_batch_index, offset, size}; submit_async("
        ],
        "const Slice slice{dst_batch_index, src_batch_index, offset, size}; return": [
            "const Slice slice{src_batch_index, dst_batch_index, offset, size}; return"
        ],
        "handle = stream.stream(false)": [
            "handle = stream.stream(true)",
            "handle = c10_npu::getDefaultNPUStream(submission->device.index()).stream(false)",
        ],
        "at_npu::native::OpCommand::RunOpApiV2(queue_name(call), task); record_pinned(dst": [
            "task(); record_pinned(dst"
        ],
        "release_deferred(); const ProfilerRange": ["const ProfilerRange"],
        "const c10::DeviceGuard guard(submission->device); const": ["const"],
        "release_deferred(); if (side": ["if (side"],
        "const c10::DeviceGuard guard(submission->device); TORCH_CHECK": ["TORCH_CHECK"],
        "TORCH_CHECK(c10_npu::currentStreamCaptureStatusMayInitCtx() == c10_npu::CaptureStatus::None, call.op": [
            "TORCH_CHECK(true, call.op"
        ],
        "in_use = submission->buffers;": ["in_use;"],
        "in_use.insert(in_use.end(), src.begin(), src.end());": [""],
        "CHECK_ACL(call, aclrtRecordEvent(side.before, current)": ["CHECK_ACL(call, aclError{ACL_SUCCESS}"],
        "CHECK_ACL(call, aclrtRecordEvent(side.after, side.stream)": ["CHECK_ACL(call, aclError{ACL_SUCCESS}"],
        "CHECK_ACL(call, aclrtStreamWaitEvent(current, side.after)": ["CHECK_ACL(call, aclError{ACL_SUCCESS}"],
        "std::make_shared<std::promise<void>>();": [
            "*new std::shared_ptr<std::promise<void>>(new std::promise<void>);"
        ],
        "park(device, {issued, side, std::move(in_use)});": [""],
        "park_copy.release();": [""],
        "synchronize_until(side->stream, deadline);  // so that": [";  // so that"],
        "release_side_stream(device, side);": [""],
        "std::all_of(submission->host_steps_after.begin()": ["std::all_of(submission->host_steps_after.end()"],
        "return copy_on_host(step, deadline);": ["return copy_on_host(step, std::nullopt);"],
    },
    "csrc/npu/side_stream.cpp": {
        "if (!wait_for_unfinished(device, deadline)) {": ["if (false) {"],
        "const std::unique_lock waiting(device.waiting, deadline);": [
            "const bool waiting = true;",
            "const std::unique_lock waiting(device.waiting);",
        ],
        "if (copy->issued.wait_until(deadline) != std::future_status::ready) {": ["if (false) {"],
        "if (code == compat::kStreamSyncTimeout) {": ["if (false) {"],
        "if (code == ACL_SUCCESS) {": ["if (true) {"],
        "release_side_stream(index, copy->side);": [""],
        "finished.push_back(std::move(device.unfinished.front()));": [""],
        "aclrtDestroyEvent(event);": [""],
        "aclrtDestroyStream(stream);": [""],
        "std::max<int64_t>(1, left)": ["left"],
    },
    "csrc/plan/plan_copy.cpp": {"if (self_overlap && !first.is_cpu()) {": ["if (false) {"]},
    "csrc/plan/step.cpp": {
        "const int64_t width = span_list_of(base).widest;": ["const int64_t width = span_list_of(base).bytes;"],
        "base.dst_pitch < width || base.src_pitch < width": ["base.dst_pitch < width"],
    },
    "csrc/plan/schedule.cpp": {
        "staged_[copy] = staged_[copy] || std::abs(copies_[copy].dst - copies_[copy].src) < copies_[copy].width;": [""],
        "(may_overlap || std::abs(copy.dst - copy.src) >= width)": ["true"],
        "return copy.onto_itself();": ["return false;"],
    },
    "csrc/plan/checks.cpp": {"copies.is_cpu() || copies.is_meta()": ["true"]},
}
