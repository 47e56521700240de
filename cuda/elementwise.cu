// Element by element, in f32 and rounded once: memory is all that counts, and it moves 128 bits at a time. Sums over
// rows are made of sums of kRows rows, of those again, and so on: the order depends on the shape alone.
#include <algorithm>

#include "cuda/activation.cuh"
#include "cuda/cuda.h"
#include "cuda/grid.cuh"
#include "tensor/alike.h"

namespace t2l::cuda {
namespace {

template <class T>
__device__ T put(T old, float value, bool accumulate) {
  return T(accumulate ? float(old) + value : value);
}

// ---- y[i] (+)= f(x0[i], x1[i], ..)
template <class F, class Y, int N, class... X>
__device__ void map_vector(Y* y, int64_t left, bool accumulate, F f, const Vec<X, N>&... x) {
  Vec<Y, N> out{};
  if (accumulate) out = Vec<Y, N>::load(y, left);
#pragma unroll
  for (int k = 0; k < N; ++k) out[k] = put(out[k], f(float(x[k])...), accumulate);
  out.store(y, left);
}

template <class F, class Y, class... X>
__global__ void __launch_bounds__(kThreads) map_kernel(Y* y, int64_t n, bool accumulate, F f, const X*... x) {
  constexpr int N = kWidth<Y, X...>;
  grid_stride<N>(n, [&](int64_t i, int64_t left) {
    map_vector<F, Y, N, X...>(y + i, left, accumulate, f, Vec<X, N>::load(x + i, left)...);
  });
}

template <class F, class Y, class... X>
void map(Stream stream, Y* y, int64_t n, bool accumulate, F f, const X*... x) {
  void (*kernel)(Y*, int64_t, bool, F, const X*...) = map_kernel<F, Y, X...>;
  launch(kernel, grid_for(n, kThreads * kWidth<Y, X...>), kThreads, 0, stream, y, n, accumulate, f, x...);
}

struct Add {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Scale {
  float alpha;
  __device__ float operator()(float x) const { return alpha * x; }
};
struct Identity {
  __device__ float operator()(float x) const { return x; }
};
struct Softcap {
  float cap;
  __device__ float operator()(float x) const { return cap * tanhf(x / cap); }
};
struct SoftcapBackward {
  float cap;
  __device__ float operator()(float dy, float y) const { return dy * (1 - (y / cap) * (y / cap)); }
};
struct Product {
  __device__ float operator()(float a, float b) const { return a * b; }
};

// f(Kind<kind>): the kind as a constant, so that a kernel holds one activation
template <Activation kind>
using Kind = std::integral_constant<Activation, kind>;
template <class F>
void with_activation(Activation kind, F&& f) {
  switch (kind) {
    case Activation::None: return f(Kind<Activation::None>{});
    case Activation::SiLU: return f(Kind<Activation::SiLU>{});
    case Activation::GELU: return f(Kind<Activation::GELU>{});
    case Activation::GELUTanh: return f(Kind<Activation::GELUTanh>{});
  }
}
template <Activation kind>
struct Act {
  __device__ float operator()(float x) const { return activate<kind>(x); }
};
template <Activation kind>
struct ActBackward {
  __device__ float operator()(float dy, float x) const { return dy * activate_slope<kind>(x); }
};
template <Activation kind>
struct Gated {
  __device__ float operator()(float gate, float up) const { return activate<kind>(gate) * up; }
};
template <Activation kind>
struct GateBackward {
  __device__ float operator()(float dy, float gate, float up) const { return dy * up * activate_slope<kind>(gate); }
};
template <Activation kind>
struct UpBackward {
  __device__ float operator()(float dy, float gate) const { return dy * activate<kind>(gate); }
};

template <Activation kind, class T>
__global__ void __launch_bounds__(kThreads)
    gated_backward_kernel(T* dgate, bool accumulate_gate, T* dup, bool accumulate_up, const T* dy, const T* gate,
                          const T* up, int64_t n) {
  constexpr int N = kWidth<T>;
  using V = Vec<T, N>;
  grid_stride<N>(n, [&](int64_t i, int64_t left) {
    const V d = V::load(dy + i, left), g = V::load(gate + i, left);
    if (dgate) map_vector(dgate + i, left, accumulate_gate, GateBackward<kind>{}, d, g, V::load(up + i, left));
    if (dup) map_vector(dup + i, left, accumulate_up, UpBackward<kind>{}, d, g);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(T* y, const T* x, int64_t n, float p, float factor, RandomKey key, bool accumulate) {
  constexpr int N = kWidth<T>;
  using V = Vec<T, N>;
  grid_stride<N>(n, [&](int64_t i, int64_t left) {
    const V in = V::load(x + i, left);
    V out{};
    if (accumulate) out = V::load(y + i, left);
#pragma unroll
    for (int k = 0; k < N; k += 4) {
      const Random4 bits = philox(key, uint64_t(i + k) / 4);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool keep = unit_uniform(bits.v[j]) >= p;
        out[k + j] = put(out[k + j], keep ? float(in[k + j]) * factor : 0, accumulate);
      }
    }
    out.store(y + i, left);
  });
}

// ---- rows.  A warp takes 32 N neighbouring columns, a lane N of them; the warps of a block take rows in turn.
constexpr int kWarps = kThreads / 32;

template <class T>
__global__ void __launch_bounds__(kThreads)
    affine_kernel(T* y, const T* x, const T* factor, const T* shift, int64_t rows, int64_t cols, bool accumulate) {
  constexpr int N = kWidth<T>;
  using V = Vec<T, N>;
  const int64_t c = (int64_t(blockIdx.y) * 32 + threadIdx.x % 32) * N, left = cols - c;
  if (left <= 0) return;
  V f{}, s{};
  if (factor) f = V::load(factor + c, left);
  if (shift) s = V::load(shift + c, left);
  for (int64_t r = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; r < rows; r += int64_t(gridDim.x) * kWarps) {
    const V in = V::load(x + r * cols + c, left);
    V out{};
    if (accumulate) out = V::load(y + r * cols + c, left);
#pragma unroll
    for (int k = 0; k < N; ++k)
      out[k] = put(out[k], float(in[k]) * (factor ? float(f[k]) : 1) + float(s[k]), accumulate);
    out.store(y + r * cols + c, left);
  }
}

template <class T>
void affine(Stream stream, Tensor& y, const Tensor& x, const Tensor* factor, const Tensor* shift, bool accumulate) {
  constexpr int kCols = 32 * kWidth<T>;
  if (x.size() == 0) return;
  launch(affine_kernel<T>, dim3(grid_for(x.rows(), kWarps), blocks_for(x.cols(), kCols)), kThreads, 0, stream,
         y.data<T>(), x.data<T>(), factor ? factor->data<T>() : nullptr, shift ? shift->data<T>() : nullptr, x.rows(),
         x.cols(), accumulate);
}

constexpr int kRows = 256;

template <class F, class... X>
__device__ void add_terms(float* sums, F f, const X&... x) {
#pragma unroll
  for (int k = 0; k < kWidth<std::remove_cvref_t<decltype(x[0])>...>; ++k) sums[k] += f(float(x[k])...);
}

// y[i, c] (+)= sum of f(x0[r, c], x1[r, c], ..) over the rows i kRows .. (i + 1) kRows.  y: [row blocks, cols]
template <class F, class Y, class... X>
__global__ void __launch_bounds__(kThreads)
    column_sums_kernel(Y* y, int64_t rows, int64_t cols, bool accumulate, F f, const X*... x) {
  constexpr int N = kWidth<X...>;
  __shared__ float sums[kWarps][32 * N];  // lane l's k-th column at k 32 + l
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t c0 = int64_t(blockIdx.y) * 32 * N, c = c0 + lane * N, begin = int64_t(blockIdx.x) * kRows;
  float mine[N] = {};
  if (c < cols)
    for (int64_t r = begin + warp; r < min(rows, begin + kRows); r += kWarps)
      add_terms(mine, f, Vec<X, N>::load(x + r * cols + c, cols - c)...);
#pragma unroll
  for (int k = 0; k < N; ++k) sums[warp][k * 32 + lane] = mine[k];
  __syncthreads();
  const int j = threadIdx.x;  // column j % 32 N + j / 32 of this block's
  if (j >= 32 * N || c0 + j % 32 * N + j / 32 >= cols) return;
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += sums[w][j];
  Y& out = y[int64_t(blockIdx.x) * cols + c0 + j % 32 * N + j / 32];
  out = put(out, sum, accumulate);
}

template <class F, class Y, class... X>
void column_sums(Stream stream, Y* y, int64_t rows, int64_t cols, bool accumulate, F f, const X*... x) {
  const unsigned down = std::max(blocks_for(rows, kRows), 1u), across = blocks_for(cols, 32 * kWidth<X...>);
  if (down == 1) {
    void (*kernel)(Y*, int64_t, int64_t, bool, F, const X*...) = column_sums_kernel<F, Y, X...>;
    return launch(kernel, dim3(1, across), kThreads, 0, stream, y, rows, cols, accumulate, f, x...);
  }
  const Tensor parts = Tensor::empty({down, cols}, DType::F32, Device::CUDA);
  void (*kernel)(float*, int64_t, int64_t, bool, F, const X*...) = column_sums_kernel<F, float, X...>;
  launch(kernel, dim3(down, across), kThreads, 0, stream, parts.data<float>(), rows, cols, false, f, x...);
  column_sums(stream, y, down, cols, accumulate, Identity{}, static_cast<const float*>(parts.data<float>()));
}

}  // namespace

void Cuda::add(Tensor& y, const Tensor& a, const Tensor& b) {
  check_alike("add", y, a, b);
  with_type(y.dtype(), [&]<class T>(T*) {
    map<Add, T, T, T>(stream_, y.data<T>(), y.size(), false, {}, a.data<T>(), b.data<T>());
  });
}

void Cuda::scale(Tensor& y, const Tensor& x, float alpha, bool accumulate) {
  check_alike("scale", y, x);
  with_type(y.dtype(),
            [&]<class T>(T*) { map<Scale, T, T>(stream_, y.data<T>(), y.size(), accumulate, {alpha}, x.data<T>()); });
}

void Cuda::activation_forward(Tensor& y, const Tensor& x, Activation kind) {
  check_alike("activation_forward", y, x);
  with_type(y.dtype(), [&]<class T>(T*) {
    with_activation(kind, [&]<Activation k>(Kind<k>) {
      map<Act<k>, T, T>(stream_, y.data<T>(), y.size(), false, {}, x.data<T>());
    });
  });
}

void Cuda::activation_backward(Tensor& dx, const Tensor& dy, const Tensor& x, Activation kind, bool accumulate) {
  check_alike("activation_backward", dx, dy, x);
  with_type(dx.dtype(), [&]<class T>(T*) {
    with_activation(kind, [&]<Activation k>(Kind<k>) {
      map<ActBackward<k>, T, T, T>(stream_, dx.data<T>(), dx.size(), accumulate, {}, dy.data<T>(), x.data<T>());
    });
  });
}

void Cuda::gated_forward(Tensor& y, const Tensor& gate, const Tensor& up, Activation kind) {
  check_alike("gated_forward", y, gate, up);
  with_type(y.dtype(), [&]<class T>(T*) {
    with_activation(kind, [&]<Activation k>(Kind<k>) {
      map<Gated<k>, T, T, T>(stream_, y.data<T>(), y.size(), false, {}, gate.data<T>(), up.data<T>());
    });
  });
}

void Cuda::gated_backward(Tensor* dgate, bool accumulate_gate, Tensor* dup, bool accumulate_up, const Tensor& dy,
                          const Tensor& gate, const Tensor& up, Activation kind) {
  check_alike("gated_backward", dy, gate, up, dgate ? *dgate : dy, dup ? *dup : dy);
  with_type(dy.dtype(), [&]<class T>(T*) {
    with_activation(kind, [&]<Activation k>(Kind<k>) {
      launch(gated_backward_kernel<k, T>, grid_for(dy.size(), kThreads * kWidth<T>), kThreads, 0, stream_,
             dgate ? dgate->data<T>() : nullptr, accumulate_gate, dup ? dup->data<T>() : nullptr, accumulate_up,
             dy.data<T>(), gate.data<T>(), up.data<T>(), dy.size());
    });
  });
}

void Cuda::softcap_forward(Tensor& y, const Tensor& x, float cap) {
  check_alike("softcap_forward", y, x);
  with_type(y.dtype(),
            [&]<class T>(T*) { map<Softcap, T, T>(stream_, y.data<T>(), y.size(), false, {cap}, x.data<T>()); });
}

void Cuda::softcap_backward(Tensor& dx, const Tensor& dy, const Tensor& y, float cap, bool accumulate) {
  check_alike("softcap_backward", dx, dy, y);
  with_type(dx.dtype(), [&]<class T>(T*) {
    map<SoftcapBackward, T, T, T>(stream_, dx.data<T>(), dx.size(), accumulate, {cap}, dy.data<T>(), y.data<T>());
  });
}

void Cuda::dropout(Tensor& y, const Tensor& x, float p, RandomKey key, bool accumulate) {
  check_alike("dropout", y, x);
  with_type(y.dtype(), [&]<class T>(T*) {
    launch(dropout_kernel<T>, grid_for(y.size(), kThreads * kWidth<T>), kThreads, 0, stream_, y.data<T>(), x.data<T>(),
           y.size(), p, 1 / (1 - p), key, accumulate);
  });
}

void Cuda::cast(Tensor& y, const Tensor& x, bool accumulate) {
  T2L_CHECK(y.size() == x.size(), "cast: {} to {}", x.shape().str(), y.shape().str());
  with_type(y.dtype(), [&]<class Y>(Y*) {
    with_type(x.dtype(),
              [&]<class X>(X*) { map<Identity, Y, X>(stream_, y.data<Y>(), y.size(), accumulate, {}, x.data<X>()); });
  });
}

void Cuda::affine_forward(Tensor& y, const Tensor& x, const Tensor* factor, const Tensor* shift) {
  check_alike("affine_forward", y, x);
  check_columns("affine_forward", x, factor);
  check_columns("affine_forward", x, shift);
  with_type(y.dtype(), [&]<class T>(T*) { affine<T>(stream_, y, x, factor, shift, false); });
}

void Cuda::affine_backward(Tensor& dx, const Tensor& dy, const Tensor* factor, bool accumulate) {
  check_alike("affine_backward", dx, dy);
  check_columns("affine_backward", dx, factor);
  with_type(dx.dtype(), [&]<class T>(T*) { affine<T>(stream_, dx, dy, factor, nullptr, accumulate); });
}

void Cuda::affine_backward_factor(Tensor& dfactor, const Tensor& dy, const Tensor& x, bool accumulate) {
  check_alike("affine_backward_factor", dy, x);
  check_columns("affine_backward_factor", x, &dfactor);
  with_type(x.dtype(), [&]<class T>(T*) {
    column_sums<Product, T, T, T>(stream_, dfactor.data<T>(), x.rows(), x.cols(), accumulate, {}, dy.data<T>(),
                                  x.data<T>());
  });
}

void Cuda::sum_rows(Tensor& y, const Tensor& x, bool accumulate) {
  check_columns("sum_rows", x, &y);
  with_type(x.dtype(), [&]<class T>(T*) {
    column_sums<Identity, T, T>(stream_, y.data<T>(), x.rows(), x.cols(), accumulate, {}, x.data<T>());
  });
}

}  // namespace t2l::cuda
