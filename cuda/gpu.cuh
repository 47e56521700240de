// The one header every kernel includes: under nvcc it is CUDA, under a host compiler its model in cuda/emu/emu.h.
//
//   launch(kernel, grid, block, dynamic_bytes, stream, args...)   instead of <<<>>>; checked; nothing if grid is empty
//   blocks_for(n, per_block)                                      a grid dimension: n / per_block rounded up, checked
//   alignas(16) __shared__ float x[N]                             alignas first; no initialiser; poisoned per block
//   T* s = dynamic_shared<T>()                                    16-byte aligned; NaN at the start of every block
//   Stream, bf16                                                  float(x) and bf16(f) convert; no bf16 arithmetic
//
// Rules: no return before the last barrier; full warps (block a multiple of 32, x only, if a warp or block collective
// is used); every lane of a mask calls the collective, from the same line; shuffles order no memory, __syncwarp does;
// atomics on int and unsigned only; inline asm only in ptx.cuh, wide accesses through Vec (vec.cuh), sums through
// reduce.cuh. What the model has of CUDA: __syncthreads(_or, _and, _count), __syncwarp, __shfl(_xor, _down, _up)_sync,
// __ballot_sync, __any_sync, __all_sync, atomicAdd, atomicMax, __threadfence, __ldg, min, max, the usual float and bit
// intrinsics, int2, uint2, float2, int4, uint4, float4, dim3. T2L_UNROLL before a loop is #pragma unroll.
// Include this header first (it prepares fmt for nvcc). Host builds: -x c++ -DT2L_EMULATED, and link cuda/emu/*.cpp,
// -lboost_context, -lfmt.
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>

#ifdef __CUDACC__
#define FMT_USE_CONSTEXPR 1  // fmt 9 leaves it off under nvcc, then cannot check its own format strings
#endif
#include "tensor/check.h"

#ifdef __CUDACC__
#define T2L_UNROLL _Pragma("unroll")
#define __CUDA_NO_BFLOAT16_OPERATORS__  // a + b of two bf16 would round; on the host it does not
#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace t2l::cuda {

using Stream = cudaStream_t;
using bf16 = __nv_bfloat16;

inline void cuda_check(cudaError_t e, const char* what) {
  if (e != cudaSuccess) fail("CUDA: {}: {}", what, cudaGetErrorString(e));
}

template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char dynamic_smem[];
  return reinterpret_cast<T*>(dynamic_smem);
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_bytes, Stream stream, A&&... args) {
  static_assert(sizeof...(P) == sizeof...(A));
  if (!grid.x || !grid.y || !grid.z) return;
  if (dynamic_bytes > 48 * 1024)
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(dynamic_bytes)),
               "dynamic shared memory");
  kernel<<<grid, block, dynamic_bytes, stream>>>(static_cast<P>(args)...);
  cuda_check(cudaGetLastError(), "launch");
}

}  // namespace t2l::cuda
#else
#define T2L_UNROLL
#include "cuda/emu/emu.h"
#include "tensor/bf16.h"

namespace t2l::cuda {

using Stream = void*;
using t2l::bf16;

template <class T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(emu::dynamic_smem);
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_bytes, Stream, A&&... args) {
  static_assert(sizeof...(P) == sizeof...(A));
  auto call = [&] { kernel(static_cast<P>(args)...); };
  emu::run(grid, block, dynamic_bytes,
           {[](const void* f) { (*static_cast<const decltype(call)*>(f))(); }, &call,
            reinterpret_cast<const void*>(kernel)});
}

}  // namespace t2l::cuda
#endif

namespace t2l::cuda {

inline unsigned blocks_for(int64_t n, int64_t per_block) {
  const int64_t blocks = (n + per_block - 1) / per_block;
  if (n < 0 || blocks > 0x7fffffff) fail("CUDA: {} elements are too many for one kernel", n);
  return unsigned(blocks);
}

}  // namespace t2l::cuda
