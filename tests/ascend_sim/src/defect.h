// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace ascend_sim {

/// Ways in which the whole runtime differs from the documentation, for tests of tests: ASCEND_SIM_DEFECT names one.
enum class Defect {
  kNone,
  kRefuses2d,     // refuses-2d: strided copies return 100000
  kIgnoresPitch,  // ignores-pitch: strided copies write their rows one after another
  kIgnoresWaits,  // ignores-waits: a stream does not wait for events
  kAlign64,       // align-64: addresses and sizes must be multiples of 64, but for plain copies of host memory
};

bool Has(Defect defect);

}  // namespace ascend_sim
