#include "tensor/allocator.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "tensor/backend.h"

namespace t2l {
namespace {

constexpr size_t kGuard = 256;  // bytes on either side of a block in debug mode
constexpr unsigned char kGuardByte = 0xA5;

// Requests are rounded so that nearly equal ones share a block, wasting at most 1/8.
size_t block_size(size_t bytes) {
  size_t step = 512;
  while (step * 16 < bytes) step *= 2;
  return (std::max<size_t>(bytes, 1) + step - 1) / step * step;
}

struct Pool {
  Device device;
  std::mutex mutex;
  std::multimap<size_t, void*> free;
  std::unordered_map<std::byte*, size_t> guarded;  // user pointer -> bytes asked for
  MemoryStats stats;
  bool debug = false;

  explicit Pool(Device d) : device(d) {}

  void* take(size_t size) {
    if (auto it = free.find(size); it != free.end()) {
      void* p = it->second;
      free.erase(it);
      return p;
    }
    ++stats.driver_calls;
    void* p;
    try {
      p = backend(device).reserve(size);
    } catch (const Error&) {
      if (free.empty()) throw;
      drop_cache();  // fragmentation: give everything back and try once more
      p = backend(device).reserve(size);
    }
    stats.reserved += size;
    return p;
  }

  void drop_cache() {
    for (auto& [size, p] : free) {
      backend(device).release(p, size);
      stats.reserved -= size;
    }
    free.clear();
  }

  std::shared_ptr<std::byte> allocate(size_t bytes) {
    std::unique_lock lock(mutex);
    const bool guard = debug;
    const size_t size = block_size(guard ? bytes + 2 * kGuard : bytes);
    auto* p = static_cast<std::byte*>(take(size));
    stats.live += bytes;
    stats.peak = std::max(stats.peak, stats.live);
    if (guard) {
      Backend& b = backend(device);
      b.set_bytes(p, kGuardByte, size);
      p += kGuard;
      b.set_bytes(p, 0xFF, bytes);  // NaN in every float type, -1 in integers
      guarded[p] = bytes;
    }
    lock.unlock();  // the deleter below runs at once if there is no memory for the handle
    return {p, [this, bytes, size, guard](std::byte* q) {
              std::lock_guard inner(mutex);
              stats.live -= bytes;
              if (guard) {
                guarded.erase(q);
                q -= kGuard;
              }
              free.emplace(size, q);
            }};
  }

  std::string check() {
    std::lock_guard lock(mutex);
    unsigned char side[kGuard];
    for (auto& [p, bytes] : guarded)
      for (const bool after : {false, true}) {
        backend(device).download(side, after ? p + bytes : p - kGuard, kGuard);
        for (size_t i = 0; i < kGuard; ++i)
          if (side[i] != kGuardByte) {
            const size_t distance = after ? i : kGuard - 1 - i;
            return fmt::format("a block of {} bytes on {} was written {} byte(s) {} its {}", bytes, name_of(device),
                               distance + 1, after ? "past" : "before", after ? "end" : "beginning");
          }
      }
    return {};
  }
};

// Never destroyed: tensors with static storage may outlive any order of destruction.
Pool& pool(Device device) {
  static Pool& cpu = *new Pool(Device::CPU);
  static Pool& cuda = *new Pool(Device::CUDA);
  return device == Device::CPU ? cpu : cuda;
}

}  // namespace

std::shared_ptr<std::byte> allocate(Device device, size_t bytes) { return pool(device).allocate(bytes); }
MemoryStats memory_stats(Device device) {
  std::lock_guard lock(pool(device).mutex);
  return pool(device).stats;
}
void reset_peak(Device device) {
  std::lock_guard lock(pool(device).mutex);
  pool(device).stats.peak = pool(device).stats.live;
}
void empty_cache(Device device) {
  std::lock_guard lock(pool(device).mutex);
  pool(device).drop_cache();
}
void set_memory_debug(bool on) {
  for (Device d : {Device::CPU, Device::CUDA}) {
    std::lock_guard lock(pool(d).mutex);
    pool(d).debug = on;
  }
}
std::string check_guards(Device device) { return pool(device).check(); }

}  // namespace t2l
