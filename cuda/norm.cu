// LayerNorm, RMSNorm and L2 normalisation; the mathematics stands in autograd/norm.cpp. A row belongs to a warp, or to
// a block where it is long; it is read again for each sum, from the first-level cache.
#include "cuda/cuda.h"
#include "cuda/grid.cuh"
#include "cuda/reduce.cuh"

namespace t2l::cuda {
namespace {

constexpr int64_t kLongRow = 1024;  // elements that are worth a block

// One row of x as its warp (or block) sees it.
template <class T, bool kBlock>
struct Row {
  static constexpr int N = kWidth<T>, kTeam = kBlock ? kThreads : 32;
  int64_t row, cols;
  int member;

  __device__ Row(int64_t cols_) : cols(cols_) {
    row = kBlock ? int64_t(blockIdx.x) : int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
    member = int(threadIdx.x) % kTeam;
  }
  // f(j, left): this thread's vectors
  template <class F>
  __device__ void for_each(F f) const {
    for (int64_t j = int64_t(member) * N; j < cols; j += kTeam * N) f(j, cols - j);
  }
  // the sum of f over the row's elements, f of a vector being f(j, left, sums)
  template <class F>
  __device__ float sum(F f) const {
    float lane[N] = {};
    for_each([&](int64_t j, int64_t left) { f(j, left, lane); });
    float total = 0;
    T2L_UNROLL
    for (int k = 0; k < N; ++k) total += lane[k];
    return kBlock ? block_sum(total) : warp_sum(total);
  }
};

template <class T, int N>
__device__ void put(T* y, const float (&x)[N], int64_t left, bool accumulate) {
  Vec<T, N> out{};
  if (accumulate) out = Vec<T, N>::load(y, left);
  T2L_UNROLL
  for (int k = 0; k < N; ++k) out[k] = T((accumulate ? float(out[k]) : 0.0f) + x[k]);
  out.store(y, left);
}

template <class T, bool kBlock>
__global__ void __launch_bounds__(kThreads) layernorm_kernel(T* y, float* mean, float* rstd, const T* x, const T* w,
                                                             const T* b, int64_t rows, int64_t cols, float eps) {
  const Row<T, kBlock> r(cols);
  constexpr int N = r.N;
  if (r.row < rows) {
    x += r.row * cols;
    const float mu = r.sum([&](int64_t j, int64_t left, float(&s)[N]) {
      const auto v = Vec<T>::load(x + j, left);
      T2L_UNROLL
      for (int k = 0; k < N; ++k) s[k] += float(v[k]);
    }) / float(cols);
    const float var = r.sum([&](int64_t j, int64_t left, float(&s)[N]) {
      const auto v = Vec<T>::load(x + j, left);
      T2L_UNROLL
      for (int k = 0; k < N; ++k) {
        const float d = k < left ? float(v[k]) - mu : 0.0f;
        s[k] += d * d;
      }
    }) / float(cols);
    const float rs = 1 / sqrtf(var + eps);
    r.for_each([&](int64_t j, int64_t left) {
      const auto v = Vec<T>::load(x + j, left), wv = Vec<T>::load(w + j, left), bv = Vec<T>::load(b + j, left);
      float out[N];
      T2L_UNROLL
      for (int k = 0; k < N; ++k) out[k] = (float(v[k]) - mu) * rs * float(wv[k]) + float(bv[k]);
      put(y + r.row * cols + j, out, left, false);
    });
    if (r.member == 0) mean[r.row] = mu, rstd[r.row] = rs;
  }
}

template <class T, bool kBlock>
__global__ void __launch_bounds__(kThreads)
    layernorm_backward_kernel(T* dx, const T* dy, const T* x, const T* w, const float* mean, const float* rstd,
                              int64_t rows, int64_t cols, bool accumulate) {
  const Row<T, kBlock> r(cols);
  constexpr int N = r.N;
  if (r.row < rows) {
    x += r.row * cols, dy += r.row * cols;
    const float mu = mean[r.row], rs = rstd[r.row];
    const auto load = [&](int64_t j, int64_t left, float(&n)[N], float(&dn)[N]) {
      const auto v = Vec<T>::load(x + j, left), g = Vec<T>::load(dy + j, left), wv = Vec<T>::load(w + j, left);
      T2L_UNROLL
      for (int k = 0; k < N; ++k) n[k] = (float(v[k]) - mu) * rs, dn[k] = float(g[k]) * float(wv[k]);
    };
    const float mean_dn = r.sum([&](int64_t j, int64_t left, float(&s)[N]) {
      float n[N], dn[N];
      load(j, left, n, dn);
      T2L_UNROLL
      for (int k = 0; k < N; ++k) s[k] += dn[k];
    }) / float(cols);
    const float mean_dn_n = r.sum([&](int64_t j, int64_t left, float(&s)[N]) {
      float n[N], dn[N];
      load(j, left, n, dn);
      T2L_UNROLL
      for (int k = 0; k < N; ++k) s[k] += dn[k] * n[k];
    }) / float(cols);
    r.for_each([&](int64_t j, int64_t left) {
      float n[N], dn[N];
      load(j, left, n, dn);
      T2L_UNROLL
      for (int k = 0; k < N; ++k) dn[k] = rs * (dn[k] - mean_dn - n[k] * mean_dn_n);
      put(dx + r.row * cols + j, dn, left, accumulate);
    });
  }
}

template <class T, bool kBlock>
__global__ void __launch_bounds__(kThreads)
    rmsnorm_kernel(T* y, float* rstd, const T* x, const T* w, int64_t rows, int64_t cols, float eps, float shift) {
  const Row<T, kBlock> r(cols);
  constexpr int N = r.N;
  if (r.row < rows) {
    x += r.row * cols;
    const float square = r.sum([&](int64_t j, int64_t left, float(&s)[N]) {
      const auto v = Vec<T>::load(x + j, left);
      T2L_UNROLL
      for (int k = 0; k < N; ++k) s[k] += float(v[k]) * float(v[k]);
    }) / float(cols);
    const float rs = 1 / sqrtf(square + eps);
    r.for_each([&](int64_t j, int64_t left) {
      const auto v = Vec<T>::load(x + j, left), wv = Vec<T>::load(w + j, left);
      float out[N];
      T2L_UNROLL
      for (int k = 0; k < N; ++k) {
        const float n = float(v[k]) * rs;
        out[k] = shift == 0 ? float(T(n)) * float(wv[k]) : n * (float(wv[k]) + shift);
      }
      put(y + r.row * cols + j, out, left, false);
    });
    if (r.member == 0) rstd[r.row] = rs;
  }
}

template <class T, bool kBlock>
__global__ void __launch_bounds__(kThreads)
    rmsnorm_backward_kernel(T* dx, const T* dy, const T* x, const T* w, const float* rstd, int64_t rows, int64_t cols,
                            float shift, bool accumulate) {
  const Row<T, kBlock> r(cols);
  constexpr int N = r.N;
  if (r.row < rows) {
    x += r.row * cols, dy += r.row * cols;
    const float rs = rstd[r.row];
    const auto load = [&](int64_t j, int64_t left, float(&n)[N], float(&dn)[N]) {
      const auto v = Vec<T>::load(x + j, left), g = Vec<T>::load(dy + j, left), wv = Vec<T>::load(w + j, left);
      T2L_UNROLL
      for (int k = 0; k < N; ++k) n[k] = float(v[k]) * rs, dn[k] = float(g[k]) * (float(wv[k]) + shift);
    };
    const float mean_dn_n = r.sum([&](int64_t j, int64_t left, float(&s)[N]) {
      float n[N], dn[N];
      load(j, left, n, dn);
      T2L_UNROLL
      for (int k = 0; k < N; ++k) s[k] += dn[k] * n[k];
    }) / float(cols);
    r.for_each([&](int64_t j, int64_t left) {
      float n[N], dn[N];
      load(j, left, n, dn);
      T2L_UNROLL
      for (int k = 0; k < N; ++k) dn[k] = rs * (dn[k] - n[k] * mean_dn_n);
      put(dx + r.row * cols + j, dn, left, accumulate);
    });
  }
}

constexpr int kParamWarps = kThreads / 32;
constexpr int64_t kParamRows = 128;  // rows of a block; fixed, as it decides the order of the sums

// partial: [row blocks, 2, cols], of dw and db.  mean: null where it is 0.  Block (row block, column block): a warp
// takes every eighth row.
template <class T>
__global__ void __launch_bounds__(kThreads) params_kernel(float* partial, const T* dy, const T* x, const float* mean,
                                                          const float* rstd, int64_t rows, int64_t cols) {
  constexpr int N = kWidth<T>;
  __shared__ float part[2][kParamWarps][32 * N];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = (int64_t(blockIdx.y) * 32 + lane) * N, first = blockIdx.x * kParamRows;
  float dw[N] = {}, db[N] = {};
  for (int64_t i = first + warp; i < min(first + kParamRows, rows); i += kParamWarps) {
    const auto v = Vec<T>::load(x + i * cols + column, cols - column);
    const auto g = Vec<T>::load(dy + i * cols + column, cols - column);
    const float mu = mean ? mean[i] : 0, rs = rstd[i];
    T2L_UNROLL
    for (int k = 0; k < N; ++k) {
      dw[k] += float(g[k]) * ((float(v[k]) - mu) * rs);
      db[k] += float(g[k]);
    }
  }
  T2L_UNROLL
  for (int k = 0; k < N; ++k) part[0][warp][k * 32 + lane] = dw[k], part[1][warp][k * 32 + lane] = db[k];
  __syncthreads();
  if (warp < 2) {  // one for dw, one for db
    T2L_UNROLL
    for (int k = 0; k < N; ++k) {
      float total = 0;
      for (int i = 0; i < kParamWarps; ++i) total += part[warp][i][k * 32 + lane];
      if (column + k < cols) partial[(int64_t(blockIdx.x) * 2 + warp) * cols + column + k] = total;
    }
  }
}

// d: [cols] (+)= the sum over row blocks of partial[.., which, ..]
template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_partial_kernel(T* d, const float* partial, int64_t blocks, int64_t cols, bool accumulate) {
  const int64_t column = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (column < cols) {
    float total = 0;
    for (int64_t i = 0; i < blocks; ++i) total += partial[i * 2 * cols + column];
    d[column] = T((accumulate ? float(d[column]) : 0.0f) + total);
  }
}

template <class T, bool kBlock>
__global__ void __launch_bounds__(kThreads)
    l2_normalize_kernel(T* y, float* norm, const T* x, int64_t rows, int64_t cols, float scale, float eps) {
  const Row<T, kBlock> r(cols);
  constexpr int N = r.N;
  if (r.row < rows) {
    x += r.row * cols;
    const float length = sqrtf(r.sum([&](int64_t j, int64_t left, float(&s)[N]) {
      const auto v = Vec<T>::load(x + j, left);
      T2L_UNROLL
      for (int k = 0; k < N; ++k) s[k] += float(v[k]) * float(v[k]);
    }));
    const float factor = scale / fmaxf(length, eps);
    r.for_each([&](int64_t j, int64_t left) {
      const auto v = Vec<T>::load(x + j, left);
      float out[N];
      T2L_UNROLL
      for (int k = 0; k < N; ++k) out[k] = float(v[k]) * factor;
      put(y + r.row * cols + j, out, left, false);
    });
    if (r.member == 0) norm[r.row] = length;
  }
}

template <class T, bool kBlock>
__global__ void __launch_bounds__(kThreads)
    l2_normalize_backward_kernel(T* dx, const T* dy, const T* x, const float* norm, int64_t rows, int64_t cols,
                                 float scale, float eps, bool accumulate) {
  const Row<T, kBlock> r(cols);
  constexpr int N = r.N;
  if (r.row < rows) {
    x += r.row * cols, dy += r.row * cols;
    const float length = norm[r.row], inverse = 1 / fmaxf(length, eps);
    float along = r.sum([&](int64_t j, int64_t left, float(&s)[N]) {
      const auto v = Vec<T>::load(x + j, left), g = Vec<T>::load(dy + j, left);
      T2L_UNROLL
      for (int k = 0; k < N; ++k) s[k] += float(v[k]) * inverse * float(g[k]);
    });
    if (!(length > eps)) along = 0;
    r.for_each([&](int64_t j, int64_t left) {
      const auto v = Vec<T>::load(x + j, left), g = Vec<T>::load(dy + j, left);
      float out[N];
      T2L_UNROLL
      for (int k = 0; k < N; ++k) out[k] = scale * inverse * (float(g[k]) - float(v[k]) * inverse * along);
      put(dx + r.row * cols + j, out, left, accumulate);
    });
  }
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.raw());
}

// Calls f(element type, bool constant: a block per row?, grid).
template <class F>
void for_rows_of(const Tensor& x, F&& f) {
  with_type(x.dtype(), [&]<class T>(T* type) {
    if (x.cols() > kLongRow)
      f(type, std::true_type{}, blocks_for(x.rows(), 1));
    else
      f(type, std::false_type{}, blocks_for(x.rows(), kThreads / 32));
  });
}

void params(Stream stream, Tensor* dw, Tensor* db, const Tensor& dy, const Tensor& x, const Tensor* mean,
            const Tensor& rstd, bool accumulate_w, bool accumulate_b) {
  const int64_t rows = x.rows(), cols = x.cols();
  const unsigned row_blocks = blocks_for(rows, kParamRows);
  const Tensor partial = Tensor::empty({int64_t(row_blocks), 2, cols}, DType::F32, Device::CUDA);
  with_type(x.dtype(), [&]<class T>(T*) {
    launch(params_kernel<T>, dim3(row_blocks, blocks_for(cols, 32 * kWidth<T>)), kThreads, 0, stream,
           data<float>(partial), data<T>(dy), data<T>(x), mean ? data<float>(*mean) : nullptr, data<float>(rstd), rows,
           cols);
    const auto sum = [&](Tensor* d, int64_t which, bool accumulate) {
      if (d)
        launch(sum_partial_kernel<T>, blocks_for(cols, kThreads), kThreads, 0, stream, data<T>(*d),
               data<float>(partial) + which * cols, int64_t(row_blocks), cols, accumulate);
    };
    sum(dw, 0, accumulate_w);
    sum(db, 1, accumulate_b);
  });
}

}  // namespace

