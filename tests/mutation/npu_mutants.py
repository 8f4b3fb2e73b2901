# SPDX-License-Identifier: Apache-2.0
"""Mistakes in the NPU kernel, and those in the plan that only matter on an NPU, which the NPU tests must find. See mutate.py."""

NPU = {
    "csrc/npu/copy_commands.cpp": {
        "copy.dst + row * copy.dst_pitch, copy.src + row * copy.src_pitch, copy.width, copy.item": [
            "copy.dst + row * copy.src_pitch, copy.src + row * copy.dst_pitch, copy.width, copy.item"
        ],
        "if (memcpy_2d == nullptr || copy.width > kMax2dWidth) {": ["if (memcpy_2d == nullptr) {"],
        "row += kMax2dHeight": ["row += copy.height"],
        "if (row == 0 && refused(code)) {": ["if (false) {"],
        "if (first_ && refused(code)) {": ["if (false) {"],
        "done += kMaxBytes": ["done += bytes"],
        "if (step.in_order || over_places <= over_spans) {": ["if (over_places <= over_spans) {", "if (true) {"],
        "length > 1 && spans[1].dst - spans[0].dst >= spans[0].width &&": ["length > 1 &&"],
        "spans[1].src - spans[0].src >= spans[0].width": ["true"],
        "spans[next].width == last.width &&": [""],
        "spans[next].dst - last.dst == spans[1].dst - spans[0].dst &&": ["true &&"],
        "spans[next].src - last.src == spans[1].src - spans[0].src": ["true"],
        "runs_of[base.spans] * base.height": ["runs_of[0] * base.height", "runs_of[base.spans]"],
        "first_ = false;": [""],
        "to_device ? on_device : on_host, to_device ? on_host : on_device": [
            "to_device ? on_host : on_device, to_device ? on_device : on_host"
        ],
        "if (dst_.size() == kMaxBatch) {": [
            "if (dst_.size() == kMaxBatch - 1) { dst_.clear(); src_.clear(); bytes_.clear(); items_.clear(); } if (false) {"
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
        "std::move(owned.begin(), owned.end(), std::back_inserter(retired().tensors));": [""],
        "tensors.swap(retired().tensors);": [""],
        "std::vector<at::Tensor> tensors; const std::lock_guard lock(retired().mutex);": [
            "const std::lock_guard lock(retired().mutex); std::vector<at::Tensor> tensors;"
        ],
    },
    "csrc/npu/copy_kernel.cpp": {
        "record_pinned(src, stream);": [""],
        "record_pinned(dst, stream);": [""],
        "record_pinned(submission->buffers, stream);": [""],
        "in_use.insert(in_use.end(), dst.begin(), dst.end());": [""],
        "CHECK_ACL(call, aclrtStreamWaitEvent(side.stream, side.before)": ["CHECK_ACL(call, aclError{ACL_SUCCESS}"],
        "if (enqueued.wait_until(deadline) != std::future_status::ready) {": ["enqueued.wait(); if (false) {"],
        "if (code == ACL_ERROR_RT_STREAM_SYNC_TIMEOUT) {": ["if (false) {"],
        "if (submission->late) {": ["if (false) {"],
        "std::move(in_use)});": ["{}});"],
        "const Slice slice{dst_batch_index, src_batch_index, offset, size}; enqueue(": [
            "const Slice slice{src_batch_index, dst_batch_index, offset, size}; enqueue("
        ],
        "const Slice slice{dst_batch_index, src_batch_index, offset, size}; return": [
            "const Slice slice{src_batch_index, dst_batch_index, offset, size}; return"
        ],
        "handle = stream.stream(false)": ["handle = stream.stream(true)"],
        "release_retired(); const ProfilerRange": ["const ProfilerRange"],
        "const c10::DeviceGuard guard(submission->device); const": ["const"],
        "release_retired(); if (side": ["if (side"],
        "const c10::DeviceGuard guard(submission->device); TORCH_CHECK": ["TORCH_CHECK"],
        "TORCH_CHECK(c10_npu::currentStreamCaptureStatusMayInitCtx() == c10_npu::CaptureStatus::None, call.op": [
            "TORCH_CHECK(true, call.op"
        ],
        "in_use = submission->buffers;": ["in_use;"],
        "in_use.insert(in_use.end(), src.begin(), src.end());": [""],
        "CHECK_ACL(call, aclrtRecordEvent(side.before, current)": ["CHECK_ACL(call, aclError{ACL_SUCCESS}"],
        "CHECK_ACL(call, aclrtRecordEvent(side.after, side.stream)": ["CHECK_ACL(call, aclError{ACL_SUCCESS}"],
        "CHECK_ACL(call, aclrtStreamWaitEvent(current, side.after)": ["CHECK_ACL(call, aclError{ACL_SUCCESS}"],
        "const auto promise = std::make_shared<std::promise<void>>();": [
            "static std::vector<std::shared_ptr<std::promise<void>>> kept; const auto promise = kept.emplace_back(std::make_shared<std::promise<void>>());"
        ],
        "leave(device, {enqueued, side, std::move(in_use)});": [""],
        "leave_it.release();": [""],
        "synchronize_until(side->stream, deadline);  // the commands": [";  // the commands"],
        "give_back(device, side);": [""],
        "return std::all_of(submission->afterwards.begin(), submission->afterwards.end(), [&](const Step& step) { return copy_on_host(step, deadline); });": [
            "return true;"
        ],
        "return copy_on_host(step, deadline);": ["return copy_on_host(step, std::nullopt);"],
    },
    "csrc/npu/side_stream.cpp": {
        "if (!finish_late(device, deadline)) {": ["if (false) {"],
        "const std::unique_lock finishing(device.finishing, deadline);": [
            "const bool finishing = true;",
            "const std::unique_lock finishing(device.finishing);",
        ],
        "if (copy->enqueued.wait_until(deadline) != std::future_status::ready) {": ["if (false) {"],
        "if (code == ACL_ERROR_RT_STREAM_SYNC_TIMEOUT) {": ["if (false) {"],
        "if (code == ACL_SUCCESS) {": ["if (true) {"],
        "give_back(index, copy->side);": [""],
        "finished.push_back(std::move(device.late.front()));": [""],
        "aclrtDestroyEvent(event);": [""],
        "aclrtDestroyStream(stream);": [""],
        "std::max<int64_t>(1, left)": ["left"],
    },
    "csrc/plan/copy_plan.cpp": {
        "std::swap(plan.steps[0], plan.steps[1]);": [""],
    },
    "csrc/plan/schedule.cpp": {
        "staged_[move] = staged_[move] || shifts(move);": [""],
        "(may_overlap || std::abs(move.dst - move.src) >= width)": ["true"],
        "return move.dst != move.src; }": ["return true; }"],
    },
    "csrc/plan/slice.cpp": {
        "copies.is_cpu() || copies.is_meta()": ["true"],
    },
    "csrc/plan/tensor_pair.cpp": {
        "base.dst_pitch < width || base.src_pitch < width": ["base.dst_pitch < width"],
    },
    "csrc/plan/batch_plan.cpp": {
        "step->lists[list].widest, list);": ["step->lists[list].bytes, list);"],
    },
}
