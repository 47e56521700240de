// The emulator: kernels that are wrong on purpose must each be caught, right ones must not depend on the schedule. Then
// what only it can run here: our own matrix product against double precision.
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "cuda/gemm.h"
#include "cuda/ptx.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"

#if defined(__SANITIZE_THREAD__)
#define T2L_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define T2L_TSAN 1
#endif
#endif
#ifndef T2L_TSAN
#define T2L_TSAN 0
#endif

namespace t2l::cuda {
namespace {

using Catch::Contains;

constexpr bool kTsan = T2L_TSAN;
constexpr unsigned kAll = 0xffffffffu;
const char* const kSchedules[] = {"ascending", "descending", "shuffled:1", "shuffled:2"};

float in_order(int i) { return float(i % 1000) * 0.25f - 40; }

// What run writes, under each schedule.
std::vector<std::vector<float>> under_all(size_t n, const std::function<void(float* y)>& run) {
  std::vector<std::vector<float>> all;
  for (const char* schedule : kSchedules) {
    emu::set_schedule(schedule);
    all.emplace_back(n, 0.0f);
    run(all.back().data());
  }
  emu::set_schedule("ascending");
  return all;
}

bool is(const std::vector<float>& y, const std::vector<float>& wanted) {
  return std::equal(y.begin(), y.end(), wanted.begin(), wanted.end());
}

bool right(const std::vector<float>& wanted, const std::function<void(float* y)>& run) {
  for (const auto& y : under_all(wanted.size(), run))
    if (!is(y, wanted)) return false;
  return true;
}

// Is ThreadSanitizer, if it is there, stopped by a race? It ends the process, so that a second one runs this test case
// as far as the race of that line.
bool stopped(int line, const std::function<void()>& run) {
  if (const char* chosen = std::getenv("T2L_TEST_RACE")) {
    if (std::atoi(chosen) == line) run();
    return true;
  }
  char self[4096] = {};
  if (readlink("/proc/self/exe", self, sizeof(self) - 1) < 0) return false;
  const std::string command =
      fmt::format("TSAN_OPTIONS=halt_on_error=1:exitcode=66 T2L_TEST_RACE={} '{}' '{}' > /dev/null 2>&1", line, self,
                  Catch::getResultCapture().getCurrentTestName());
  return WEXITSTATUS(std::system(command.c_str())) == 66;
}

// Wrong under some schedule.
bool wrong(const std::vector<float>& wanted, const std::function<void(float* y)>& run) {
  bool any = false;
  for (const auto& y : under_all(wanted.size(), run)) any |= !is(y, wanted);
  return any;
}

// Wrong under some schedule; where there is a ThreadSanitizer, it must be stopped instead.
bool race(const std::vector<float>& wanted, const std::function<void(float* y)>& run, int line = __builtin_LINE()) {
  return kTsan ? stopped(line, [&] { wrong(wanted, run); }) : wrong(wanted, run);
}

std::vector<float> make(size_t n, const std::function<float(int)>& f) {
  std::vector<float> y(n);
  for (size_t i = 0; i < n; ++i) y[i] = f(int(i));
  return y;
}

// ---- kernels, right or wrong in the place a flag says
// ----------------------------------------------------------------

template <bool kSync>
__global__ void reverse_kernel(float* y) {
  float* s = dynamic_shared<float>();
  s[threadIdx.x] = in_order(int(threadIdx.x));
  if (kSync) __syncthreads();
  y[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
}

template <bool kSync>
__device__ float sum_of_warps(float v) {
  __shared__ float partial[32];
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0;
  for (unsigned i = 0; i < blockDim.x / 32; ++i) sum += partial[i];
  if (kSync) __syncthreads();
  return sum;
}

template <bool kSync>
__global__ void reuse_kernel(float* y) {
  const auto v = float(threadIdx.x / 32 + 1);
  const float a = sum_of_warps<kSync>(v), b = sum_of_warps<kSync>(10 * v);
  y[threadIdx.x] = a + b;
}

template <bool kSync>
__global__ void within_warp_kernel(float* y) {
  alignas(16) __shared__ float s[32];
  s[threadIdx.x] = in_order(int(threadIdx.x));
  if (kSync) __syncwarp();
  y[threadIdx.x] = s[threadIdx.x ^ 1];
}

__global__ void shuffle_is_no_barrier_kernel(float* y) {
  __shared__ float s[64];
  s[threadIdx.x] = in_order(int(threadIdx.x));
  const float other = __shfl_xor_sync(kAll, s[threadIdx.x], 1);
  y[threadIdx.x] = other - s[threadIdx.x ^ 1];  // s of another lane needs __syncwarp; here it only happens to be there
}

__global__ void divergent_kernel() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void barrier_or_shuffle_kernel(float* y) {
  if (threadIdx.x < 16)
    __syncthreads();
  else
    y[threadIdx.x] = __shfl_sync(kAll, 1.0f, 0);
}

__global__ void two_shuffles_kernel(float* y) {
  if (threadIdx.x < 16)
    y[threadIdx.x] = __shfl_sync(kAll, 1.0f, 0);
  else
    y[threadIdx.x] = __shfl_sync(kAll, 2.0f, 1);
}

__global__ void outside_mask_kernel(float* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 20);
}

__global__ void not_in_own_mask_kernel(float* y) {
  if (threadIdx.x < 17) y[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 3);
}

__global__ void exited_lane_kernel(float* y) {
  if (threadIdx.x >= 16) return;
  y[threadIdx.x] = __shfl_xor_sync(kAll, 1.0f, 16);
}

__global__ void halves_kernel(float* y) {
  float v = float(threadIdx.x);
  if (threadIdx.x < 16) {
    v = __shfl_sync(0xffffu, v, 3);
  } else {
    __syncwarp(0xffff0000u);
    v = __shfl_down_sync(0xffff0000u, v, 1, 16);
  }
  y[threadIdx.x] = v;
}

__global__ void early_exit_kernel(float* y) {
  __shared__ float s[64];
  s[threadIdx.x] = in_order(int(threadIdx.x));
  if (threadIdx.x >= 32) return;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x] + s[threadIdx.x + 32];
}

template <bool kWait>
__global__ void async_kernel(float* y, const float* x) {
  alignas(16) __shared__ float s[128];
  cp_async<16>(s + threadIdx.x * 4, x + threadIdx.x * 4);
  cp_async_commit();
  if (kWait) cp_async_wait<0>();
  __syncthreads();
  y[threadIdx.x] = s[(threadIdx.x * 4 + 8) % 128];
}

// Two buffers in turn; without the second barrier a fast warp refills the one that a slow warp still reads.
template <bool kSync>
__global__ void refill_kernel(float* y, const float* x) {
  __shared__ float s[2][64];
  float sum = 0;
  cp_async<4>(&s[0][threadIdx.x], x + threadIdx.x);
  cp_async_commit();
  for (int step = 0; step < 4; ++step) {
    if (step < 3) cp_async<4>(&s[(step + 1) % 2][threadIdx.x], x + (step + 1) * 64 + threadIdx.x);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    sum += s[step % 2][63 - threadIdx.x];
    if (kSync) __syncthreads();
  }
  y[threadIdx.x] = sum;
}

__global__ void zero_fill_kernel(float* y, const float* x) {
  alignas(16) __shared__ float s[8 * 4];
  if (threadIdx.x < 8) cp_async<16>(s + threadIdx.x * 4, x + threadIdx.x * 4, int(threadIdx.x) * 2);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

template <class T>
__global__ void stale_kernel(float* y) {
  __shared__ T s[32];
  if (blockIdx.x == 0) s[threadIdx.x] = T(1.0f);
  y[blockIdx.x * 32 + threadIdx.x] = float(s[threadIdx.x]) > 0 ? 1.0f : 0.0f;
  __syncwarp();
  s[threadIdx.x] = T(1.0f);
}

__global__ void chain_kernel(float* y) {  // block b needs block b - 1 to have run
  if (threadIdx.x == 0) y[blockIdx.x] = blockIdx.x == 0 ? 1.0f : y[blockIdx.x - 1] + 1;
}

__global__ void last_block_wins_kernel(float* y) { y[threadIdx.x] = float(blockIdx.x); }

__global__ void count_kernel(unsigned* n) { atomicAdd(n, 1u); }

__global__ void misaligned_kernel(float* y) { Vec<float>::load(y + 1).store(y + 4); }

__global__ void overflow_kernel() {
  if (threadIdx.x == 0) dynamic_shared<float>()[blockDim.x] = 1;
}

__global__ void votes_kernel(float* y) {
  const int t = int(threadIdx.x);
  float v = float(__syncthreads_count(t % 3 == 0));
  v = v * 2 + float(__syncthreads_or(t == 77));
  v = v * 2 + float(__syncthreads_and(t != 77));
  v = v * 2 + float(__any_sync(kAll, t == 40));
  v = v * 2 + float(__all_sync(kAll, t < 64));
  v = v * 64 + float(__popc(__ballot_sync(kAll, t % 32 < 5)));
  y[t] = v;
}

__global__ void shuffles_kernel(float* y) {
  const float v = float(threadIdx.x);
  y[threadIdx.x * 4] = __shfl_up_sync(kAll, v, 3);
  y[threadIdx.x * 4 + 1] = __shfl_down_sync(kAll, v, 5, 8);
  y[threadIdx.x * 4 + 2] = __shfl_xor_sync(kAll, v, 9);
  y[threadIdx.x * 4 + 3] = __shfl_sync(kAll, v, 2, 8);
}

__global__ void reductions_kernel(float* y) {
  const float v = float((threadIdx.x * 7 + blockIdx.x) % 131);
  const float a = block_sum(v), b = block_sum(2 * v), c = block_max(v), d = warp_sum(1), e = warp_max(v);
  y[blockIdx.x * blockDim.x + threadIdx.x] = a + b + c + d + e;
}

__global__ void indices_kernel(float* y) {
  const unsigned t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  y[b * blockDim.x * blockDim.y * blockDim.z + t] += 1;
}

// c = a b, 16 x 16 times 16 x 8, by ldmatrix from shared memory; b stored [n, k] or [k, n]
template <bool kTransposed>
__global__ void mma_kernel(float* c, const bf16* a, const bf16* b) {
  alignas(16) __shared__ bf16 sa[16 * 16];
  alignas(16) __shared__ bf16 sb[16 * 16];
  const int lane = int(threadIdx.x), in = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
  for (int i = lane; i < 256; i += 32) {
    sa[i] = a[i];
    sb[i] = b[i];
  }
  __syncwarp();
  FragA fa;
  uint32_t r[4];
  ldmatrix_x4(fa.r, sa + (in + low) * 16 + high);
  if (kTransposed)
    ldmatrix_x4_trans(r, sb + (in + low) * 16 + high);
  else
    ldmatrix_x4(r, sb + (in + high) * 16 + low);
  for (int half = 0; half < 2; ++half) {
    FragC fc{};
    mma_16x8x16(fc, fa, {{r[2 * half], r[2 * half + 1]}});
    for (int e = 0; e < 4; ++e) c[(lane / 4 + e / 2 * 8) * 16 + half * 8 + lane % 4 * 2 + e % 2] = fc.r[e];
  }
}

template <class T>
concept atomic = requires(T* p, T v) {
  atomicAdd(p, v);
};
static_assert(atomic<int> && atomic<unsigned> && !atomic<float> && !atomic<double>);

}  // namespace

// ---- the tests ------------------------------------------------------------------------------------------------------

TEST_CASE("emulator: races in shared memory show") {
  const auto reversed = make(256, [](int i) { return in_order(255 - i); });
  CHECK(right(reversed, [](float* y) { launch(reverse_kernel<true>, 1, 256, 1024, Stream{}, y); }));
  CHECK(race(reversed, [](float* y) { launch(reverse_kernel<false>, 1, 256, 1024, Stream{}, y); }));

  const auto sums = make(128, [](int) { return 110.0f; });
  CHECK(right(sums, [](float* y) { launch(reuse_kernel<true>, 1, 128, 0, Stream{}, y); }));
  CHECK(race(sums, [](float* y) { launch(reuse_kernel<false>, 1, 128, 0, Stream{}, y); }));

  const auto swapped = make(32, [](int i) { return in_order(i ^ 1); });
  CHECK(right(swapped, [](float* y) { launch(within_warp_kernel<true>, 1, 32, 0, Stream{}, y); }));
  CHECK(race(swapped, [](float* y) { launch(within_warp_kernel<false>, 1, 32, 0, Stream{}, y); }));

  // Values that are right by luck: only ThreadSanitizer sees it.
  const auto unordered = [] {
    std::vector<float> y(64);
    launch(shuffle_is_no_barrier_kernel, 1, 64, 0, Stream{}, y.data());
  };
  if (kTsan) CHECK(stopped(0, unordered));
}

TEST_CASE("emulator: divergence and wrong masks are errors") {
  for (const char* schedule : kSchedules) {
    emu::set_schedule(schedule);
    std::vector<float> y(64);
    const auto run = [&](void (*kernel)(float*), unsigned threads = 32) {
      launch(kernel, 3, threads, 0, Stream{}, y.data());
    };
    CHECK_THROWS_WITH(launch(divergent_kernel, 2, 64, 0, Stream{}),
                      Contains("divergent barrier") && Contains("divergent_kernel") && Contains("emulator.cpp:"));
    CHECK_THROWS_WITH(run(barrier_or_shuffle_kernel), Contains("divergence") && Contains("__syncthreads") &&
                                                          Contains("__shfl_sync") && Contains("thread (16,0,0)"));
    CHECK_THROWS_WITH(run(two_shuffles_kernel), Contains("divergence"));
    CHECK_THROWS_WITH(run(outside_mask_kernel), Contains("reads lane 20, which has exited or is not in the mask"));
    CHECK_THROWS_WITH(run(not_in_own_mask_kernel), Contains("lacks its own lane") && Contains("thread (16,0,0)"));
    CHECK_THROWS_WITH(run(exited_lane_kernel), Contains("which has exited"));
    CHECK_THROWS_WITH(launch(reductions_kernel, 1, 48, 0, Stream{}, y.data()), Contains("which has exited"));
    CHECK_THROWS_WITH(run(misaligned_kernel), Contains("not aligned to 16 bytes"));
    CHECK_THROWS_AS(run(misaligned_kernel), Error);
  }
  emu::set_schedule("ascending");
  // and the emulator goes on working
  CHECK(right(make(32, [](int i) { return i < 16 ? 3.0f : float(std::min(i + 1, 31)); }),
              [](float* y) { launch(halves_kernel, 1, 32, 0, Stream{}, y); }));
}

TEST_CASE("emulator: exited threads count as arrived") {
  CHECK(right(make(32, [](int i) { return in_order(i) + in_order(i + 32); }),
              [](float* y) { launch(early_exit_kernel, 1, 64, 0, Stream{}, y); }));
}

TEST_CASE("emulator: cp.async lands when waited for") {
  const auto x = make(256, in_order);
  const auto shifted = make(32, [](int i) { return in_order((i * 4 + 8) % 128); });
  CHECK(right(shifted, [&](float* y) { launch(async_kernel<true>, 1, 32, 0, Stream{}, y, x.data()); }));
  CHECK(wrong(shifted, [&](float* y) { launch(async_kernel<false>, 1, 32, 0, Stream{}, y, x.data()); }));

  const auto sums = make(64, [](int i) {
    float sum = 0;
    for (int step = 0; step < 4; ++step) sum += in_order(step * 64 + 63 - i);
    return sum;
  });
  CHECK(right(sums, [&](float* y) { launch(refill_kernel<true>, 1, 64, 0, Stream{}, y, x.data()); }));
  CHECK(race(sums, [&](float* y) { launch(refill_kernel<false>, 1, 64, 0, Stream{}, y, x.data()); }));

  std::vector<float> filled(32);  // lane i is given 2 i bytes
  for (int i = 0; i < 32; ++i) {
    uint32_t bits = __float_as_uint(in_order(i));
    const int given = i / 4 * 2 - i % 4 * 4;
    if (given < 4) bits &= given == 2 ? 0xffffu : 0;
    filled[size_t(i)] = given <= 0 ? 0 : __uint_as_float(bits);
  }
  CHECK(right(filled, [&](float* y) { launch(zero_fill_kernel, 1, 32, 0, Stream{}, y, x.data()); }));
}

TEST_CASE("emulator: nothing is left in shared memory for the next block") {
  const auto ones = make(96, [](int) { return 1.0f; });
  CHECK(wrong(ones, [](float* y) { launch(stale_kernel<float>, 3, 32, 0, Stream{}, y); }));
  CHECK(wrong(ones, [](float* y) { launch(stale_kernel<bf16>, 3, 32, 0, Stream{}, y); }));
  const auto first_only = make(96, [](int i) { return i < 32 ? 1.0f : 0.0f; });
  CHECK(right(first_only, [](float* y) { launch(stale_kernel<float>, 3, 32, 0, Stream{}, y); }));
  CHECK_THROWS_WITH(launch(overflow_kernel, 2, 33, 33 * 4, Stream{}), Contains("writes past its 132 bytes"));
}

TEST_CASE("emulator: blocks have no order") {
  CHECK(
      race(make(9, [](int i) { return float(i + 1); }), [](float* y) { launch(chain_kernel, 9, 32, 0, Stream{}, y); }));
  CHECK(race(make(32, [](int) { return 4.0f; }),
             [](float* y) { launch(last_block_wins_kernel, 5, 32, 0, Stream{}, y); }));
  unsigned n = 0;
  launch(count_kernel, 5, 100, 0, Stream{}, &n);
  CHECK(n == 500);
}

TEST_CASE("emulator: launches that CUDA would refuse") {
  std::vector<float> y(1);
  CHECK_THROWS_WITH(launch(chain_kernel, 1, 1025, 0, Stream{}, y.data()), Contains("1025 x 1 x 1 threads"));
  CHECK_THROWS_WITH(launch(chain_kernel, 1, dim3(1, 1, 65), 0, Stream{}, y.data()), Contains("1 x 1 x 65 threads"));
  CHECK_THROWS_WITH(launch(chain_kernel, 1, 0, 0, Stream{}, y.data()), Contains("0 x 1 x 1 threads"));
  CHECK_THROWS_WITH(launch(chain_kernel, dim3(1, 65536), 1, 0, Stream{}, y.data()), Contains("1 x 65536 x 1 blocks"));
  CHECK_THROWS_WITH(launch(chain_kernel, 1, 1, 200 << 10, Stream{}, y.data()), Contains("dynamic shared memory"));
  launch(chain_kernel, 0, 32, 0, Stream{}, static_cast<float*>(nullptr));
  CHECK_THROWS_WITH(emu::set_schedule("sideways"), Contains("ascending, descending, shuffled"));
  CHECK_THROWS_WITH(emu::set_schedule("shuffled:x"), Contains("shuffled:SEED"));
}

TEST_CASE("emulator: collectives mean what CUDA says") {
  CHECK(right(make(96,
                   [](int i) {
                     float v = 32;  // of 96
                     v = v * 2 + 1;
                     v = v * 2;
                     v = v * 2 + float(i / 32 == 1);
                     v = v * 2 + float(i / 32 < 2);
                     return v * 64 + 5;
                   }),
              [](float* y) { launch(votes_kernel, 1, 96, 0, Stream{}, y); }));
  CHECK(right(make(128,
                   [](int i) {
                     const int l = i / 4;
                     const int from[] = {l < 3 ? l : l - 3, l % 8 + 5 < 8 ? l + 5 : l, l ^ 9, l / 8 * 8 + 2};
                     return float(from[i % 4]);
                   }),
              [](float* y) { launch(shuffles_kernel, 1, 32, 0, Stream{}, y); }));
  for (const unsigned threads : {32u, 96u, 1024u})
    CHECK(right(make(3 * threads,
                     [=](int i) {
                       const int block = i / int(threads), warp = i % int(threads) / 32;
                       float sum = 0, most = 0, in_warp = 0;
                       for (int t = 0; t < int(threads); ++t) {
                         const float v = float((t * 7 + block) % 131);
                         sum += v;
                         most = std::max(most, v);
                         if (t / 32 == warp) in_warp = std::max(in_warp, v);
                       }
                       return 3 * sum + most + 32 + in_warp;
                     }),
                [=](float* y) { launch(reductions_kernel, 3, threads, 0, Stream{}, y); }));
  CHECK(right(make(12 * 60, [](int) { return 1.0f; }),
              [](float* y) { launch(indices_kernel, dim3(2, 3, 2), dim3(3, 5, 4), 0, Stream{}, y); }));
}

TEST_CASE("emulator: ldmatrix and mma") {
  std::mt19937 rng(3);
  std::vector<bf16> a(256), b(256);
  for (auto* x : {&a, &b})
    for (auto& v : *x) v = bf16(float(int(rng() % 17) - 8));
  for (const bool transposed : {false, true})
    CHECK(right(make(256,
                     [&](int i) {
                       float sum = 0;
                       for (int k = 0; k < 16; ++k)
                         sum += float(a[size_t(i / 16 * 16 + k)]) *
                                float(b[size_t(transposed ? k * 16 + i % 16 : i % 16 * 16 + k)]);
                       return sum;
                     }),
                [&](float* y) {
                  launch(transposed ? mma_kernel<true> : mma_kernel<false>, 1, 32, 0, Stream{}, y, a.data(), b.data());
                }));
}

// ---- own_gemm -------------------------------------------------------------------------------------------------------
namespace {

double reference_activation(double x, Activation kind) {
  switch (kind) {
    case Activation::SiLU: return x / (1 + std::exp(-x));
    case Activation::GELU: return x / 2 * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::GELUTanh: return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::None: break;
  }
  return x;
}

struct Case {
  Matmul spec;
  DType in, out;
  bool bias;
  int shift;  // elements that A, B and C begin after a 16-byte boundary
};

// Values of the given type, beginning shift elements after a 16-byte boundary; memory of their own, for ASan.
struct Buffer {
  Tensor view;
  int64_t n;
  Buffer(int64_t elements, DType type, int shift, std::mt19937& rng) : n(elements) {
    constexpr std::align_val_t kAlign{16};
    const size_t bytes = size_t(elements + shift) * size_of(type);
    std::shared_ptr<std::byte> memory(static_cast<std::byte*>(::operator new(bytes, kAlign)),
                                      [](std::byte* p) { ::operator delete(p, kAlign); });
    view = Tensor(memory, {elements + shift}, type, Device::CPU).slice(shift, elements + shift);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < n; ++i) set(i, normal(rng));
  }
  void set(int64_t i, float v) {
    view.dtype() == DType::F32 ? void(view.data<float>()[i] = v) : void(view.data<bf16>()[i] = bf16(v));
  }
  double operator[](int64_t i) const {
    return view.dtype() == DType::F32 ? view.data<float>()[i] : float(view.data<bf16>()[i]);
  }
};

void check(const Case& test, unsigned seed) {
  const Matmul& s = test.spec;
  INFO(fmt::format("m {} n {} k {} groups {} t{}{} {}->{} bias {} act {} accumulate {} ld {} {} {} shift {}", s.m, s.n,
                   s.k, s.groups, s.transpose_a, s.transpose_b, name_of(test.in), name_of(test.out), test.bias,
                   int(s.activation), s.accumulate, s.lda, s.ldb, s.ldc, test.shift));
  std::mt19937 rng(seed);
  Buffer a(s.groups * s.stride_a, test.in, test.shift, rng), b(s.groups * s.stride_b, test.in, test.shift, rng),
      c(s.groups * s.stride_c, test.out, test.shift, rng), bias(s.groups * s.stride_bias, test.in, test.shift, rng);
  std::vector<double> wanted(size_t(c.n)), before(size_t(c.n));
  std::vector<bool> ours(size_t(c.n), false);
  for (int64_t i = 0; i < c.n; ++i) wanted[size_t(i)] = before[size_t(i)] = c[i];
  for (int64_t g = 0; g < s.groups; ++g)
    for (int64_t i = 0; i < s.m; ++i)
      for (int64_t j = 0; j < s.n; ++j) {
        double sum = test.bias ? bias[g * s.stride_bias + j] : 0;
        for (int64_t k = 0; k < s.k; ++k)
          sum += a[g * s.stride_a + (s.transpose_a ? k * s.lda + i : i * s.lda + k)] *
                 b[g * s.stride_b + (s.transpose_b ? j * s.ldb + k : k * s.ldb + j)];
        const size_t at = size_t(g * s.stride_c + i * s.ldc + j);
        wanted[at] = reference_activation(sum, s.activation) + (s.accumulate ? before[at] : 0);
        ours[at] = true;
      }
  std::vector<double> first;
  for (const char* schedule : {"ascending", "descending", "shuffled:1"}) {
    emu::set_schedule(schedule);
    for (int64_t i = 0; i < c.n; ++i) c.set(i, s.accumulate || !ours[size_t(i)] ? float(before[size_t(i)]) : NAN);
    own_gemm(Stream{}, c.view, a.view, b.view, test.bias ? &bias.view : nullptr, s);
    double error = 0, norm = 0;
    int touched = 0;
    std::vector<double> got(size_t(c.n));
    for (int64_t i = 0; i < c.n; ++i) {
      const size_t at = size_t(i);
      got[at] = c[i];
      error += (got[at] - wanted[at]) * (got[at] - wanted[at]);
      norm += ours[at] ? wanted[at] * wanted[at] : 0;
      touched += !ours[at] && got[at] != before[at];
    }
    CHECK(touched == 0);
    // Sums in f32: some units of 6e-8. Rounding to bf16's 8 bits changes a result by up to 2^-8 of itself.
    CHECK(std::sqrt(error) <= (test.out == DType::F32 ? 1e-6 : 0x1p-8 + 1e-6) * std::sqrt(norm));
    if (first.empty()) first = got;
    CHECK(got == first);
  }
  emu::set_schedule("ascending");
}

}  // namespace

