// The caching allocator: a block that is given back is kept for the next request of its size, so that after its first
// step a training step asks the driver for nothing. Debug mode surrounds each block with guard bytes and fills it with
// NaN, so that reading what was never written, or writing outside, shows.
#pragma once
#include <cstddef>
#include <memory>
#include <string>

#include "tensor/dtype.h"

namespace t2l {

std::shared_ptr<std::byte> allocate(Device device, size_t bytes);  // 64-byte aligned (CUDA: 256); never null

struct MemoryStats {
  size_t live = 0, peak = 0;  // bytes asked for and not given back
  size_t reserved = 0;        // bytes held from the driver, the cache included
  int64_t driver_calls = 0;   // how often the driver was asked
};
MemoryStats memory_stats(Device device);
void reset_peak(Device device);
void empty_cache(Device device);  // gives the cached blocks back to the driver

void set_memory_debug(bool on);  // for blocks allocated from now on
// Checks the guard bytes of every live block; describes the first damage found, or returns an empty string.
std::string check_guards(Device device);

}  // namespace t2l
