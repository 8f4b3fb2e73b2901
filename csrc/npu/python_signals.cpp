// SPDX-License-Identifier: Apache-2.0
#include "python_signals.h"

#include <dlfcn.h>
#include <unistd.h>

#include <utility>

namespace {

// The exception of a signal handler: type, value and traceback. Python handles signals in the main thread alone.
void* raised[3] = {};

// A function of Python's stable ABI, or nothing outside Python's main thread. Looked up, as this library does not need
// Python.
template <typename Function>
Function* python_function(const char* name) {
  static auto* const is_initialized = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "Py_IsInitialized"));
  const bool main_thread = is_initialized != nullptr && is_initialized() != 0 && getpid() == gettid();
  return main_thread ? reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name)) : nullptr;
}

}  // namespace

bool llm_datadist::python_signal_raised() {
  auto* const ensure = python_function<int()>("PyGILState_Ensure");
  if (ensure == nullptr) {
    return false;
  }
  const int state = ensure();
  const bool any = python_function<int()>("PyErr_CheckSignals")() != 0;
  if (any) {
    python_function<void(void**, void**, void**)>("PyErr_Fetch")(&raised[0], &raised[1], &raised[2]);
  }
  python_function<void(int)>("PyGILState_Release")(state);
  return any;
}

// For llm_datadist_torch/_native/signals.py. Raises the exception that ended the wait of this thread, if there is one.
// The caller holds the GIL.
extern "C" __attribute__((visibility("default"))) void llm_datadist_npu_raise() {
  auto* const restore = python_function<void(void*, void*, void*)>("PyErr_Restore");
  if (restore != nullptr && raised[0] != nullptr) {
    restore(std::exchange(raised[0], nullptr), std::exchange(raised[1], nullptr), std::exchange(raised[2], nullptr));
  }
}
