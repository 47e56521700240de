// A host model of CUDA: one fiber per CUDA thread, blocks one after another, on one OS thread. It implements what
// kernels may rely on (barriers, warp collectives with masks, exited threads, shared memory, cp.async) and is stricter
// than hardware: what is undefined there is an Error here, naming kernel, block, thread and line. Included by gpu.cuh
// alone; CUDA's own names stand at the end.
#pragma once
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>

#include "tensor/check.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
// The tag ends up in the variable's mangled name, by which the emulator finds and poisons it before every block.
#define __shared__ static __attribute__((abi_tag("t2l_shared")))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace t2l::emu {

// ---- for tests ------------------------------------------------------------------------------------------------------
// Which block, warp and lane goes first. Each warp runs as far as it can before the next one starts: the order that
// shows shared memory reused too early. Initially as the environment variable T2L_EMU_SCHEDULE says: ascending (the
// default), descending, shuffled or shuffled:SEED.
enum class Order { Ascending, Descending, Shuffled };
void set_schedule(Order order, unsigned seed = 0);
void set_schedule(const std::string& text);  // as in the environment variable; Error if it is none of these

void poison(void* p, size_t bytes);  // fills with 0xff: NaN as f32 and bf16, -1 as int
size_t switches();                   // between fibers, so far

// ---- what the model of CUDA below is made of ------------------------------------------------------------------------
struct Thread {
  uint3 thread, block;  // threadIdx, blockIdx
  unsigned linear;      // index of the thread in its block
};
extern Thread* self;  // null outside of kernels
extern dim3 block_dim, grid_dim;
extern unsigned char* dynamic_smem;

// Which call of the kernel's source: threads that meet must meet at the same one.
struct Site {
  const char* call;
  const char* file;
  int line;
};

[[noreturn]] void fault(const std::string& what);  // an Error about the calling thread

int barrier(Site site, bool vote = false);  // returns how many threads voted; __syncthreads and its family

// Waits until all live lanes of mask have arrived; the last one runs resolve, once, on the lanes' payloads. Payloads of
// lanes outside group are null.
using Resolve = void (*)(void* const payload[32], unsigned group);
void collective(Site site, unsigned mask, void* payload, Resolve resolve);
uint64_t exchange(Site site, unsigned mask, uint64_t value, int source_lane);
unsigned ballot(Site site, unsigned mask, bool vote);
void warp_barrier(Site site, unsigned mask);

// cp.async: a copy is queued, and lands when its group is waited for; next_landing hands over one at a time.
struct Copy {
  void* to;
  const void* from;
  unsigned bytes, given;  // the rest is zero
};
void queue_copy(const Copy& copy);
void commit_copies();
bool next_landing(unsigned groups_left, Copy& copy);

inline int lane() { return int(self->linear % 32); }
inline int warp() { return int(self->linear / 32); }

inline void check_aligned(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) fault(fmt::format("{} is not aligned to {} bytes", p, bytes));
}

struct Body {  // the kernel with its arguments, called once per thread
  void (*call)(const void* closure);
  const void* closure;
  const void* kernel;  // its address, to name it in errors
};
void run(dim3 grid, dim3 block, size_t dynamic_bytes, const Body& body);

template <class T>
T shuffle(Site site, unsigned mask, T v, int source) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof(T));
  bits = exchange(site, mask, bits, source);
  std::memcpy(static_cast<void*>(&v), &bits, sizeof(T));
  return v;
}

template <class T>
constexpr bool is_atomic = std::is_same_v<T, int> || std::is_same_v<T, unsigned>;

}  // namespace t2l::emu

// ---- CUDA's names ---------------------------------------------------------------------------------------------------
#define threadIdx (::t2l::emu::self->thread)
#define blockIdx (::t2l::emu::self->block)
#define blockDim (::t2l::emu::block_dim)
#define gridDim (::t2l::emu::grid_dim)
constexpr int warpSize = 32;

#define T2L_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
inline void __syncthreads(T2L_SITE) { t2l::emu::barrier({"__syncthreads", file, line}); }
inline int __syncthreads_count(int vote, T2L_SITE) {
  return t2l::emu::barrier({"__syncthreads_count", file, line}, vote);
}
inline int __syncthreads_or(int vote, T2L_SITE) {
  return t2l::emu::barrier({"__syncthreads_or", file, line}, vote) != 0;
}
inline int __syncthreads_and(int vote, T2L_SITE) {
  return t2l::emu::barrier({"__syncthreads_and", file, line}, !vote) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, T2L_SITE) {
  t2l::emu::warp_barrier({"__syncwarp", file, line}, mask);
}

template <class T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32, T2L_SITE) {
  const int l = t2l::emu::lane();
  return t2l::emu::shuffle({"__shfl_sync", file, line}, mask, v, l / width * width + (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, T2L_SITE) {
  const int l = t2l::emu::lane(), s = l ^ bits;  // a lower group may be read, a higher one not
  return t2l::emu::shuffle({"__shfl_xor_sync", file, line}, mask, v, s / width <= l / width ? s : l);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, T2L_SITE) {
  const int l = t2l::emu::lane(), s = l + int(delta);
  return t2l::emu::shuffle({"__shfl_down_sync", file, line}, mask, v, s / width == l / width ? s : l);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, T2L_SITE) {
  const int l = t2l::emu::lane(), s = l - int(delta);
  return t2l::emu::shuffle({"__shfl_up_sync", file, line}, mask, v, s >= l / width * width ? s : l);
}
inline unsigned __ballot_sync(unsigned mask, int vote, T2L_SITE) {
  return t2l::emu::ballot({"__ballot_sync", file, line}, mask, vote);
}
inline int __any_sync(unsigned mask, int vote, T2L_SITE) {
  return t2l::emu::ballot({"__any_sync", file, line}, mask, vote) != 0;
}
inline int __all_sync(unsigned mask, int vote, T2L_SITE) {
  return t2l::emu::ballot({"__all_sync", file, line}, mask, !vote) == 0;
}
#undef T2L_SITE

// Integers only: the order of a sum of floats must not depend on the schedule.
template <class T, class = std::enable_if_t<t2l::emu::is_atomic<T>>>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
template <class T, class = std::enable_if_t<t2l::emu::is_atomic<T>>>
T atomicMax(T* p, std::type_identity_t<T> v) {
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (old < v && !__atomic_compare_exchange_n(p, &old, v, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  return old;
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __saturatef(float x) { return x < 0 ? 0.0f : x < 1 ? x : x >= 1 ? 1.0f : 0.0f; }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
template <class T>
T __ldg(const T* p) {
  return *p;
}
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
