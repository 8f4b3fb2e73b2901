// SPDX-License-Identifier: Apache-2.0
//
// Note [Blocking copies]
// A blocking copy runs on a side stream, and a thread of that stream synchronises it. So the wait of the caller ends at
// its deadline, or when Python has a signal to handle. The runtime's own synchronise may take longer than its timeout
// after an error of the device.
//
// Note [Unfinished copies]
// After a timeout or an interrupt, a blocking copy is still queued or running. Until it ends:
// - the memory that it reads and writes is kept alive;
// - later work on the stream of the call runs after it, because that stream waits for it;
// - no other blocking copy starts on its device. So copies stay in order, and there are never more side streams than
//   threads.

#pragma once

#include <ATen/core/Tensor.h>
#include <acl/acl.h>

#include <condition_variable>
#include <exception>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../host/host_copy.h"
#include "../plan/call_context.h"

namespace llm_datadist {

// How a blocking copy ended.
struct Ended {
  std::exception_ptr not_issued;  // a call failed before all copies were on the stream
  aclError code = ACL_SUCCESS;    // of the synchronise
  std::string message;            // the runtime's, for the code
};

// A stream for blocking copies, and the thread that waits for it. Its events order it with the caller's stream, before
// and after the copies.
class SideStream : public std::enable_shared_from_this<SideStream> {
 public:
  static std::shared_ptr<SideStream> create(const CallContext& call, int device);
  SideStream(const SideStream&) = delete;
  ~SideStream();

  // Synchronises the stream in its thread, makes it available to other copies, then fulfils the promise.
  void tell_end(std::shared_ptr<std::promise<Ended>> promise, std::exception_ptr not_issued);

  const int device;
  aclrtStream stream = nullptr;
  aclrtEvent before = nullptr;
  aclrtEvent after = nullptr;

 private:
  explicit SideStream(int device) : device(device) {}
  void work();

  aclrtContext context_ = nullptr;
  std::mutex mutex_;  // guards the members below
  std::condition_variable told_;
  std::shared_ptr<std::promise<Ended>> promise_;
  std::exception_ptr not_issued_;
};

struct BlockingCopy {
  std::shared_ptr<SideStream> side;
  std::shared_future<Ended> ended;  // a broken promise, if torch_npu's queue has dropped the copy
  std::vector<at::Tensor> in_use;

  // Waits for the end. Returns false if the deadline passed first, or if a signal handler of Python raised an
  // exception. Raises RuntimeError if the device is lost, also where the runtime's synchronise does not return.
  bool wait(const CallContext& call, const Deadline& deadline) const;
};

// Waits for the unfinished copies of the current device, then returns an idle side stream. Returns nothing if the wait
// was in vain.
std::shared_ptr<SideStream> acquire_side_stream(const CallContext& call, int device, const Deadline& deadline);

// Makes a side stream available to other copies.
void release_side_stream(std::shared_ptr<SideStream> side);

// Keeps an unfinished copy until acquire_side_stream sees it end.
void park(BlockingCopy copy);

// Raises RuntimeError if the code is not 0. torch_npu makes the runtime stop all work of a process on a device after a
// task has failed, so an error of a stream is one of the whole device.
void check_device(const CallContext& call, int device, const char* function, aclError code, const std::string& message);

}  // namespace llm_datadist
