// SPDX-License-Identifier: Apache-2.0
#include "capture.h"

#include <algorithm>
#include <map>
#include <set>

namespace ascend_sim {
namespace {

constexpr std::size_t kWorkElements = 32768;

struct Graphs {
  std::mutex mutex;
  std::map<aclmdlRI, std::shared_ptr<Graph>> by_handle;
};

thread_local aclmdlRICaptureMode thread_mode = ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;

std::shared_ptr<Graph> FindGraph(aclmdlRI handle, aclError* error) {
  const Locked<Graphs> graphs;
  const auto found = graphs->by_handle.find(handle);
  *error = ACL_SUCCESS;
  if (found != graphs->by_handle.end()) return found->second;
  *error = Refuse(ACL_ERROR_RT_PARAM_INVALID, handle, " is not a live captured model");
  return nullptr;
}

}  // namespace

bool Graph::active() {
  std::lock_guard lock(mutex_);
  return active_;
}

Graph::~Graph() {
  for (const Lane& lane : lanes_) Context::Of(lane.stream->device()).ReturnStreams(lane.streams);
}

aclError Graph::Append(Stream* stream, Command command) {
  std::lock_guard lock(mutex_);
  if (!valid_) return Refuse(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, "the capture failed before");
  const auto is_lane = [stream](const Lane& lane) { return lane.stream.get() == stream; };
  Lane& lane = *std::find_if(lanes_.begin(), lanes_.end(), is_lane);
  if (command.work_elements > kWorkElements - work_elements_)
    return Refuse(ACL_ERROR_RT_NO_STREAM_RESOURCE, command.name, ": a graph holds ", kWorkElements,
                  " work elements, and has ", work_elements_, " already");
  const std::size_t tasks = lane.tasks + command.tasks;
  const std::size_t streams = (tasks - 1) / GetMachine().stream_depth + 1;
  if (const aclError error = Context::Of(stream->device()).TakeStreams(streams - lane.streams)) {
    valid_ = false;
    return error;
  }
  lane.tasks = tasks;
  lane.streams = streams;
  work_elements_ += command.work_elements;
  lane.commands.push_back(std::move(command));
  return ACL_SUCCESS;
}

aclError Graph::Join(Stream& stream) {
  if (const aclError error = Context::Of(stream.device()).TakeStreams(1)) return error;
  {
    std::lock_guard lock(mutex_);
    lanes_.push_back({stream.shared_from_this(), {}});
  }
  stream.set_graph(shared_from_this());
  return ACL_SUCCESS;
}

bool Graph::WaitedFor(const Marker* marker) const {
  for (const Lane& lane : lanes_) {
    for (const Command& command : lane.commands) {
      if (command.waits_for.get() == marker) return true;
    }
  }
  return false;
}

aclError Graph::End() {
  std::lock_guard lock(mutex_);
  for (const Lane& lane : lanes_) lane.stream->set_graph(nullptr);
  active_ = false;
  if (!valid_) return Refuse(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, "a call of the capture failed");
  bool joined = true;
  for (const Lane& lane : lanes_) {
    const bool is_origin = lane.stream.get() == origin_;
    const Marker* last = lane.commands.empty() ? nullptr : lane.commands.back().completes.get();
    if (!is_origin && !(last && WaitedFor(last))) joined = false;
  }
  if (joined) return ACL_SUCCESS;
  return Refuse(ACL_ERROR_RT_STREAM_UNJOINED,
                "a stream that joined the capture was not joined back: record an event at its end and wait for it");
}

aclError Graph::Run(Stream& stream) {
  Context& context = Context::Of(stream.device());
  std::vector<std::deque<Command>> lanes;
  {
    std::lock_guard lock(mutex_);
    for (const Lane& lane : lanes_) lanes.emplace_back(lane.commands.begin(), lane.commands.end());
  }
  std::set<std::shared_ptr<Marker>> completed{nullptr};
  const auto can_go_on = [&completed](const std::deque<Command>& lane) {
    return !lane.empty() && completed.count(lane.front().waits_for) > 0;
  };
  aclError first = ACL_SUCCESS;
  std::string text;
  while (true) {
    const auto lane = std::find_if(lanes.rbegin(), lanes.rend(), can_go_on);
    if (lane == lanes.rend()) break;
    const Command& command = lane->front();
    for (std::size_t i = 0; i < command.tasks; ++i) {
      Throttle(stream);
      if (context.lost()) return first;
      const aclError error = RunTask(command, i);
      if (error && !first) {
        first = error;
        text = TakeErrorText();
      }
      if (first && context.stops_on_failure()) return Refuse(first, text);
    }
    completed.insert(command.completes);
    lane->pop_front();
  }
  return first ? Refuse(first, text) : ACL_SUCCESS;
}

aclError CheckUnsafeCallAllowed(const char* name) {
  if (thread_mode == ACL_MODEL_RI_CAPTURE_MODE_RELAXED) return ACL_SUCCESS;
  const Locked<Graphs> graphs;
  for (const auto& [handle, graph] : graphs->by_handle) {
    if (!graph->active() || graph->mode() == ACL_MODEL_RI_CAPTURE_MODE_RELAXED) continue;
    const bool own = graph->owner() == std::this_thread::get_id();
    const bool global =
        graph->mode() == ACL_MODEL_RI_CAPTURE_MODE_GLOBAL && thread_mode == ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;
    if (own || global) {
      return Refuse(ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT, name,
                    " is not permitted while a stream is captured in a mode that is not relaxed");
    }
  }
  return ACL_SUCCESS;
}

}  // namespace ascend_sim

