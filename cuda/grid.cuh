// Loops over any number of elements with a grid of limited size; each thread takes N neighbours at a time.
#pragma once
#include <algorithm>

#include "cuda/vec.cuh"

namespace t2l::cuda {

constexpr int kThreads = 256;
#ifdef T2L_EMULATED
constexpr unsigned kMaxBlocks = 3;  // tests go round the loop
#else
constexpr unsigned kMaxBlocks = 4096;  // two waves and more on every GPU
#endif

inline unsigned grid_for(int64_t n, int64_t per_block) { return std::min(blocks_for(n, per_block), kMaxBlocks); }

// f(i, left) for i = N times this thread's index, and so on; left = n - i > 0 elements are still there.
template <int N, class F>
__device__ void grid_stride(int64_t n, F f) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x * N;
  for (int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * N; i < n; i += step) f(i, n - i);
}

// How many elements a thread takes: 128 bits of the widest type.
template <class... T>
constexpr int kWidth = 16 / int(std::max({sizeof(T)...}));

}  // namespace t2l::cuda
