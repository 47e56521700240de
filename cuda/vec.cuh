// Memory moved 128 bits at a time, the widest access the hardware has.
#pragma once
#include "cuda/gpu.cuh"

namespace t2l::cuda {

// N values in registers. load(p) and store(p) demand alignment; load(p, n) and store(p, n) are for any p and n: they
// move the first min(n, N) values (a load makes the rest 0), at once where p is aligned and n >= N.
template <class T, int N = 16 / sizeof(T)>
struct alignas(sizeof(T) * N) Vec {
  static constexpr int size = N;
  T v[N];

  __device__ T& operator[](int i) { return v[i]; }
  __device__ const T& operator[](int i) const { return v[i]; }

  __device__ static bool aligned(const T* p) { return reinterpret_cast<uintptr_t>(p) % sizeof(Vec) == 0; }
  __device__ static Vec load(const T* p) {
#ifdef T2L_EMULATED
    emu::check_aligned(p, sizeof(Vec));
#endif
    return *reinterpret_cast<const Vec*>(p);
  }
  __device__ void store(T* p) const {
#ifdef T2L_EMULATED
    emu::check_aligned(p, sizeof(Vec));
#endif
    *reinterpret_cast<Vec*>(p) = *this;
  }
  __device__ static Vec load(const T* p, int64_t n) {
    if (n >= N && aligned(p)) return load(p);
    Vec x;
    T2L_UNROLL
    for (int i = 0; i < N; ++i) x[i] = i < n ? p[i] : T(0.0f);
    return x;
  }
  __device__ void store(T* p, int64_t n) const {
    if (n >= N && aligned(p)) return store(p);
    T2L_UNROLL
    for (int i = 0; i < N; ++i)
      if (i < n) p[i] = v[i];
  }
};

}  // namespace t2l::cuda
