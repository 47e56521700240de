// Per-sample products y[t] = alpha x[t] op(w[s]): LoRA's shrink (few columns, a long sum), its expand (the reverse) and
// their gradients. A warp computes kRows rows of one sample at a time by some columns, over all of k or, in a shrink,
// over a piece of it; pieces are summed afterwards. An element's sum depends on n and k alone, not on how tokens are
// batched.
#include "cuda/cuda.h"
#include "cuda/grid.cuh"
#include "cuda/reduce.cuh"
#include "tensor/alike.h"

namespace t2l::cuda {
namespace {

constexpr int kWarps = 4;         // of a block; they share rows of x
constexpr int kColumns = 4;       // of a thread where w is [n, k]
constexpr int64_t kPiece = 1024;  // of k

// Where sums go: into y, or one piece of them into parts: [pieces, tokens, n].
template <class T>
struct Out {
  T* y;
  float* parts;
  int64_t tokens, n;
  float alpha;
  bool accumulate;

  template <int N>
  __device__ void put(int64_t piece, int64_t t, int64_t j, const float (&sum)[N]) const {
    const int64_t left = n - j;
    if (parts) {
      Vec<float, N> out;
      T2L_UNROLL
      for (int i = 0; i < N; ++i) out[i] = sum[i];
      return out.store(parts + (piece * tokens + t) * n + j, left);
    }
    Vec<T, N> out{};
    if (accumulate) out = Vec<T, N>::load(y + t * n + j, left);
    T2L_UNROLL
    for (int i = 0; i < N; ++i) out[i] = T((accumulate ? float(out[i]) : 0.0f) + alpha * sum[i]);
    out.store(y + t * n + j, left);
  }
};

template <class T>
struct Problem {
  Out<T> out;
  const T *x, *w;
  const int32_t* offsets;
  int64_t samples, tokens, n, k, piece;
  int lanes;               // that share a column group and its sum over k, or (w: [k, n]) the columns side by side
  int64_t groups, pieces;  // of columns, a warp each; of k
};

// f(sample, begin, end) for what each sample has of the rows first .. last
template <class F>
__device__ void for_segments(const int32_t* offsets, int64_t samples, int64_t first, int64_t last, F f) {
  int64_t s = 0, end = samples;  // becomes the first sample that ends behind `first`
  while (s < end) {
    const int64_t middle = (s + end) / 2;
    if (offsets[middle + 1] <= first)
      s = middle + 1;
    else
      end = middle;
  }
  for (; s < samples && first < last; ++s) {
    const int64_t stop = min(last, int64_t(offsets[s + 1]));
    if (first < stop) f(s, first, stop);
    first = max(first, stop);
  }
}

// w: [samples, n, k].  kLanes lanes, 32 or 1, take the vectors of k in turn; each has kColumns columns.
template <class T, int N, int kRows, int kLanes>
__global__ void __launch_bounds__(kWarps * 32) dot_kernel(Problem<T> p) {
  const int lane = threadIdx.x % 32;
  const int64_t unit = int64_t(blockIdx.y) * kWarps + threadIdx.x / 32, piece = unit / p.groups;
  if (piece >= p.pieces) return;
  const int64_t j = (unit % p.groups * (32 / kLanes) + lane / kLanes) * kColumns;
  const int64_t begin_k = piece * p.piece + lane % kLanes * N, end_k = min(p.k, (piece + 1) * p.piece);
  const int64_t first = int64_t(blockIdx.x) * kRows;
  for_segments(p.offsets, p.samples, first, min(first + kRows, p.tokens), [&](int64_t s, int64_t begin, int64_t end) {
    const T* const w = p.w + (s * p.n + j) * p.k;
    const T* const x = p.x + begin * p.k;
    const int rows = int(end - begin);
    float sum[kRows][kColumns] = {};
    for (int64_t i = begin_k; i < end_k; i += kLanes * N) {
      Vec<T, N> v[kColumns];
      T2L_UNROLL
      for (int c = 0; c < kColumns; ++c) v[c] = j + c < p.n ? Vec<T, N>::load(w + c * p.k + i) : Vec<T, N>{};
      T2L_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (r >= rows) break;
        const auto u = Vec<T, N>::load(x + r * p.k + i);
        T2L_UNROLL
        for (int c = 0; c < kColumns; ++c) T2L_UNROLL
        for (int e = 0; e < N; ++e) sum[r][c] += float(u[e]) * float(v[c][e]);
      }
    }
    T2L_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      if (kLanes == 32) {
        T2L_UNROLL
        for (int c = 0; c < kColumns; ++c) sum[r][c] = warp_sum(sum[r][c]);
      }
      if (lane % kLanes == 0 && j < p.n) p.out.put(piece, begin + r, j, sum[r]);
    }
  });
}

