// SPDX-License-Identifier: Apache-2.0
#include "throttle.h"

#include <random>
#include <set>
#include <thread>

namespace ascend_sim {
namespace {

struct Settings {
  std::mutex mutex;
  std::condition_variable changed;
  std::set<aclrtStream> stalled_streams;
  std::set<int> stalled_devices;
  std::chrono::microseconds delay{0};
  std::chrono::microseconds jitter{0};
};

Settings& GetSettings() {
  static Settings& settings = *new Settings;
  return settings;
}

template <typename T>
void SetMember(std::set<T>& set, T value, bool present) {
  Settings& settings = GetSettings();
  std::lock_guard lock(settings.mutex);
  if (present) {
    set.insert(value);
  } else {
    set.erase(value);
  }
  settings.changed.notify_all();
}

}  // namespace

void Throttle(Stream& stream) {
  thread_local std::minstd_rand random(stream.id());
  Settings& settings = GetSettings();
  std::unique_lock lock(settings.mutex);
  std::chrono::microseconds pause = settings.delay;
  if (settings.jitter.count() > 0) pause += settings.jitter * (random() % 1000) / 1000;
  if (pause.count() > 0) {
    lock.unlock();
    std::this_thread::sleep_for(pause);
    lock.lock();
  }
  settings.changed.wait(lock, [&] {
    return settings.stalled_streams.count(stream.handle()) == 0 && settings.stalled_devices.count(stream.device()) == 0;
  });
}

void StallStream(aclrtStream handle, bool stalled) { SetMember(GetSettings().stalled_streams, handle, stalled); }

void StallDevice(int device, bool stalled) { SetMember(GetSettings().stalled_devices, device, stalled); }

void SetTaskDelay(std::chrono::microseconds delay, std::chrono::microseconds jitter) {
  Settings& settings = GetSettings();
  std::lock_guard lock(settings.mutex);
  settings.delay = delay;
  settings.jitter = jitter;
}

void ResetThrottle() {
  Settings& settings = GetSettings();
  std::lock_guard lock(settings.mutex);
  settings.stalled_streams.clear();
  settings.stalled_devices.clear();
  settings.delay = settings.jitter = {};
  settings.changed.notify_all();
}

}  // namespace ascend_sim
