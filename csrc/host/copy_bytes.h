// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace llm_datadist {

// Copies bytes that do not overlap, to a destination that is read again soon: memcpy, or our own loop where that is
// known to be faster.
void copy_cached(char* dst, const char* src, int64_t bytes);

// The same for copies larger than the cache. Streaming stores bypass the cache, so the destination is not read first.
// They are not ordered with other stores: each thread must call finish_streaming after its last one, before it reports
// completion.
void copy_streaming(char* dst, const char* src, int64_t bytes);
void finish_streaming();

}  // namespace llm_datadist