// w: [samples, k, n].  p.lanes lanes, a power of two, stand side by side along n, a vector each; the others take other
// rows of w.
template <class T, int N, int kRows>
__global__ void __launch_bounds__(kWarps * 32) axpy_kernel(Problem<T> p) {
  const int lane = threadIdx.x % 32;
  const int64_t unit = int64_t(blockIdx.y) * kWarps + threadIdx.x / 32, piece = unit / p.groups;
  if (piece >= p.pieces) return;
  const int64_t j = (unit % p.groups * p.lanes + lane % p.lanes) * N;
  const int64_t begin_k = piece * p.piece + lane / p.lanes, end_k = min(p.k, (piece + 1) * p.piece);
  const int64_t first = int64_t(blockIdx.x) * kRows;
  for_segments(p.offsets, p.samples, first, min(first + kRows, p.tokens), [&](int64_t s, int64_t begin, int64_t end) {
    const T* const w = p.w + s * p.k * p.n + j;
    const T* const x = p.x + begin * p.k;
    const int rows = int(end - begin);
    float sum[kRows][N] = {};
    if (j < p.n)
      for (int64_t i = begin_k; i < end_k; i += 32 / p.lanes) {
        const auto v = Vec<T, N>::load(w + i * p.n);
        T2L_UNROLL
        for (int r = 0; r < kRows; ++r) {
          if (r >= rows) break;
          const float u = float(x[r * p.k + i]);
          T2L_UNROLL
          for (int e = 0; e < N; ++e) sum[r][e] += u * float(v[e]);
        }
      }
    T2L_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      for (int other = p.lanes; other < 32; other *= 2) T2L_UNROLL
      for (int e = 0; e < N; ++e) sum[r][e] += __shfl_xor_sync(0xffffffffu, sum[r][e], other);
      if (lane < p.lanes && j < p.n) p.out.put(piece, begin + r, j, sum[r]);
    }
  });
}

// y (+)= alpha times the sum of the pieces
template <class T>
__global__ void __launch_bounds__(kThreads) sum_pieces_kernel(Out<T> out, int64_t pieces) {
  const int64_t size = out.tokens * out.n;
  grid_stride<1>(size, [&](int64_t i, int64_t) {
    float sum = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) sum += out.parts[piece * size + i];
    out.y[i] = T((out.accumulate ? float(out.y[i]) : 0.0f) + out.alpha * sum);
  });
}

// dw: [samples, n, k].  Block (sample, tile of n, tile of k): p lanes along k, a vector each, the others along n, four
// rows each; the warps take tokens in turn, and one of the four rows each in the end.
template <class T, class D, int N>
__global__ void __launch_bounds__(kWarps * 32)
    weight_kernel(D* dw, const T* dy, const T* x, const int32_t* offsets, int64_t n, int64_t k, int lanes, float alpha,
                  bool accumulate) {
  static_assert(kWarps == kColumns);
  __shared__ float part[kWarps][kColumns][N][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t s = blockIdx.x;
  const int64_t i = (int64_t(blockIdx.y) * (32 / lanes) + lane / lanes) * kColumns;
  const int64_t j = (int64_t(blockIdx.z) * lanes + lane % lanes) * N;
  float sum[kColumns][N] = {};
  if (i < n && j < k)
    for (int64_t t = offsets[s] + warp; t < offsets[s + 1]; t += kWarps) {
      const auto v = Vec<T, N>::load(x + t * k + j);
      const auto g = Vec<T, kColumns>::load(dy + t * n + i, n - i);
      T2L_UNROLL
      for (int c = 0; c < kColumns; ++c) T2L_UNROLL
      for (int e = 0; e < N; ++e) sum[c][e] += float(g[c]) * float(v[e]);
    }
  T2L_UNROLL
  for (int c = 0; c < kColumns; ++c) T2L_UNROLL
  for (int e = 0; e < N; ++e) part[warp][c][e][lane] = sum[c][e];
  __syncthreads();
  if (i + warp < n && j < k) {
    D* const to = dw + (s * n + i + warp) * k + j;
    Vec<D, N> out{};
    if (accumulate) out = Vec<D, N>::load(to, N);
    T2L_UNROLL
    for (int e = 0; e < N; ++e) {
      float total = 0;
      T2L_UNROLL
      for (int from = 0; from < kWarps; ++from) total += part[from][warp][e][lane];
      out[e] = D((accumulate ? float(out[e]) : 0.0f) + alpha * total);
    }
    out.store(to, N);
  }
}

// The least power of two that is at least n, at most 32.
int lanes_for(int64_t n) {
  int lanes = 1;
  while (lanes < 32 && lanes < n) lanes *= 2;
  return lanes;
}

// Calls f(constant vector width): 128 bits, or one element where rows of that length are not aligned.
template <class T, class F>
void with_width(int64_t row, std::initializer_list<const Tensor*> tensors, F&& f) {
  bool aligned = row % kWidth<T> == 0;
  for (const Tensor* t : tensors) aligned = aligned && reinterpret_cast<uintptr_t>(t->raw()) % 16 == 0;
  if (aligned)
    f(std::integral_constant<int, kWidth<T>>{});
  else
    f(std::integral_constant<int, 1>{});
}

}  // namespace

