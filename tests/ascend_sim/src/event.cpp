// SPDX-License-Identifier: Apache-2.0
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

Events& GetEvents() {
  static Events& events = *new Events;
  return events;
}

aclError CreateEvent(aclrtEvent* handle) {
  Events& events = GetEvents();
  std::lock_guard lock(events.mutex);
  *handle = reinterpret_cast<aclrtEvent>(++events.created);
  events.markers[*handle] = nullptr;
  return ACL_SUCCESS;
}

aclError GetMarker(aclrtEvent handle, std::shared_ptr<Marker>* marker) {
  Events& events = GetEvents();
  std::lock_guard lock(events.mutex);
  const auto found = events.markers.find(handle);
  if (found == events.markers.end()) return Refuse(ACL_ERROR_RT_PARAM_INVALID, Hex(handle) + " is not a live event");
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
  if (!own) graph->Join(stream);
  return ACL_SUCCESS;
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
  Events& events = GetEvents();
  std::lock_guard lock(events.mutex);
  if (events.markers.erase(handle)) return ACL_SUCCESS;
  return Refuse(ACL_ERROR_RT_PARAM_INVALID, Hex(handle) + " is not a live event");
}

aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream stream_handle) {
  ACL_CALL();
  aclError error;
  const auto stream = Stream::Find(stream_handle, &error);
  if (!stream) return error;
  const auto graph = stream->graph();
  const auto marker = std::make_shared<Marker>();
  marker->graph = graph;
  marker->captured = graph != nullptr;
  {
    Events& events = GetEvents();
    std::lock_guard lock(events.mutex);
    const auto found = events.markers.find(handle);
    if (found == events.markers.end()) return Refuse(ACL_ERROR_RT_PARAM_INVALID, Hex(handle) + " is not a live event");
    found->second = marker;
  }
  return stream->Submit({__func__, nullptr, nullptr, marker});
}

aclError aclrtStreamWaitEvent(aclrtStream stream_handle, aclrtEvent handle) {
  ACL_CALL();
  aclError error;
  const auto stream = Stream::Find(stream_handle, &error);
  if (!stream) return error;
  std::shared_ptr<Marker> marker;
  if ((error = GetMarker(handle, &marker)) || !marker) return error;
  if ((error = JoinCapture(*stream, *marker))) return error;
  return stream->Submit({__func__, nullptr, marker, nullptr});
}

// Events can be recorded again at any time, so that there is nothing to reset.
aclError aclrtResetEvent(aclrtEvent handle, aclrtStream) {
  ACL_CALL();
  std::shared_ptr<Marker> marker;
  return GetMarker(handle, &marker);
}

// Note [Events and errors]
// Neither a query nor a wait reports that a task before the event failed: only a synchronise of the stream or the
// device does. A plugin that trusts an event alone takes a failed copy for a finished one, and should fail its tests
// here.
aclError aclrtSynchronizeEvent(aclrtEvent handle) {
  ACL_CALL();
  std::shared_ptr<Marker> marker;
  if (const aclError error = GetHostMarker(handle, &marker)) return error;
  if (marker) marker->Wait();
  return ACL_SUCCESS;
}

aclError aclrtQueryEventStatus(aclrtEvent handle, aclrtEventRecordedStatus* status) {
  ACL_CALL();
  std::shared_ptr<Marker> marker;
  if (const aclError error = GetHostMarker(handle, &marker)) return error;
  *status = !marker || marker->Done() ? ACL_EVENT_RECORDED_STATUS_COMPLETE : ACL_EVENT_RECORDED_STATUS_NOT_READY;
  return ACL_SUCCESS;
}

aclError aclrtEventElapsedTime(float* milliseconds, aclrtEvent start, aclrtEvent end) {
  ACL_CALL();
  std::shared_ptr<Marker> from, to;
  if (const aclError error = GetHostMarker(start, &from)) return error;
  if (const aclError error = GetHostMarker(end, &to)) return error;
  if (!from || !to || !from->Done() || !to->Done())
    return Refuse(ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID, "an event of the two is not recorded or not complete");
  *milliseconds = std::chrono::duration<float, std::milli>(to->when() - from->when()).count();
  return ACL_SUCCESS;
}

}  // extern "C"