void Cuda::layernorm_forward(Tensor& y, Tensor& mean, Tensor& rstd, const Tensor& x, const Tensor& w, const Tensor& b,
                             float eps) {
  for_rows_of(x, [&]<class T, class Block>(T*, Block, unsigned grid) {
    launch(layernorm_kernel<T, Block::value>, grid, kThreads, 0, stream_, data<T>(y), data<float>(mean),
           data<float>(rstd), data<T>(x), data<T>(w), data<T>(b), x.rows(), x.cols(), eps);
  });
}

void Cuda::layernorm_backward(Tensor& dx, const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& mean,
                              const Tensor& rstd, bool accumulate) {
  for_rows_of(x, [&]<class T, class Block>(T*, Block, unsigned grid) {
    launch(layernorm_backward_kernel<T, Block::value>, grid, kThreads, 0, stream_, data<T>(dx), data<T>(dy), data<T>(x),
           data<T>(w), data<float>(mean), data<float>(rstd), x.rows(), x.cols(), accumulate);
  });
}

void Cuda::layernorm_backward_params(Tensor* dw, Tensor* db, const Tensor& dy, const Tensor& x, const Tensor& mean,
                                     const Tensor& rstd, bool accumulate_w, bool accumulate_b) {
  params(stream_, dw, db, dy, x, &mean, rstd, accumulate_w, accumulate_b);
}