void Cuda::segment_matmul(Tensor& y, const Tensor& x, const Tensor& w, const Tensor& offsets, bool transpose_w,
                          float alpha, bool accumulate) {
  check_segments("segment_matmul", y, x, w, offsets, transpose_w);
  T2L_CHECK(w.dtype() == x.dtype(), "segment_matmul: {} by {}", name_of(x.dtype()), name_of(w.dtype()));
  const int64_t tokens = x.dim(0), n = y.cols(), k = x.cols();
  if (y.size() == 0) return;
  const bool shrink = k > n;
  const int64_t pieces = shrink ? (k + kPiece - 1) / kPiece : 1;
  const bool few = tokens <= 2 * w.dim(0);  // rows a sample, as in decoding
  constexpr int kManyRows = 8;
  Tensor parts = pieces > 1 ? Tensor::empty({pieces, tokens, n}, DType::F32, Device::CUDA) : Tensor{};
  with_type(y.dtype(), [&]<class T>(T*) {
    const auto data = [](const Tensor& t) { return static_cast<T*>(t.raw()); };
    Problem<T> p{.out = {data(y), parts.data<float>(), tokens, n, alpha, accumulate},
                 .x = data(x),
                 .w = data(w),
                 .offsets = offsets.data<int32_t>(),
                 .samples = w.dim(0),
                 .tokens = tokens,
                 .n = n,
                 .k = k,
                 .piece = pieces > 1 ? kPiece : k,
                 .lanes = 0,
                 .groups = 0,
                 .pieces = pieces};
    const auto run = [&](void (*kernel)(Problem<T>), int rows, int64_t columns) {
      p.groups = (n + columns - 1) / columns;
      launch(kernel, dim3(blocks_for(tokens, rows), blocks_for(p.groups * pieces, kWarps)), kWarps * 32, 0, stream_, p);
    };
    with_width<T>(transpose_w ? k : n, {&x, &w, &y}, [&]<int N>(std::integral_constant<int, N>) {
      if (!transpose_w) {
        p.lanes = lanes_for((n + N - 1) / N);
        few ? run(axpy_kernel<T, N, 1>, 1, p.lanes * N) : run(axpy_kernel<T, N, kManyRows>, kManyRows, p.lanes * N);
      } else if (shrink) {
        few ? run(dot_kernel<T, N, 1, 32>, 1, kColumns) : run(dot_kernel<T, N, kManyRows, 32>, kManyRows, kColumns);
      } else {
        few ? run(dot_kernel<T, N, 1, 1>, 1, 32 * kColumns)
            : run(dot_kernel<T, N, kManyRows, 1>, kManyRows, 32 * kColumns);
      }
    });
    if (pieces > 1) launch(sum_pieces_kernel<T>, grid_for(y.size(), kThreads), kThreads, 0, stream_, p.out, pieces);
  });
}

void Cuda::segment_matmul_weight(Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& offsets, float alpha,
                                 bool accumulate) {
  check_segments("segment_matmul_weight", dy, x, dw, offsets, true);
  const int64_t n = dy.cols(), k = x.cols();
  if (dw.size() == 0) return;
  with_type(x.dtype(), [&]<class T>(T*) {
    with_type(dw.dtype(), [&]<class D>(D*) {
      with_width<T>(k, {&x, &dw}, [&]<int N>(std::integral_constant<int, N>) {
        const int lanes = lanes_for((k + N - 1) / N);
        const dim3 grid(blocks_for(dw.dim(0), 1), blocks_for(n, 32 / lanes * kColumns), blocks_for(k, lanes * N));
        launch(weight_kernel<T, D, N>, grid, kWarps * 32, 0, stream_, static_cast<D*>(dw.raw()),
               static_cast<T*>(dy.raw()), static_cast<T*>(x.raw()), offsets.data<int32_t>(), n, k, lanes, alpha,
               accumulate);
      });
    });
  });
}

}  // namespace t2l::cuda
