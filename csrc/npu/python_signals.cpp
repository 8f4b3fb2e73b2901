// SPDX-License-Identifier: Apache-2.0
#include "python_signals.h"

#include <dlfcn.h>
#include <unistd.h>

namespace {

// Functions of Python's stable ABI. They are looked up, because this library does not need Python. Python handles
// signals in its main thread alone.
template <typename Function>
Function* python_function(const char* name) {
  static auto* const is_initialized = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "Py_IsInitialized"));
  const bool there = is_initialized != nullptr && is_initialized() != 0 && getpid() == gettid();
  return there ? reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name)) : nullptr;
}

// The exception of a signal handler: type, value and traceback. Of the main thread alone.
struct Exception {
  void* type = nullptr;
  void* value = nullptr;
  void* traceback = nullptr;
};

Exception raised;

}  // namespace

namespace llm_datadist {

bool python_signal_raised() {
  auto* const ensure = python_function<int()>("PyGILState_Ensure");
  auto* const release = python_function<void(int)>("PyGILState_Release");
  auto* const check_signals = python_function<int()>("PyErr_CheckSignals");
  auto* const fetch = python_function<void(void**, void**, void**)>("PyErr_Fetch");
  if (ensure == nullptr) {
    return false;
  }
  const int state = ensure();
  const bool any = check_signals() != 0;
  if (any) {
    fetch(&raised.type, &raised.value, &raised.traceback);
  }
  release(state);
  return any;
}

}  // namespace llm_datadist

// For llm_datadist_torch/_native/signals.py. Raises the exception of a signal handler that ended the wait of this
// thread, if there is one. The caller holds the GIL.
extern "C" __attribute__((visibility("default"))) void llm_datadist_npu_raise() {
  auto* const restore = python_function<void(void*, void*, void*)>("PyErr_Restore");
  if (restore != nullptr && raised.type != nullptr) {
    const Exception exception = raised;
    raised = {};
    restore(exception.type, exception.value, exception.traceback);
  }
}
