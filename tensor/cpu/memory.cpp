#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "tensor/cpu/cpu.h"

namespace t2l::cpu {

void* Cpu::reserve(size_t bytes) {
  // Large blocks on huge pages: fewer page faults and TLB misses in the matrix product.
  constexpr size_t kHuge = size_t(2) << 20;
  const size_t alignment = bytes >= 2 * kHuge ? kHuge : 64;
  void* p = bytes > SIZE_MAX - alignment
                ? nullptr
                : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (!p)
    fail("out of memory: {} MiB more were needed; use fewer descriptions at once or a smaller model", bytes >> 20);
  if (alignment == kHuge) madvise(p, bytes, MADV_HUGEPAGE);
  return p;
}

void Cpu::release(void* p, size_t) { std::free(p); }

void Cpu::copy(void* to, const void* from, size_t bytes) {
  parallel(int64_t(bytes), 1 << 20, [&](int64_t begin, int64_t end) {
    std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin, size_t(end - begin));
  });
}

void Cpu::set_bytes(void* p, int byte, size_t bytes) {
  parallel(int64_t(bytes), 1 << 20,
           [&](int64_t begin, int64_t end) { std::memset(static_cast<char*>(p) + begin, byte, size_t(end - begin)); });
}

}  // namespace t2l::cpu

t2l::Backend& t2l::cpu_backend() {
  static cpu::Cpu backend;
  return backend;
}
