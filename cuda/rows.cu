// Rows moved about. Sums over rows named by ids run in the order of the ids without atomics or sorting: the block of
// the first row that names a destination finds all the later ones, and sums them.
#include "cuda/cuda.h"
#include "cuda/grid.cuh"
#include "tensor/alike.h"

namespace t2l::cuda {
namespace {

// f(row, column, left): for each row, each Vec of its columns; left = cols - column
template <int N, class F>
__device__ void for_vectors(int64_t rows, int64_t cols, F f) {
  const int64_t per_row = (cols + N - 1) / N;
  grid_stride<1>(rows * per_row, [&](int64_t i, int64_t) {
    const int64_t row = i / per_row, column = (i - row * per_row) * N;
    f(row, column, cols - column);
  });
}
template <class T>
unsigned grid_for_vectors(int64_t rows, int64_t cols) {
  return grid_for(rows * ((cols + kWidth<T> - 1) / kWidth<T>), kThreads);
}

// y[..] = x factor, or y[..] += x factor, of the first `left` elements
template <class T, class X, int N>
__device__ void put(T* y, const Vec<X, N>& x, float factor, int64_t left, bool accumulate) {
  Vec<T, N> out{};
  if (accumulate) out = Vec<T, N>::load(y, left);
  T2L_UNROLL
  for (int k = 0; k < N; ++k) out[k] = T((accumulate ? float(out[k]) : 0.0f) + float(x[k]) * factor);
  out.store(y, left);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(T* y, const T* x, const int32_t* ids, int64_t n, int64_t width, int64_t cols, bool accumulate) {
  for_vectors<kWidth<T>>(n, cols, [&](int64_t i, int64_t j, int64_t left) {
    put(y + i * width + j, Vec<T>::load(x + ids[i] * cols + j, left), 1, left, accumulate);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) put_kernel(T* y, const T* x, const int32_t* ids, int64_t n, int64_t cols) {
  for_vectors<kWidth<T>>(n, cols, [&](int64_t i, int64_t j, int64_t left) {
    Vec<T>::load(x + i * cols + j, left).store(y + ids[i] * cols + j, left);
  });
}

constexpr int kScatterThreads = 128;

// Block (i, column block). The block of the first row with its id sums the rows with the same id.
template <class T>
__global__ void __launch_bounds__(kScatterThreads)
    scatter_kernel(T* dx, const T* dy, const int32_t* ids, int64_t n, int64_t width, int64_t cols, bool accumulate) {
  constexpr int N = kWidth<T>, kWarps = kScatterThreads / 32;
  __shared__ unsigned equal[2][kWarps];  // which of the next ids are equal; two, so that one barrier a round is enough
  const int64_t i = blockIdx.x, column = (int64_t(blockIdx.y) * kScatterThreads + threadIdx.x) * N;
  const int32_t id = ids[i];
  bool earlier = false;
  for (int64_t k = threadIdx.x; k < i; k += kScatterThreads) earlier |= ids[k] == id;
  if (!__syncthreads_or(earlier)) {
    float sum[N] = {};
    int buffer = 0;
    for (int64_t k0 = i; k0 < n; k0 += kScatterThreads, buffer ^= 1) {
      const int64_t k = k0 + threadIdx.x;
      const unsigned votes = __ballot_sync(0xffffffffu, k < n && ids[k] == id);
      if (threadIdx.x % 32 == 0) equal[buffer][threadIdx.x / 32] = votes;
      __syncthreads();
      for (int w = 0; w < kWarps; ++w)
        for (unsigned rest = equal[buffer][w]; rest; rest &= rest - 1) {
          const int64_t row = k0 + w * 32 + __ffs(int(rest)) - 1;
          const auto v = Vec<T>::load(dy + row * width + column, cols - column);
          T2L_UNROLL
          for (int j = 0; j < N; ++j) sum[j] += float(v[j]);
        }
    }
    Vec<float, N> total;
    T2L_UNROLL
    for (int j = 0; j < N; ++j) total[j] = sum[j];
    put(dx + id * cols + column, total, 1, cols - column, accumulate);
  }
}

constexpr int kTile = 32, kTransposeThreads = 256;

// Block: a tile of [32, 32], through shared memory, so that reads and writes both run along rows.
template <class T>
__global__ void __launch_bounds__(kTransposeThreads)
    transpose_kernel(T* y, const T* x, int64_t m, int64_t n, int64_t tiles_m, int64_t tiles_n, bool accumulate) {
  __shared__ T tile[kTile][kTile + 4 / sizeof(T)];  // an odd number of words a row: a column lies in 32 banks
  const int64_t block = blockIdx.x, b = block / (tiles_m * tiles_n);
  const int64_t i0 = block / tiles_n % tiles_m * kTile, j0 = block % tiles_n * kTile;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int i = warp; i < kTile; i += kTransposeThreads / 32)
    if (i0 + i < m && j0 + lane < n) tile[i][lane] = x[(b * m + i0 + i) * n + j0 + lane];
  __syncthreads();
  for (int j = warp; j < kTile; j += kTransposeThreads / 32)
    if (j0 + j < n && i0 + lane < m) {
      T& to = y[(b * n + j0 + j) * m + i0 + lane];
      to = accumulate ? T(float(to) + float(tile[lane][j])) : tile[lane][j];
    }
}

constexpr int kMeanWarps = 8;

// Block (sample, column block): each warp sums every eighth row, then the first warp sums the warps.
template <class T>
__global__ void __launch_bounds__(32 * kMeanWarps)
    segment_mean_kernel(T* y, const T* x, const int32_t* offsets, int64_t cols) {
  constexpr int N = kWidth<T>;
  __shared__ float part[kMeanWarps][32 * N];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t s = blockIdx.x, column = (int64_t(blockIdx.y) * 32 + lane) * N;
  const int64_t begin = offsets[s], end = offsets[s + 1];
  float sum[N] = {};
  for (int64_t i = begin + warp; i < end; i += kMeanWarps) {
    const auto v = Vec<T>::load(x + i * cols + column, cols - column);
    T2L_UNROLL
    for (int j = 0; j < N; ++j) sum[j] += float(v[j]);
  }
  T2L_UNROLL
  for (int j = 0; j < N; ++j) part[warp][j * 32 + lane] = sum[j];
  __syncthreads();
  if (warp == 0) {
    Vec<float, N> total;
    T2L_UNROLL
    for (int j = 0; j < N; ++j) {
      total[j] = 0;
      for (int w = 0; w < kMeanWarps; ++w) total[j] += part[w][j * 32 + lane];
    }
    put(y + s * cols + column, total, 1.0f / float(max(end - begin, int64_t(1))), cols - column, false);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    segment_mean_backward_kernel(T* dx, const T* dy, const int32_t* offsets, int64_t samples, int64_t rows,
                                 int64_t cols, bool accumulate) {
  for_vectors<kWidth<T>>(rows, cols, [&](int64_t i, int64_t j, int64_t left) {
    int64_t s = 0, end = samples + 1;  // becomes the number of offsets <= i
    while (s < end) {
      const int64_t middle = (s + end) / 2;
      if (offsets[middle] <= i)
        s = middle + 1;
      else
        end = middle;
    }
    Vec<T> v{};
    float factor = 0;  // for rows of no segment
    if (s > 0 && s <= samples) {
      v = Vec<T>::load(dy + (s - 1) * cols + j, left);
      factor = 1.0f / float(offsets[s] - offsets[s - 1]);
    }
    put(dx + i * cols + j, v, factor, left, accumulate);
  });
}

// The element type as kernels know it, and a tensor's memory of it
template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.raw());
}

}  // namespace

void Cuda::gather_rows(Tensor& y, int64_t column, const Tensor& x, const Tensor& ids, bool accumulate) {
  const int64_t n = y.rows(), cols = x.cols();
  with_type(y.dtype(), [&]<class T>(T*) {
    launch(gather_kernel<T>, grid_for_vectors<T>(n, cols), kThreads, 0, stream_, data<T>(y) + column, data<T>(x),
           data<int32_t>(ids), n, y.cols(), cols, accumulate);
  });
}

void Cuda::scatter_rows(Tensor& dx, const Tensor& dy, int64_t column, const Tensor& ids, bool accumulate) {
  if (!accumulate) set_bytes(dx.raw(), 0, dx.bytes());  // rows that nobody names
  with_type(dx.dtype(), [&]<class T>(T*) {
    const dim3 grid(blocks_for(ids.size(), 1), blocks_for(dx.cols(), kScatterThreads * kWidth<T>));
    launch(scatter_kernel<T>, grid, kScatterThreads, 0, stream_, data<T>(dx), data<T>(dy) + column, data<int32_t>(ids),
           ids.size(), dy.cols(), dx.cols(), accumulate);
  });
}

void Cuda::put_rows(Tensor& y, const Tensor& x, const Tensor& ids) {
  check_put_rows(y, x, ids);
  const int64_t n = ids.size(), cols = x.cols();
  with_type(y.dtype(), [&]<class T>(T*) {
    launch(put_kernel<T>, grid_for_vectors<T>(n, cols), kThreads, 0, stream_, data<T>(y), data<T>(x),
           data<int32_t>(ids), n, cols);
  });
}

void Cuda::transpose(Tensor& y, const Tensor& x, bool accumulate) {
  const int64_t m = x.dim(1), n = x.dim(2), tiles_m = (m + kTile - 1) / kTile, tiles_n = (n + kTile - 1) / kTile;
  with_type(y.dtype(), [&]<class T>(T*) {
    launch(transpose_kernel<T>, blocks_for(x.dim(0) * tiles_m * tiles_n, 1), kTransposeThreads, 0, stream_, data<T>(y),
           data<T>(x), m, n, tiles_m, tiles_n, accumulate);
  });
}

void Cuda::segment_mean_forward(Tensor& y, const Tensor& x, const Tensor& offsets) {
  with_type(y.dtype(), [&]<class T>(T*) {
    const dim3 grid(blocks_for(y.dim(0), 1), blocks_for(y.cols(), 32 * kWidth<T>));
    launch(segment_mean_kernel<T>, grid, 32 * kMeanWarps, 0, stream_, data<T>(y), data<T>(x), data<int32_t>(offsets),
           y.cols());
  });
}

void Cuda::segment_mean_backward(Tensor& dx, const Tensor& dy, const Tensor& offsets, bool accumulate) {
  const int64_t rows = dx.rows(), cols = dx.cols();
  with_type(dx.dtype(), [&]<class T>(T*) {
    launch(segment_mean_backward_kernel<T>, grid_for_vectors<T>(rows, cols), kThreads, 0, stream_, data<T>(dx),
           data<T>(dy), data<int32_t>(offsets), dy.rows(), rows, cols, accumulate);
  });
}

}  // namespace t2l::cuda