TEST_CASE("own_gemm: every form of Matmul, under all schedules") {
  struct Size {
    int64_t m, n, k, groups;
  };
  unsigned index = 0;
  for (const Size size : {Size{1, 1, 1, 1}, Size{3, 5, 7, 3}, Size{5, 2, 0, 2}, Size{64, 64, 32, 1},
                          Size{65, 70, 161, 1}, Size{33, 9, 100, 2}, Size{129, 136, 40, 2}})
    for (const bool ta : {false, true})
      for (const bool tb : {false, true})
        for (const auto& [in, out] : {std::pair{DType::F32, DType::F32}, std::pair{DType::BF16, DType::BF16},
                                      std::pair{DType::BF16, DType::F32}})
          for (const bool aligned : {true, false}) {
            if (kTsan && ++index % 4) continue;  // it is 30 times slower
            const auto [m, n, k, groups] = size;
            // aligned: rows padded to 128 bits; else dense, or padded by one
            const auto row = [&](int64_t cols) { return aligned ? (cols + 7) / 8 * 8 : cols + int64_t(index % 2); };
            Matmul s{.m = m, .n = n, .k = k, .transpose_a = ta, .transpose_b = tb, .groups = groups};
            s.lda = row(ta ? m : k);
            s.ldb = row(tb ? k : n);
            s.ldc = row(n);
            s.stride_a = s.lda * (ta ? k : m);
            s.stride_b = s.ldb * (tb ? n : k);
            s.stride_c = s.ldc * m;
            s.stride_bias = row(n);
            s.accumulate = index % 5 == 4;
            if (!s.accumulate) s.activation = Activation(index % 4);
            check({s, in, out, !s.accumulate && index % 3 != 0, aligned ? 0 : int(index % 3)}, index);
            index += !kTsan;
          }
}

TEST_CASE("own_gemm: an element depends on neither m nor the groups") {
  for (const DType type : {DType::F32, DType::BF16}) {
    std::mt19937 rng(5);
    const int64_t m = 130, n = 136, k = 72, groups = 2;
    Buffer a(groups * m * k, type, 0, rng), b(n * k, type, 0, rng), all(groups * m * n, DType::F32, 0, rng),
        one(n, DType::F32, 0, rng);
    Matmul s{.m = m, .n = n, .k = k, .transpose_b = true, .lda = k, .ldb = k, .ldc = n, .groups = groups};
    s.stride_a = m * k;
    s.stride_c = m * n;
    own_gemm(Stream{}, all.view, a.view, b.view, nullptr, s);
    for (const int64_t row : {int64_t(0), int64_t(77), m + 129}) {
      Matmul single = s;
      single.m = single.groups = 1;
      Tensor a_row = a.view.slice(row * k, (row + 1) * k);
      own_gemm(Stream{}, one.view, a_row, b.view, nullptr, single);
      for (int64_t j = 0; j < n; ++j) REQUIRE(one[j] == all[row * n + j]);
    }
  }
}

}  // namespace t2l::cuda
