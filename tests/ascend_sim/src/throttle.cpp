// SPDX-License-Identifier: Apache-2.0
#include "throttle.h"

#include <map>
#include <random>
#include <thread>

namespace ascend_sim {
namespace {

// How many tasks may still start. The default is not used up in a lifetime.
struct Allowance {
  std::size_t tasks = SIZE_MAX;
};

struct Settings {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<aclrtStream, Allowance> of_streams;
  std::map<int, Allowance> of_devices;
  std::chrono::microseconds delay{0};
  std::chrono::microseconds jitter{0};
};

}  // namespace

void Throttle(Stream& stream) {
  thread_local std::minstd_rand random(stream.id());
  Settings& settings = Immortal<Settings>();
  std::unique_lock lock(settings.mutex);
  std::chrono::microseconds pause = settings.delay;
  if (settings.jitter.count() > 0) pause += settings.jitter * (random() % 1000) / 1000;
  if (pause.count() > 0) {
    lock.unlock();
    std::this_thread::sleep_for(pause);
    lock.lock();
  }
  Allowance& of_stream = settings.of_streams[stream.handle()];
  Allowance& of_device = settings.of_devices[stream.device()];
  settings.changed.wait(lock, [&] { return of_stream.tasks > 0 && of_device.tasks > 0; });
  --of_stream.tasks;
  --of_device.tasks;
}

void StallStream(aclrtStream handle, std::size_t after) {
  const Locked<Settings> settings;
  settings->of_streams[handle].tasks = after;
  settings->changed.notify_all();
}

void StallDevice(int device, std::size_t after) {
  const Locked<Settings> settings;
  settings->of_devices[device].tasks = after;
  settings->changed.notify_all();
}

void SetTaskDelay(std::chrono::microseconds delay, std::chrono::microseconds jitter) {
  const Locked<Settings> settings;
  settings->delay = delay;
  settings->jitter = jitter;
}

void ResetThrottle() {
  const Locked<Settings> settings;
  for (auto& [handle, allowance] : settings->of_streams) allowance = {};
  for (auto& [device, allowance] : settings->of_devices) allowance = {};
  settings->delay = settings->jitter = {};
  settings->changed.notify_all();
}

}  // namespace ascend_sim
