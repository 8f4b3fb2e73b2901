// SPDX-License-Identifier: Apache-2.0
#include "call.h"
#include "capture.h"
#include "device.h"
#include "stream.h"

using namespace ascend_sim;

namespace {

aclError CreateStream(aclrtStream* handle) {
  int device;
  if (const aclError error = CurrentDevice(&device)) return error;
  std::shared_ptr<Stream> stream;
  if (const aclError error = Stream::Create(device, &stream)) return error;
  *handle = stream->handle();
  return ACL_SUCCESS;
}

aclError CheckTimeout(int timeout_ms) {
  if (timeout_ms == -1 || timeout_ms > 0) return ACL_SUCCESS;
  return Refuse(ACL_ERROR_RT_PARAM_INVALID, "a timeout of " + std::to_string(timeout_ms) + " ms");
}

aclError SynchronizeStream(aclrtStream handle, int timeout_ms) {
  aclError error;
  const auto stream = Stream::Find(handle, &error);
  return stream ? stream->Synchronize(timeout_ms) : error;
}

// Waits for every stream, also after one of them failed, and returns the first error.
aclError SynchronizeDevice(int timeout_ms) {
  int device;
  if (const aclError error = CurrentDevice(&device)) return error;
  const auto streams = Stream::AllOf(device);
  for (const auto& stream : streams) {
    if (stream->graph()) return Refuse(ACL_ERROR_RT_STREAM_CAPTURED, "a stream of the device is captured");
  }
  if (const aclError error = Context::Of(device).Check()) return error;
  aclError first = ACL_SUCCESS;
  std::string text;
  for (const auto& stream : streams) {
    const aclError error = stream->Synchronize(timeout_ms);
    if (error && !first) {
      first = error;
      text = TakeErrorText();
    }
  }
  return first ? Refuse(first, text) : ACL_SUCCESS;
}

aclError DestroyStream(aclrtStream handle, bool drop_queued_tasks) {
  aclError error;
  const auto stream = Stream::Find(handle, &error);
  if (!stream) return error;
  int device;
  if ((error = CurrentDevice(&device))) return error;
  if (stream->device() != device)
    return Refuse(ACL_ERROR_RT_STREAM_CONTEXT, "a stream is destroyed while another device than its own is current");
  stream->Retire(drop_queued_tasks);
  if (!drop_queued_tasks) stream->Synchronize(-1);
  return ACL_SUCCESS;
}

}  // namespace

extern "C" {

aclError aclrtCreateStream(aclrtStream* handle) {
  ACL_CALL();
  return CreateStream(handle);
}

aclError aclrtCreateStreamWithConfig(aclrtStream* handle, uint32_t, uint32_t) {
  ACL_CALL();
  return CreateStream(handle);
}

aclError aclrtDestroyStream(aclrtStream handle) {
  ACL_CALL();
  return DestroyStream(handle, false);
}

aclError aclrtDestroyStreamForce(aclrtStream handle) {
  ACL_CALL();
  return DestroyStream(handle, true);
}

aclError aclrtSynchronizeStream(aclrtStream handle) {
  ACL_CALL();
  return SynchronizeStream(handle, -1);
}

aclError aclrtSynchronizeStreamWithTimeout(aclrtStream handle, int32_t timeout_ms) {
  ACL_CALL();
  if (const aclError error = CheckTimeout(timeout_ms)) return error;
  return SynchronizeStream(handle, timeout_ms);
}

aclError aclrtSynchronizeDevice() {
  ACL_CALL();
  return SynchronizeDevice(-1);
}

aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout_ms) {
  ACL_CALL();
  if (const aclError error = CheckTimeout(timeout_ms)) return error;
  return SynchronizeDevice(timeout_ms);
}

aclError aclrtSetStreamFailureMode(aclrtStream handle, uint64_t mode) {
  ACL_CALL_ON(stream, handle);
  Context& context = Context::Of(stream->device());
  if (mode == ACL_STOP_ON_FAILURE) {
    context.StopOnFailure();
  } else if (context.stops_on_failure()) {
    return Refuse(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "a stream that stops on a failure cannot be made to go on");
  }
  return ACL_SUCCESS;
}

aclError aclrtStreamQuery(aclrtStream handle, aclrtStreamStatus* status) {
  ACL_CALL_ON(stream, handle);
  if (stream->graph()) return Refuse(ACL_ERROR_RT_STREAM_CAPTURED, "a stream cannot be queried while it is captured");
  if ((error = Context::Of(stream->device()).Check())) return error;
  *status = stream->Idle() ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
  return ACL_SUCCESS;
}

aclError aclrtStreamGetId(aclrtStream handle, int32_t* id) {
  ACL_CALL_ON(stream, handle);
  *id = stream->id();
  return ACL_SUCCESS;
}

aclError aclrtLaunchHostFunc(aclrtStream handle, aclrtHostFunc function, void* argument) {
  ACL_CALL_ON(stream, handle);
  return stream->Submit({__func__, [function, argument](std::size_t) {
                           function(argument);
                           return ACL_SUCCESS;
                         }});
}

}  // extern "C"
