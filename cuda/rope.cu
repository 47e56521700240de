// Rotary position embedding (Su et al., "RoFormer", 2021), the pair of a dimension being half the head away.
#include "cuda/cuda.h"
#include "cuda/grid.cuh"

namespace t2l::cuda {
namespace {

// A thread rotates four neighbouring pairs of a head. y may be x: each pair is read and written by one thread.
template <class T>
__global__ void __launch_bounds__(kThreads)
    rope_kernel(T* y, const T* x, const float* cos, const float* sin, const int32_t* positions, int64_t rows,
                int64_t heads, int64_t half, float sign, bool accumulate) {
  constexpr int N = kWidth<T, float>;
  using V = Vec<T, N>;
  const int64_t per_row = (half + N - 1) / N;
  grid_stride<1>(rows * per_row, [&](int64_t i, int64_t) {
    const int64_t row = i / per_row, j = (i - row * per_row) * N, left = half - j;
    const int64_t at = row * 2 * half + j, table = positions[row / heads] * half + j;
    const V a = V::load(x + at, left), b = V::load(x + at + half, left);
    const auto c = Vec<float, N>::load(cos + table, left), s = Vec<float, N>::load(sin + table, left);
    V low{}, high{};
    if (accumulate) low = V::load(y + at, left), high = V::load(y + at + half, left);
    T2L_UNROLL
    for (int k = 0; k < N; ++k) {
      const float u = float(a[k]) * c[k] - sign * float(b[k]) * s[k],
                  v = float(b[k]) * c[k] + sign * float(a[k]) * s[k];
      low[k] = T(accumulate ? float(low[k]) + u : u);
      high[k] = T(accumulate ? float(high[k]) + v : v);
    }
    low.store(y + at, left);
    high.store(y + at + half, left);
  });
}

}  // namespace

void Cuda::rope(Tensor& y, const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& positions, bool inverse,
                bool accumulate) {
  const int64_t heads = x.dim(1), half = x.dim(2) / 2, rows = x.dim(0) * heads;
  with_type(y.dtype(), [&]<class T>(T*) {
    launch(rope_kernel<T>, grid_for(rows * ((half + 3) / 4), kThreads), kThreads, 0, stream_, static_cast<T*>(y.raw()),
           static_cast<T*>(x.raw()), cos.data<float>(), sin.data<float>(), positions.data<int32_t>(), rows, heads, half,
           inverse ? -1.0f : 1.0f, accumulate);
  });
}

}  // namespace t2l::cuda
