// The optimizer and random numbers; formulas in tensor/adamw.h and tensor/random_values.h. A sum is made of sums of
// kChunk elements, of those again, and so on: the order depends on the size alone.
#include "cuda/cuda.h"
#include "cuda/grid.cuh"
#include "cuda/reduce.cuh"
#include "tensor/adamw.h"
#include "tensor/alike.h"
#include "tensor/random_values.h"

namespace t2l::cuda {
namespace {

constexpr int64_t kChunk = 16 * 1024;

// y[i] = sum of x or of x^2 over the elements i kChunk .. (i + 1) kChunk
template <class T>
__global__ void __launch_bounds__(kThreads) sum_kernel(float* y, const T* x, int64_t n, bool squares) {
  constexpr int N = kWidth<T>;
  const int64_t begin = int64_t(blockIdx.x) * kChunk, end = min(n, begin + kChunk);
  float sum = 0;
#pragma unroll 2
  for (int64_t i = begin + threadIdx.x * N; i < end; i += kThreads * N) {
    const auto v = Vec<T, N>::load(x + i, end - i);
#pragma unroll
    for (int k = 0; k < N; ++k) sum += squares ? float(v[k]) * float(v[k]) : float(v[k]);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

template <class T>
void sum(Stream stream, float* y, const T* x, int64_t n, bool squares) {
  const unsigned chunks = std::max(blocks_for(n, kChunk), 1u);
  if (chunks == 1) return launch(sum_kernel<T>, 1, kThreads, 0, stream, y, x, n, squares);
  const Tensor parts = Tensor::empty({chunks}, DType::F32, Device::CUDA);
  launch(sum_kernel<T>, chunks, kThreads, 0, stream, parts.data<float>(), x, n, squares);
  sum<float>(stream, y, parts.data<float>(), chunks, false);
}

__global__ void __launch_bounds__(kThreads)
    adamw_kernel(float* p, float* m, float* v, const float* g, const float* squared_norm, int64_t n, AdamWStep step) {
  using V = Vec<float>;
  const float clip = squared_norm ? step.clip(*squared_norm) : 1;
  grid_stride<V::size>(n, [&](int64_t i, int64_t left) {
    V ps = V::load(p + i, left), ms = V::load(m + i, left), vs = V::load(v + i, left);
    const V gs = V::load(g + i, left);
#pragma unroll
    for (int k = 0; k < V::size; ++k) step(ps[k], ms[k], vs[k], gs[k] * clip);
    ps.store(p + i, left);
    ms.store(m + i, left);
    vs.store(v + i, left);
  });
}

// Fills a vector from the random bits of its four elements.
struct Uniform {
  float low, high;
  __device__ void operator()(Vec<float>& x, const Random4& bits) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] = uniform_between(bits.v[k], low, high);
  }
};
struct Normal {
  float mean, std;
  __device__ void operator()(Vec<float>& x, const Random4& bits) const {
#pragma unroll
    for (int k = 0; k < 4; k += 2) normal_pair(x[k], x[k + 1], bits.v[k], bits.v[k + 1]);
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] = fmaf(std, x[k], mean);
  }
};

template <class F>
__global__ void __launch_bounds__(kThreads) draw_kernel(float* y, int64_t n, RandomKey key, F values) {
  grid_stride<4>(n, [&](int64_t i, int64_t left) {
    Vec<float> x;
    values(x, philox(key, uint64_t(i) / 4));
    x.store(y + i, left);
  });
}

template <class F>
void draw(Stream stream, Tensor& y, RandomKey key, F values) {
  launch(draw_kernel<F>, grid_for(y.size(), kThreads * 4), kThreads, 0, stream, y.data<float>(), y.size(), key, values);
}

}  // namespace

void Cuda::sum_squares(Tensor& y, const Tensor& x) {
  check_f32("sum_squares", y);
  T2L_CHECK(y.size() == 1, "sum_squares to {}", y.shape().str());
  with_type(x.dtype(), [&]<class T>(T*) { sum<T>(stream_, y.data<float>(), x.data<T>(), x.size(), true); });
}

void Cuda::adamw(Tensor& p, Tensor& m, Tensor& v, const Tensor& g, const Tensor* squared_norm, const AdamW& h) {
  check_f32("adamw", p);
  check_alike("adamw", p, m, v, g);
  launch(adamw_kernel, grid_for(p.size(), kThreads * 4), kThreads, 0, stream_, p.data<float>(), m.data<float>(),
         v.data<float>(), g.data<float>(), squared_norm ? squared_norm->data<float>() : nullptr, p.size(),
         AdamWStep(h));
}

void Cuda::random_uniform(Tensor& y, float low, float high, RandomKey key) {
  check_f32("random_uniform", y);
  T2L_CHECK(low <= high, "random_uniform in [{}, {})", low, high);
  draw(stream_, y, key, Uniform{low, high});
}

void Cuda::random_normal(Tensor& y, float mean, float std, RandomKey key) {
  check_f32("random_normal", y);
  draw(stream_, y, key, Normal{mean, std});
}

}  // namespace t2l::cuda
