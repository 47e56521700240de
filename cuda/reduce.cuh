// Sums and maxima over a warp or a block, given to every thread of it. The order of a sum depends on the block size
// alone, so results repeat bit for bit. All threads of full warps must call; blocks have one dimension.
#pragma once
#include "cuda/gpu.cuh"

namespace t2l::cuda {

struct Sum {
  static __device__ float identity() { return 0; }
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Max {
  static __device__ float identity() { return -INFINITY; }
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

template <class Op>
__device__ inline float warp_reduce(float v, Op op) {
  T2L_UNROLL
  for (int i = 16; i > 0; i /= 2) v = op(v, __shfl_xor_sync(0xffffffffu, v, i));
  return v;
}

template <class Op>
__device__ inline float block_reduce(float v, Op op) {
  __shared__ float partial[32];  // [warp]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  v = warp_reduce(v, op);
  if (lane == 0) partial[warp] = v;
  __syncthreads();
  v = warp_reduce(lane < warps ? partial[lane] : Op::identity(), op);
  __syncthreads();  // the next call may write partial at once
  return v;
}

__device__ inline float warp_sum(float v) { return warp_reduce(v, Sum{}); }
__device__ inline float warp_max(float v) { return warp_reduce(v, Max{}); }
__device__ inline float block_sum(float v) { return block_reduce(v, Sum{}); }
__device__ inline float block_max(float v) { return block_reduce(v, Max{}); }

}  // namespace t2l::cuda
