// Mean absolute errors and their gradients. In the dense one, mean |b a - s b* a*|, a thread owns a column of a (or a
// row of b) with its target's, in registers, and goes over all of the other side, tile by tile in shared memory: an
// element of the product exists for a moment, and its sign adds the other side's vector to the gradient. So each side
// computes the product anew, in the same order, and nothing has to be summed across blocks but the loss.
#include <cmath>

#include "cuda/cuda.h"
#include "cuda/grid.cuh"
#include "cuda/reduce.cuh"
#include "tensor/reconstruction.h"

namespace t2l::cuda {
namespace {

constexpr int64_t kChunk = 8 * 1024;  // elements of a row that a block sums

__device__ float sign_of(float x) { return float(int(x > 0) - int(x < 0)); }

// y = factor times the sum of x[0 .. n)
__global__ void __launch_bounds__(kThreads) sum_kernel(float* y, const float* x, int64_t n, float factor) {
  float sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += x[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *y = factor * sum;
}

// parts: [2, blocks], of the loss and of the error.  Block (row, chunk of its columns).
template <int N>
__global__ void __launch_bounds__(kThreads)
    l1_kernel(float* parts, float* dp, const float* p, const float* target, const int32_t* ids, const float* mean,
              const float* std, int64_t cols, int64_t chunks, float unit) {
  using V = Vec<float, N>;
  const int64_t row = blockIdx.x / chunks, begin = blockIdx.x % chunks * kChunk, end = min(cols, begin + kChunk);
  p += row * cols, target += ids[row] * cols, dp += dp ? row * cols : 0;
  float loss = 0, error = 0;
  for (int64_t i = begin + threadIdx.x * N; i < end; i += kThreads * N) {
    const V ps = V::load(p + i), ts = V::load(target + i);
    V ms{}, ss{}, ds;
    if (mean) ms = V::load(mean + i), ss = V::load(std + i);
    T2L_UNROLL
    for (int k = 0; k < N; ++k) {
      const float deviation = mean ? ss[k] + kStdEpsilon : 1.0f;
      const float d = ps[k] - (mean ? (ts[k] - ms[k]) / deviation : ts[k]);
      loss += fabsf(d);
      error += fabsf(d) * deviation;
      ds[k] = sign_of(d) * unit;
    }
    if (dp) ds.store(dp + i);
  }
  loss = block_sum(loss);
  error = block_sum(error);
  if (threadIdx.x == 0) parts[blockIdx.x] = loss, parts[gridDim.x + blockIdx.x] = error;
}

// A's columns or B's rows, and those of the targets: vectors of the rank. Element k of vector j of matrix g is at
// g rank count + k step_k + j step_j.
struct Side {
  const float *own, *target;
  float scale;  // of the target
  int64_t count, step_k, step_j;
};
struct Pair {
  const int32_t* ids;
  int64_t layers, rank;

  __device__ int64_t target_of(int64_t g) const { return ids[g / layers] * layers + g % layers; }
};

constexpr int kOwners = 128;  // vectors of a block, one for each thread
constexpr int kTile = 32;     // vectors of the other side in shared memory

// f(value k of the own vector, of the target's), zero where there is none
template <int R, class F>
__device__ void load_vector(const Side& s, const Pair& pair, int64_t g, int64_t j, int k, F f) {
  const bool there = j < s.count && k < pair.rank;
  const int64_t size = pair.rank * s.count, at = k * s.step_k + j * s.step_j;
  f(there ? s.own[g * size + at] : 0.0f, there ? s.scale * s.target[pair.target_of(g) * size + at] : 0.0f);
}

// dx: as x, or null  parts: [blocks] sums of |D|, or null.  R: at least the rank.
template <int R>
__global__ void __launch_bounds__(kOwners)
    dense_kernel(float* dx, float* parts, Side x, Side y, Pair pair, int64_t blocks, float unit) {
  alignas(16) __shared__ float tile[kTile][2 * R];
  const int64_t g = blockIdx.x / blocks, j = blockIdx.x % blocks * kOwners + threadIdx.x;
  float mine[2 * R], d[R] = {}, total = 0;
  T2L_UNROLL
  for (int k = 0; k < R; ++k)
    load_vector<R>(x, pair, g, j, k, [&](float own, float target) { mine[k] = own, mine[R + k] = target; });
  for (int64_t begin = 0; begin < y.count; begin += kTile) {
    __syncthreads();  // all are done with the last tile
    for (int e = threadIdx.x; e < kTile * R; e += kOwners) {
      // in the order of memory: B's ranks are neighbours, A's columns are
      const int i = y.step_k == 1 ? e / R : e % kTile, k = y.step_k == 1 ? e % R : e / kTile;
      load_vector<R>(y, pair, g, begin + i, k,
                     [&](float own, float target) { tile[i][k] = own, tile[i][R + k] = target; });
    }
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < kTile; ++i) {
      float product = 0;
      T2L_UNROLL
      for (int k = 0; k < 2 * R; k += 4) {
        const auto v = Vec<float>::load(tile[i] + k);
        T2L_UNROLL
        for (int c = 0; c < 4; ++c) product = fmaf(mine[k + c], v[c], product);
      }
      sum += fabsf(product);
      const float sign = sign_of(product);
      T2L_UNROLL
      for (int k = 0; k < R; k += 4) {
        const auto v = Vec<float>::load(tile[i] + k);
        T2L_UNROLL
        for (int c = 0; c < 4; ++c) d[k + c] = fmaf(sign, v[c], d[k + c]);
      }
    }
    total += sum;
  }
  if (dx && j < x.count) {
    T2L_UNROLL
    for (int k = 0; k < R; ++k)
      if (k < pair.rank) dx[g * pair.rank * x.count + k * x.step_k + j * x.step_j] = unit * d[k];
  }
  total = block_sum(total);
  if (parts && threadIdx.x == 0) parts[blockIdx.x] = total;
}

// The same for ranks that no register file holds: slow, with the gradient collected in memory.
__global__ void __launch_bounds__(kOwners)
    dense_any_kernel(float* dx, float* parts, Side x, Side y, Pair pair, int64_t blocks, float unit) {
  const int64_t g = blockIdx.x / blocks, j = blockIdx.x % blocks * kOwners + threadIdx.x;
  const int64_t size_x = pair.rank * x.count, size_y = pair.rank * y.count, target = pair.target_of(g);
  const float *const own_y = y.own + g * size_y, *const target_y = y.target + target * size_y;
  float total = 0;
  if (j < x.count) {
    const float *const own_x = x.own + g * size_x + j * x.step_j, *const target_x =
                                                                      x.target + target * size_x + j * x.step_j;
    float* const d = dx ? dx + g * size_x + j * x.step_j : nullptr;
    for (int64_t k = 0; d && k < pair.rank; ++k) d[k * x.step_k] = 0;
    for (int64_t i = 0; i < y.count; ++i) {
      float product = 0;
      for (int64_t k = 0; k < pair.rank; ++k)
        product = fmaf(own_x[k * x.step_k], own_y[k * y.step_k + i * y.step_j], product);
      for (int64_t k = 0; k < pair.rank; ++k)
        product = fmaf(x.scale * target_x[k * x.step_k], y.scale * target_y[k * y.step_k + i * y.step_j], product);
      total += fabsf(product);
      const float step = unit * sign_of(product);
      for (int64_t k = 0; d && k < pair.rank; ++k) d[k * x.step_k] += step * own_y[k * y.step_k + i * y.step_j];
    }
  }
  total = block_sum(total);
  if (parts && threadIdx.x == 0) parts[blockIdx.x] = total;
}

}  // namespace

void Cuda::l1_loss(Tensor& loss, Tensor* error, Tensor* dprediction, const Tensor& prediction, const Tensor& target,
                   const Tensor& ids, const Tensor* mean, const Tensor* std) {
  check_l1_loss(loss, error, dprediction, prediction, target, ids, mean, std);
  const int64_t rows = prediction.dim(0), cols = prediction.size() / rows, chunks = blocks_for(cols, kChunk);
  const unsigned blocks = blocks_for(rows * chunks, 1);
  const float unit = float(1 / double(prediction.size()));
  const Tensor parts = Tensor::empty({2, blocks}, DType::F32, Device::CUDA);
  bool aligned = cols % 4 == 0;
  for (const Tensor* t : {static_cast<const Tensor*>(dprediction), &prediction, &target, mean, std})
    aligned = aligned && (!t || reinterpret_cast<uintptr_t>(t->raw()) % 16 == 0);
  launch(aligned ? l1_kernel<4> : l1_kernel<1>, blocks, kThreads, 0, stream_, parts.data<float>(),
         dprediction ? dprediction->data<float>() : nullptr, prediction.data<float>(), target.data<float>(),
         ids.data<int32_t>(), mean ? mean->data<float>() : nullptr, std ? std->data<float>() : nullptr, cols, chunks,
         unit);
  launch(sum_kernel, 1, kThreads, 0, stream_, loss.data<float>(), parts.data<float>(), blocks, unit);
  if (error)
    launch(sum_kernel, 1, kThreads, 0, stream_, error->data<float>(), parts.data<float>() + blocks, blocks, unit);
}

void Cuda::dense_l1_loss(Tensor& loss, Tensor* da, Tensor* db, const Tensor& a, const Tensor& b, const Tensor& target_a,
                         const Tensor& target_b, const Tensor& ids, float scale) {
  const DenseSizes s = check_dense_l1_loss(loss, da, db, a, b, target_a, target_b, ids);
  const Side of_a{a.data<float>(), target_a.data<float>(), 1, s.in, s.in, 1};
  const Side of_b{b.data<float>(), target_b.data<float>(), -scale, s.out, 1, s.rank};
  const Pair pair{ids.data<int32_t>(), s.layers, s.rank};
  const float unit = float(1 / s.elements());
  const auto run = [&](Tensor* dx, const Tensor& parts, const Side& x, const Side& y) {
    const int64_t blocks = blocks_for(x.count, kOwners);
    const auto kernel = s.rank <= 8    ? dense_kernel<8>
                        : s.rank <= 16 ? dense_kernel<16>
                        : s.rank <= 32 ? dense_kernel<32>
                                       : dense_any_kernel;
    launch(kernel, blocks_for(s.matrices * blocks, 1), kOwners, 0, stream_, dx ? dx->data<float>() : nullptr,
           parts.data<float>(), x, y, pair, blocks, unit);
  };
  const Tensor parts = Tensor::empty({s.matrices * blocks_for(s.in, kOwners)}, DType::F32, Device::CUDA);
  run(da, parts, of_a, of_b);
  launch(sum_kernel, 1, kThreads, 0, stream_, loss.data<float>(), parts.data<float>(), parts.size(), unit);
  if (db) run(db, {}, of_b, of_a);
}

}  // namespace t2l::cuda
