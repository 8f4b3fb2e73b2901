// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace llm_datadist {

// Copies bytes that do not overlap, for a destination that is read again soon. Between 1 KiB and the size of the cache
// it is faster than memcpy, which there falls back on an instruction (rep movsb) that is slow on some processors.
void copy_cached(char* dst, const char* src, int64_t bytes);

// The same for copies larger than the cache: writes past it, which saves reading the destination first. Such writes are
// not ordered with others: a thread calls finish_streaming after its last one, before anybody is told that it is done.
void copy_streaming(char* dst, const char* src, int64_t bytes);
void finish_streaming();

}  // namespace llm_datadist
