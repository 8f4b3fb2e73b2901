// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace llm_datadist {

// Copies bytes that do not overlap, for a destination that is read again soon: memcpy, or what is faster where we know.
void copy_cached(char* dst, const char* src, int64_t bytes);

// The same for copies larger than the cache: writes past it, which saves reading the destination first. Such writes are
// not ordered with others: a thread calls finish_streaming after its last one, before anybody is told that it is done.
void copy_streaming(char* dst, const char* src, int64_t bytes);
void finish_streaming();

}  // namespace llm_datadist
