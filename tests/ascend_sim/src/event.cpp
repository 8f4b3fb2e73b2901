// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <chrono>
#include <map>

#include "call.h"
#include "capture.h"
#include "stream.h"

using namespace ascend_sim;

namespace {

struct Events {
  std::mutex mutex;
  // By handle, the marker of the latest record; null before the first, which counts as complete.
  std::map<aclrtEvent, std::shared_ptr<Marker>> markers;
  uintptr_t created = 0;
};

std::atomic<std::chrono::seconds> wait_limit{};

aclError CreateEvent(aclrtEvent* handle) {
  const Locked<Events> events;
  *handle = reinterpret_cast<aclrtEvent>(++events->created);
  events->markers[*handle] = nullptr;
  return ACL_SUCCESS;
}

aclError GetMarker(aclrtEvent handle, std::shared_ptr<Marker>* marker) {
  const Locked<Events> events;
  const auto found = events->markers.find(handle);
  if (found == events->markers.end()) return Refuse(ACL_ERROR_RT_PARAM_INVALID, handle, " is not a live event");
  *marker = found->second;
  return ACL_SUCCESS;
}

// For the host to look at: an event recorded into a graph has no state of its own.
aclError GetHostMarker(aclrtEvent handle, std::shared_ptr<Marker>* marker) {
  if (const aclError error = GetMarker(handle, marker)) return error;
  if (*marker && (*marker)->captured)
    return Refuse(ACL_ERROR_RT_EVENT_CAPTURED, "the host cannot look at an event that was recorded into a graph");
  return ACL_SUCCESS;
}

// A wait for an event recorded into a graph makes the waiting stream part of the capture.
aclError JoinCapture(Stream& stream, const Marker& marker) {
  const auto own = stream.graph();
  if (!marker.captured) {
    if (!own) return ACL_SUCCESS;
    return Refuse(ACL_ERROR_RT_CAPTURE_DEPENDENCY, "a captured stream waits for an event recorded outside the capture");
  }
  const auto graph = marker.graph.lock();
  if (!graph || !graph->active() || (own && own != graph))
    return Refuse(ACL_ERROR_RT_CAPTURE_DEPENDENCY, "a wait for an event recorded into another or a finished capture");
  return own ? ACL_SUCCESS : graph->Join(stream);
}

}  // namespace

extern "C" {

aclError aclrtCreateEvent(aclrtEvent* handle) {
  ACL_CALL();
  return CreateEvent(handle);
}

aclError aclrtCreateEventWithFlag(aclrtEvent* handle, uint32_t) {
  ACL_CALL();
  return CreateEvent(handle);
}

aclError aclrtCreateEventExWithFlag(aclrtEvent* handle, uint32_t) {
  ACL_CALL();
  return CreateEvent(handle);
}

aclError aclrtDestroyEvent(aclrtEvent handle) {
  ACL_CALL();
  const Locked<Events> events;
  if (events->markers.erase(handle)) return ACL_SUCCESS;
  return Refuse(ACL_ERROR_RT_PARAM_INVALID, handle, " is not a live event");
}

aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream stream_handle) {
  ACL_CALL_ON(stream, stream_handle);
  std::shared_ptr<Marker> marker;
  if ((error = GetMarker(handle, &marker))) return error;
  const auto graph = stream->graph();
  Context& context = Context::Of(stream->device());
  if (!graph && (error = context.TakeEvent())) return error;
  marker = std::make_shared<Marker>(graph ? nullptr : &context);
  marker->graph = graph;
  marker->captured = graph != nullptr;
  {
    const Locked<Events> events;
    events->markers[handle] = marker;
  }
  Command command{__func__};
  command.completes = marker;
  error = stream->Submit(std::move(command));
  if (error) marker->Settle(Marker::State::kLost);
  return error;
}

aclError aclrtStreamWaitEvent(aclrtStream stream_handle, aclrtEvent handle) {
  ACL_CALL_ON(stream, stream_handle);
  std::shared_ptr<Marker> marker;
  if ((error = GetMarker(handle, &marker)) || !marker) return error;
  if ((error = JoinCapture(*stream, *marker))) return error;
  Command command{__func__};
  command.waits_for = marker;
  command.wait_limit = wait_limit;
  return stream->Submit(std::move(command));
}

// Note [Events and errors]
// Where streams go on after a failure, neither a query nor a wait reports that a task before the event failed: only a
// synchronise of the stream or the device does. A plugin that trusts an event alone takes a failed copy for a finished
// one, and should fail its tests here. In a lost context, an event that was not reached tells the error.
aclError aclrtSynchronizeEvent(aclrtEvent handle) {
  ACL_CALL();
  std::shared_ptr<Marker> marker;
  if (const aclError error = GetHostMarker(handle, &marker)) return error;
  return marker && marker->Wait({}) == Marker::State::kLost ? marker->context()->Check() : ACL_SUCCESS;
}

aclError aclrtQueryEventStatus(aclrtEvent handle, aclrtEventRecordedStatus* status) {
  ACL_CALL();
  std::shared_ptr<Marker> marker;
  if (const aclError error = GetHostMarker(handle, &marker)) return error;
  const Marker::State state = marker ? marker->state() : Marker::State::kDone;
  *status = state == Marker::State::kPending ? ACL_EVENT_RECORDED_STATUS_NOT_READY : ACL_EVENT_RECORDED_STATUS_COMPLETE;
  return state == Marker::State::kLost ? marker->context()->Check() : ACL_SUCCESS;
}

// Holds for the waits that are submitted from now on.
aclError aclrtSetOpWaitTimeout(uint32_t seconds) {
  ACL_CALL();
  wait_limit = std::chrono::seconds(seconds);
  return ACL_SUCCESS;
}

aclError aclrtEventElapsedTime(float* milliseconds, aclrtEvent start, aclrtEvent end) {
  ACL_CALL();
  std::shared_ptr<Marker> from, to;
  if (const aclError error = GetHostMarker(start, &from)) return error;
  if (const aclError error = GetHostMarker(end, &to)) return error;
  if (!from || !to || from->state() != Marker::State::kDone || to->state() != Marker::State::kDone)
    return Refuse(ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID, "an event of the two is not recorded or not complete");
  *milliseconds = std::chrono::duration<float, std::milli>(to->when() - from->when()).count();
  return ACL_SUCCESS;
}

}  // extern "C"
