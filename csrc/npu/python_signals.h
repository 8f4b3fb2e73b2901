// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace llm_datadist {

// Runs Python's handlers of the signals that have arrived, if this is the main thread. Returns whether one raised an
// exception, as that of Ctrl-C does. The exception is kept for llm_datadist_npu_raise. May be called without the GIL,
// and where there is no Python.
bool python_signal_raised();

}  // namespace llm_datadist