using namespace ascend_sim;

extern "C" {

aclError aclmdlRICaptureBegin(aclrtStream handle, aclmdlRICaptureMode mode) {
  ACL_CALL_ON(stream, handle);
  if (stream->graph()) return Refuse(ACL_ERROR_RT_STREAM_CAPTURED, "the stream is captured already");
  const auto graph = std::make_shared<Graph>(stream.get(), mode);
  if ((error = graph->Join(*stream))) return error;
  const Locked<Graphs> graphs;
  graphs->by_handle[graph.get()] = graph;
  return ACL_SUCCESS;
}

aclError aclmdlRICaptureGetInfo(aclrtStream handle, aclmdlRICaptureStatus* status, aclmdlRI* model) {
  ACL_CALL_ON(stream, handle);
  const auto graph = stream->graph();
  *status = graph ? ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE : ACL_MODEL_RI_CAPTURE_STATUS_NONE;
  *model = graph.get();
  return ACL_SUCCESS;
}

aclError aclmdlRICaptureEnd(aclrtStream handle, aclmdlRI* model) {
  ACL_CALL_ON(stream, handle);
  const auto graph = stream->graph();
  if (!graph) return Refuse(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "the stream is not captured");
  if (graph->origin() != stream.get())
    return Refuse(ACL_ERROR_RT_STREAM_CAPTURE_UNMATCHED, "the capture began on another stream");
  if (graph->mode() != ACL_MODEL_RI_CAPTURE_MODE_RELAXED && graph->owner() != std::this_thread::get_id())
    return Refuse(ACL_ERROR_RT_STREAM_CAPTURE_WRONG_THREAD, "the capture began on another thread");
  error = graph->End();
  if (error == ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED) {
    const Locked<Graphs> graphs;
    graphs->by_handle.erase(graph.get());
    return error;
  }
  *model = graph.get();
  return error;
}

aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode* mode) {
  ACL_CALL();
  std::swap(*mode, thread_mode);
  return ACL_SUCCESS;
}

aclError aclmdlRIExecuteAsync(aclmdlRI model, aclrtStream handle) {
  ACL_CALL();
  aclError error;
  const auto graph = FindGraph(model, &error);
  if (!graph) return error;
  if (graph->active()) return Refuse(ACL_ERROR_RT_MODEL_CAPTURED, "the model is still being captured");
  const auto stream = Stream::Find(handle, &error);
  if (!stream) return error;
  return stream->Submit({__func__, [graph, on = stream.get()](std::size_t) { return graph->Run(*on); }});
}

aclError aclmdlRIDestroy(aclmdlRI model) {
  ACL_CALL();
  aclError error;
  const auto graph = FindGraph(model, &error);
  if (!graph) return error;
  const Locked<Graphs> graphs;
  graphs->by_handle.erase(model);
  return ACL_SUCCESS;
}

}  // extern "C"
