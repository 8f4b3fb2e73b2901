// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace ascend_sim {

/// Lines of the launches that were accepted: kernel, function, blocks, the arguments in hexadecimal as the caller
/// passed them, and the two offsets of each place holder.
std::string LaunchLog();
void ResetLaunchLog();

}  // namespace ascend_sim
