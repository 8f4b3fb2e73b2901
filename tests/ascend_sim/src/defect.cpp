// SPDX-License-Identifier: Apache-2.0
#include "defect.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

namespace ascend_sim {
namespace {

Defect FromEnvironment() {
  const std::map<std::string, Defect> defects = {{"", Defect::kNone},
                                                 {"refuses-2d", Defect::kRefuses2d},
                                                 {"ignores-pitch", Defect::kIgnoresPitch},
                                                 {"ignores-waits", Defect::kIgnoresWaits},
                                                 {"align-64", Defect::kAlign64}};
  const char* name = std::getenv("ASCEND_SIM_DEFECT");
  const auto found = defects.find(name ? name : "");
  if (found != defects.end()) return found->second;
  std::fprintf(stderr, "ascend_sim: unknown ASCEND_SIM_DEFECT %s\n", name);
  std::abort();
}

}  // namespace

bool Has(Defect defect) {
  static const Defect planted = FromEnvironment();
  return planted == defect;
}

}  // namespace ascend_sim
