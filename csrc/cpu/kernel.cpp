// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "../kernels.h"

namespace llm_datadist {
namespace {

bool run_cpu(const CallContext&, at::ITensorListRef, at::ITensorListRef, Plan plan, const Deadline& deadline) {
  return std::all_of(plan.phases.begin(), plan.phases.end(),
                     [&](const Phase& phase) { return copy_on_host(phase, deadline); });
}

}  // namespace
}  // namespace llm_datadist

TORCH_LIBRARY_IMPL(llm_datadist, CPU, m) { llm_datadist::Kernels<&llm_datadist::run_cpu>::add_to(m); }
