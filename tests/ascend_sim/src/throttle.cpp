// SPDX-License-Identifier: Apache-2.0
#include "throttle.h"

#include <map>
#include <random>
#include <thread>

namespace ascend_sim {
namespace {

struct Settings {
  std::mutex mutex;
  std::condition_variable changed;
  // How many tasks may still start.
  std::map<aclrtStream, std::size_t> stalled_streams;
  std::map<int, std::size_t> stalled_devices;
  std::chrono::microseconds delay{0};
  std::chrono::microseconds jitter{0};
};

Settings& GetSettings() {
  static Settings& settings = *new Settings;
  return settings;
}

template <typename Key>
void Stall(std::map<Key, std::size_t>& stalled, Key key, std::size_t after) {
  std::lock_guard lock(GetSettings().mutex);
  stalled[key] = after;
}

template <typename Key>
void Release(std::map<Key, std::size_t>& stalled, Key key) {
  Settings& settings = GetSettings();
  std::lock_guard lock(settings.mutex);
  stalled.erase(key);
  settings.changed.notify_all();
}

// The number of tasks that may still start, or null without a stall.
template <typename Key>
std::size_t* Left(std::map<Key, std::size_t>& stalled, Key key) {
  const auto found = stalled.find(key);
  return found == stalled.end() ? nullptr : &found->second;
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
    std::size_t* const of_stream = Left(settings.stalled_streams, stream.handle());
    std::size_t* const of_device = Left(settings.stalled_devices, stream.device());
    if ((of_stream && *of_stream == 0) || (of_device && *of_device == 0)) return false;
    if (of_stream) --*of_stream;
    if (of_device) --*of_device;
    return true;
  });
}

void StallStream(aclrtStream handle, std::size_t after) { Stall(GetSettings().stalled_streams, handle, after); }
void StallDevice(int device, std::size_t after) { Stall(GetSettings().stalled_devices, device, after); }
void ReleaseStream(aclrtStream handle) { Release(GetSettings().stalled_streams, handle); }
void ReleaseDevice(int device) { Release(GetSettings().stalled_devices, device); }

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