void Cuda::rmsnorm_forward(Tensor& y, Tensor& rstd, const Tensor& x, const Tensor& w, float eps, float shift) {
  for_rows_of(x, [&]<class T, class Block>(T*, Block, unsigned grid) {
    launch(rmsnorm_kernel<T, Block::value>, grid, kThreads, 0, stream_, data<T>(y), data<float>(rstd), data<T>(x),
           data<T>(w), x.rows(), x.cols(), eps, shift);
  });
}

void Cuda::rmsnorm_backward(Tensor& dx, const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd,
                            float shift, bool accumulate) {
  for_rows_of(x, [&]<class T, class Block>(T*, Block, unsigned grid) {
    launch(rmsnorm_backward_kernel<T, Block::value>, grid, kThreads, 0, stream_, data<T>(dx), data<T>(dy), data<T>(x),
           data<T>(w), data<float>(rstd), x.rows(), x.cols(), shift, accumulate);
  });
}

void Cuda::rmsnorm_backward_params(Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& rstd, bool accumulate) {
  params(stream_, &dw, nullptr, dy, x, nullptr, rstd, accumulate, false);
}

void Cuda::l2_normalize_forward(Tensor& y, Tensor& norm, const Tensor& x, float scale, float eps) {
  for_rows_of(x, [&]<class T, class Block>(T*, Block, unsigned grid) {
    launch(l2_normalize_kernel<T, Block::value>, grid, kThreads, 0, stream_, data<T>(y), data<float>(norm), data<T>(x),
           x.rows(), x.cols(), scale, eps);
  });
}

void Cuda::l2_normalize_backward(Tensor& dx, const Tensor& dy, const Tensor& x, const Tensor& norm, float scale,
                                 float eps, bool accumulate) {
  for_rows_of(x, [&]<class T, class Block>(T*, Block, unsigned grid) {
    launch(l2_normalize_backward_kernel<T, Block::value>, grid, kThreads, 0, stream_, data<T>(dx), data<T>(dy),
           data<T>(x), data<float>(norm), x.rows(), x.cols(), scale, eps, accumulate);
  });
}

}  // namespace t2l::cuda
