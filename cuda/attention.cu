// Flash attention (Dao, "FlashAttention-2", 2023): tiles of queries x keys in registers, the softmax online, only
// LSE = log(sum exp(score)) of each query saved. Backward makes P = exp(S - LSE) again, each of dq, dk, dv in a kernel
// of its own, so that nothing is added atomically: for a tile of keys the queries that see it are one range, found by
// binary search. The mathematics stands in autograd/attention.cpp.
// bf16 runs on tensor cores; f32 runs the same kernels with fused multiply-adds in place of mma.
#include "cuda/cuda.h"
#include "cuda/ptx.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"

namespace t2l::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;

// Tiles: kRows of what a block owns (a warp has 16 of them), against kCols at a time of the others. D is the head's
// dimension rounded up. Sized so that a backward block needs less than the 163 KB of shared memory of sm_80.
template <class T, int D>
struct Config {
  static constexpr int kRows = sizeof(T) * D > 512 ? 32 : 64;
  static constexpr int kCols = sizeof(T) * D > 256 ? 32 : 64;
  static constexpr int kThreads = kRows * 2;
  // Distances of rows in shared memory: 16 bytes more, so that 8 rows lie in different banks.
  static constexpr int kPad = 16 / int(sizeof(T)), kStride = D + kPad, kStrideX = kCols + kPad;
};

// ---- products of a warp: c [16, 8 Tiles] += a [16, depth] b, a: rows of lda, in shared memory; only tiles that begin
// before column `cols` are computed. FragC as in ptx.cuh.
struct Lane {
  int index, g, t;
  __device__ Lane() : index(int(threadIdx.x) % 32), g(index / 4), t(index % 4) {}
  __device__ int row(int e) const { return g + e / 2 * 8; }
  __device__ int column(int tile, int e) const { return tile * 8 + 2 * t + e % 2; }
};

// b: [8 Tiles, depth], rows of ldb
template <int Tiles>
__device__ void multiply_rows(FragC (&c)[Tiles], const float* a, int lda, const float* b, int ldb, int depth,
                              int cols) {
  const Lane lane;
  for (int k = 0; k < depth; k += 4) {
    const auto a0 = Vec<float>::load(a + lane.g * lda + k), a1 = Vec<float>::load(a + (lane.g + 8) * lda + k);
    T2L_UNROLL
    for (int n = 0; n < Tiles; ++n)
      if (n * 8 < cols) {
        const float* row = b + lane.column(n, 0) * ldb + k;
        const auto b0 = Vec<float>::load(row), b1 = Vec<float>::load(row + ldb);
        T2L_UNROLL
        for (int i = 0; i < 4; ++i) {
          c[n].r[0] += a0[i] * b0[i];
          c[n].r[1] += a0[i] * b1[i];
          c[n].r[2] += a1[i] * b0[i];
          c[n].r[3] += a1[i] * b1[i];
        }
      }
  }
}

// b: [depth, 8 Tiles], rows of ldb
template <int Tiles>
__device__ void multiply_columns(FragC (&c)[Tiles], const float* a, int lda, const float* b, int ldb, int depth,
                                 int cols) {
  const Lane lane;
  for (int k = 0; k < depth; ++k) {
    const float a0 = a[lane.g * lda + k], a1 = a[(lane.g + 8) * lda + k];
    T2L_UNROLL
    for (int n = 0; n < Tiles; ++n)
      if (n * 8 < cols) {
        const auto v = Vec<float, 2>::load(b + k * ldb + lane.column(n, 0));
        c[n].r[0] += a0 * v[0];
        c[n].r[1] += a0 * v[1];
        c[n].r[2] += a1 * v[0];
        c[n].r[3] += a1 * v[1];
      }
  }
}

// Lane i gives the address of row i % 8 of the 8x8 matrix i / 8; matrices in the order that FragA and a pair of FragB
// have them in their registers.
__device__ inline FragA load_a(const bf16* a, int lda, int i) {
  FragA f;
  ldmatrix_x4(f.r, a + i % 16 * lda + i / 16 * 8);
  return f;
}
template <int Tiles>
__device__ void multiply_rows(FragC (&c)[Tiles], const bf16* a, int lda, const bf16* b, int ldb, int depth, int cols) {
  const int i = Lane().index;
  for (int k = 0; k < depth; k += 16) {
    const FragA fa = load_a(a + k, lda, i);
    T2L_UNROLL
    for (int n = 0; n < Tiles; n += 2)
      if (n * 8 < cols) {
        uint32_t r[4];
        ldmatrix_x4(r, b + (n * 8 + i / 16 * 8 + i % 8) * ldb + k + i / 8 % 2 * 8);
        mma_16x8x16(c[n], fa, {{r[0], r[1]}});
        mma_16x8x16(c[n + 1], fa, {{r[2], r[3]}});
      }
  }
}
template <int Tiles>
__device__ void multiply_columns(FragC (&c)[Tiles], const bf16* a, int lda, const bf16* b, int ldb, int depth,
                                 int cols) {
  const int i = Lane().index;
  for (int k = 0; k < depth; k += 16) {
    const FragA fa = load_a(a + k, lda, i);
    T2L_UNROLL
    for (int n = 0; n < Tiles; n += 2)
      if (n * 8 < cols) {
        uint32_t r[4];
        ldmatrix_x4_trans(r, b + (k + i % 16) * ldb + n * 8 + i / 16 * 8);
        mma_16x8x16(c[n], fa, {{r[0], r[1]}});
        mma_16x8x16(c[n + 1], fa, {{r[2], r[3]}});
      }
  }
}

// A tile of results becomes a left factor in shared memory, where the whole warp sees it after __syncwarp.
template <class T, int Tiles>
__device__ void store_shared(T* to, int ld, const FragC (&c)[Tiles]) {
  const Lane lane;
  T2L_UNROLL
  for (int n = 0; n < Tiles; ++n) T2L_UNROLL
  for (int e = 0; e < 4; e += 2) {
    const Vec<T, 2> pair{{T(c[n].r[e]), T(c[n].r[e + 1])}};
    pair.store(to + lane.row(e) * ld + lane.column(n, e));
  }
}

// to[row * ld + column] = c factor[row / 8], for the first `rows` rows of the warp's 16 and `dim` columns
template <class T, int Tiles>
__device__ void store_global(T* to, int64_t ld, const FragC (&c)[Tiles], int64_t rows, int dim,
                             const float (&factor)[2]) {
  const Lane lane;
  T2L_UNROLL
  for (int n = 0; n < Tiles; ++n) T2L_UNROLL
  for (int e = 0; e < 4; e += 2)
    if (lane.row(e) < rows && lane.column(n, e) < dim) {
      const float f = factor[e / 2];
      const Vec<T, 2> pair{{T(c[n].r[e] * f), T(c[n].r[e + 1] * f)}};
      pair.store(to + lane.row(e) * ld + lane.column(n, e), 2);
    }
}

// Rows [Rows, D] of a head to shared memory; zeros from row `rows` and column `dim` on.
template <int Rows, class C, class T>
__device__ void load_tile(T* to, const T* from, int64_t ld, int64_t rows, int dim) {
  constexpr int N = Vec<T>::size, D = C::kStride - C::kPad;
  for (int i = threadIdx.x; i < Rows * (D / N); i += C::kThreads) {
    const int row = i / (D / N), column = i % (D / N) * N;
    Vec<T>::load(from + row * ld + column, row < rows ? dim - column : 0).store(to + row * C::kStride + column);
  }
}

// ---- what a block works on
struct Spans {
  const int32_t *q_offsets, *k_begin, *k_len, *first, *last;
  int64_t samples;
  float scale, softcap;

  explicit Spans(const AttentionSpans& s)
      : q_offsets(s.q_offsets.data<int32_t>()),
        k_begin(s.k_begin.data<int32_t>()),
        k_len(s.k_len.data<int32_t>()),
        first(s.first.data<int32_t>()),
        last(s.last.data<int32_t>()),
        samples(s.k_begin.size()),
        scale(s.scale),
        softcap(s.softcap) {}
};
struct Heads {
  int heads, kv_heads, dim;
  __device__ int64_t q_ld() const { return int64_t(heads) * dim; }
  __device__ int64_t kv_ld() const { return int64_t(kv_heads) * dim; }
};

struct Piece {
  int64_t sample, begin, end;  // rows of q, or of k
};

// Tile number `tile` of all samples' queries (or keys), each cut into tiles of `rows` on its own; empty past the last.
template <bool kOfKeys>
__device__ Piece find_tile(const Spans& spans, int64_t tile, int rows) {
  const int lane = Lane().index;
  int before = 0;
  for (int64_t s0 = 0; s0 < spans.samples; s0 += 32) {
    const int64_t s = s0 + lane;
    int length = 0;
    if (s < spans.samples) length = kOfKeys ? spans.k_len[s] : spans.q_offsets[s + 1] - spans.q_offsets[s];
    int tiles = (length + rows - 1) / rows;  // becomes the number up to and with sample s
    T2L_UNROLL
    for (int i = 1; i < 32; i *= 2) {
      const int other = __shfl_up_sync(kAll, tiles, unsigned(i));
      if (lane >= i) tiles += other;
    }
    const unsigned beyond = __ballot_sync(kAll, before + tiles > tile);
    if (beyond) {
      const int owner = __ffs(int(beyond)) - 1, own = (length + rows - 1) / rows;
      const int64_t in_sample = tile - (before + __shfl_sync(kAll, tiles - own, owner));
      const int64_t sample = s0 + owner, start = kOfKeys ? spans.k_begin[sample] : spans.q_offsets[sample];
      const int64_t begin = start + in_sample * rows;
      return {sample, begin, min(begin + rows, start + __shfl_sync(kAll, length, owner))};
    }
    before += __shfl_sync(kAll, tiles, 31);
  }
  return {0, 0, 0};
}

// The first i in begin .. end with x[i] >= value, x not decreasing
__device__ inline int64_t lower_bound(const int32_t* x, int64_t begin, int64_t end, int64_t value) {
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if (x[middle] < value)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

__device__ inline float soften(float score, float softcap) {
  return softcap != 0 ? softcap * tanhf(score / softcap) : score;
}

__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAll, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAll, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(kAll, x, 1);
  return x + __shfl_xor_sync(kAll, x, 2);
}

// ---- forward.  Block (tile of queries, head).
template <class T, int D>
constexpr size_t kForwardShared = sizeof(T) * ((Config<T, D>::kRows + 2 * Config<T, D>::kCols) * Config<T, D>::kStride +
                                               Config<T, D>::kRows * Config<T, D>::kStrideX);

template <class T, int D>
__global__ void __launch_bounds__(Config<T, D>::kThreads, 1)
    forward_kernel(T* o, float* lse, const T* q, const T* k, const T* v, Spans spans, Heads n) {
  using C = Config<T, D>;
  T* const sq = dynamic_shared<T>();         // [kRows, D]
  T* const sk = sq + C::kRows * C::kStride;  // [kCols, D]
  T* const sv = sk + C::kCols * C::kStride;  // [kCols, D]
  T* const sp = sv + C::kCols * C::kStride;  // [kRows, kCols], each warp its own 16 rows
  const Piece piece = find_tile<false>(spans, blockIdx.x, C::kRows);
  if (piece.begin < piece.end) {
    const Lane lane;
    const int head = blockIdx.y, warp_row = int(threadIdx.x) / 32 * 16, depth = (n.dim + 15) / 16 * 16;
    const int64_t q_ld = n.q_ld(), kv_ld = n.kv_ld(), kv_at = head / (n.heads / n.kv_heads) * int64_t(n.dim);
    const int64_t warp_begin = piece.begin + warp_row;
    const int64_t keys_begin = spans.first[piece.begin], keys_end = int64_t(spans.last[piece.end - 1]) + 1;
    load_tile<C::kRows, C>(sq, q + piece.begin * q_ld + head * n.dim, q_ld, piece.end - piece.begin, n.dim);

    int64_t first[2], last[2];  // of this lane's two rows
    T2L_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int64_t query = warp_begin + lane.row(2 * h);
      first[h] = query < piece.end ? spans.first[query] : 1;
      last[h] = query < piece.end ? spans.last[query] : 0;
    }
    FragC sums[D / 8] = {};
    float max[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    for (int64_t key = keys_begin; key < keys_end; key += C::kCols) {
      __syncthreads();  // the tile before has been read
      load_tile<C::kCols, C>(sk, k + key * kv_ld + kv_at, kv_ld, keys_end - key, n.dim);
      load_tile<C::kCols, C>(sv, v + key * kv_ld + kv_at, kv_ld, keys_end - key, n.dim);
      __syncthreads();
      FragC s[C::kCols / 8] = {};
      multiply_rows(s, sq + warp_row * C::kStride, C::kStride, sk, C::kStride, depth, C::kCols);
      T2L_UNROLL
      for (int h = 0; h < 2; ++h) {
        float highest = max[h];
        T2L_UNROLL
        for (int i = 0; i < C::kCols / 8; ++i) T2L_UNROLL
        for (int e = 2 * h; e < 2 * h + 2; ++e) {
          const int64_t at = key + lane.column(i, e);
          const bool seen = at >= first[h] && at <= last[h];
          s[i].r[e] = seen ? soften(s[i].r[e] * spans.scale, spans.softcap) : -INFINITY;
          highest = fmaxf(highest, s[i].r[e]);
        }
        highest = quad_max(highest);
        const bool none = highest == -INFINITY;  // no key seen so far
        const float factor = none ? 1 : expf(max[h] - highest);
        float tile_sum = 0;
        T2L_UNROLL
        for (int i = 0; i < C::kCols / 8; ++i) T2L_UNROLL
        for (int e = 2 * h; e < 2 * h + 2; ++e) {
          s[i].r[e] = none ? 0 : expf(s[i].r[e] - highest);
          tile_sum += s[i].r[e];
        }
        sum[h] = sum[h] * factor + tile_sum;
        max[h] = highest;
        T2L_UNROLL
        for (int i = 0; i < D / 8; ++i) sums[i].r[2 * h] *= factor, sums[i].r[2 * h + 1] *= factor;
      }
      store_shared(sp + warp_row * C::kStrideX, C::kStrideX, s);
      __syncwarp();
      multiply_columns(sums, sp + warp_row * C::kStrideX, C::kStrideX, sv, C::kStride, C::kCols, n.dim);
    }
    float factor[2];
    T2L_UNROLL
    for (int h = 0; h < 2; ++h) {
      sum[h] = quad_sum(sum[h]);
      factor[h] = sum[h] > 0 ? 1 / sum[h] : 0;
      const int64_t query = warp_begin + lane.row(2 * h);
      if (lane.t == 0 && query < piece.end)
        lse[query * n.heads + head] = sum[h] > 0 ? max[h] + logf(sum[h]) : -INFINITY;
    }
    store_global(o + warp_begin * q_ld + head * n.dim, q_ld, sums, piece.end - warp_begin, n.dim, factor);
  }
}

// ---- backward
// d: [queries, heads] = the sum over a head of do o.  A warp for each.
template <class T>
__global__ void __launch_bounds__(128) dot_kernel(float* d, const T* dout, const T* o, int64_t rows, int dim) {
  constexpr int N = Vec<T>::size;
  const int64_t row = int64_t(blockIdx.x) * 4 + threadIdx.x / 32;
  if (row < rows) {
    float sum = 0;
    for (int j = Lane().index * N; j < dim; j += 32 * N) {
      const auto a = Vec<T>::load(dout + row * dim + j, dim - j), b = Vec<T>::load(o + row * dim + j, dim - j);
      T2L_UNROLL
      for (int k = 0; k < N; ++k) sum += float(a[k]) * float(b[k]);
    }
    sum = warp_sum(sum);
    if (Lane().index == 0) d[row] = sum;
  }
}

enum class Gradient { Q, K, V };

// Block (tile of rows, head of q or of k): rows are queries for dq, keys for dk and dv; columns are the others.
//   dq += dS K,   dk += dS^T Q,   dv += P^T dO
template <class T, int D>
constexpr size_t kBackwardShared = sizeof(T) *
                                   (2 * (Config<T, D>::kRows + Config<T, D>::kCols) * Config<T, D>::kStride +
                                    Config<T, D>::kRows * Config<T, D>::kStrideX);

template <class T, int D, Gradient kOf>
__global__ void __launch_bounds__(Config<T, D>::kThreads, 1)
    backward_kernel(T* grad, const T* dout, const float* lse, const float* d, const T* q, const T* k, const T* v,
                    Spans spans, Heads n) {
  using C = Config<T, D>;
  constexpr bool kKeyRows = kOf != Gradient::Q;
  constexpr int kQueries = kKeyRows ? C::kCols : C::kRows;
  __shared__ float s_lse[kQueries], s_d[kQueries];
  __shared__ int32_t s_first[kQueries], s_last[kQueries];
  T* const row_qk = dynamic_shared<T>();             // [kRows, D] of q, or of k
  T* const row_dv = row_qk + C::kRows * C::kStride;  // [kRows, D] of do, or of v
  T* const col_qk = row_dv + C::kRows * C::kStride;  // [kCols, D] of k, or of q
  T* const col_dv = col_qk + C::kCols * C::kStride;  // [kCols, D] of v, or of do
  T* const factor = col_dv + C::kCols * C::kStride;  // [kRows, kCols] of dS, dS^T or P^T, each warp its own 16 rows
  const Piece piece = find_tile<kKeyRows>(spans, blockIdx.x, C::kRows);
  if (piece.begin < piece.end) {
    const Lane lane;
    const int warp_row = int(threadIdx.x) / 32 * 16, depth = (n.dim + 15) / 16 * 16, group = n.heads / n.kv_heads;
    const int64_t q_ld = n.q_ld(), kv_ld = n.kv_ld(), row_ld = kKeyRows ? kv_ld : q_ld;
    const int64_t rows = piece.end - piece.begin, row_at = piece.begin * row_ld + int64_t(blockIdx.y) * n.dim;
    int64_t begin, end;  // of the columns that see the rows, or are seen
    if (kKeyRows) {
      const int64_t q0 = spans.q_offsets[piece.sample], q1 = spans.q_offsets[piece.sample + 1];
      begin = lower_bound(spans.last, q0, q1, piece.begin);
      end = lower_bound(spans.first, q0, q1, piece.end);
    } else {
      begin = spans.first[piece.begin];
      end = int64_t(spans.last[piece.end - 1]) + 1;
    }
    const auto load_stats = [&](int64_t query, int64_t queries, int head) {
      for (int i = threadIdx.x; i < kQueries; i += C::kThreads) {
        const bool given = i < queries;
        s_lse[i] = given ? lse[(query + i) * n.heads + head] : 0;
        s_d[i] = given ? d[(query + i) * n.heads + head] : 0;
        s_first[i] = given ? spans.first[query + i] : 1;  // the others see nothing
        s_last[i] = given ? spans.last[query + i] : 0;
      }
    };
    load_tile<C::kRows, C>(row_qk, (kKeyRows ? k : q) + row_at, row_ld, rows, n.dim);
    if (kOf != Gradient::V) load_tile<C::kRows, C>(row_dv, (kKeyRows ? v : dout) + row_at, row_ld, rows, n.dim);
    if (!kKeyRows) load_stats(piece.begin, rows, blockIdx.y);

    FragC sums[D / 8] = {};
    const int head_begin = kKeyRows ? int(blockIdx.y) * group : int(blockIdx.y);
    const int head_end = head_begin + (kKeyRows ? group : 1);
    for (int head = head_begin; head < head_end; ++head)
      for (int64_t column = begin; column < end; column += C::kCols) {
        const int64_t cols = end - column, col_ld = kKeyRows ? q_ld : kv_ld;
        const int64_t col_at = column * col_ld + int64_t(kKeyRows ? head : head / group) * n.dim;
        __syncthreads();  // the tile before has been read
        load_tile<C::kCols, C>(col_qk, (kKeyRows ? q : k) + col_at, col_ld, cols, n.dim);
        load_tile<C::kCols, C>(col_dv, (kKeyRows ? dout : v) + col_at, col_ld, cols, n.dim);
        if (kKeyRows) load_stats(column, cols, head);
        __syncthreads();
        FragC s[C::kCols / 8] = {}, dp[C::kCols / 8] = {};
        multiply_rows(s, row_qk + warp_row * C::kStride, C::kStride, col_qk, C::kStride, depth, C::kCols);
        if (kOf != Gradient::V)
          multiply_rows(dp, row_dv + warp_row * C::kStride, C::kStride, col_dv, C::kStride, depth, C::kCols);
        T2L_UNROLL
        for (int i = 0; i < C::kCols / 8; ++i) T2L_UNROLL
        for (int e = 0; e < 4; ++e) {
          const int row = warp_row + lane.row(e), col = lane.column(i, e), query = kKeyRows ? col : row;
          const int64_t key = kKeyRows ? piece.begin + row : column + col;
          const bool seen = key >= s_first[query] && key <= s_last[query];
          const float x = soften(s[i].r[e] * spans.scale, spans.softcap);
          float value = seen ? expf(x - s_lse[query]) : 0;
          if (kOf != Gradient::V) {
            const float t = spans.softcap != 0 ? x / spans.softcap : 0;  // tanh, whose slope is 1 - tanh^2
            value *= (dp[i].r[e] - s_d[query]) * spans.scale * (1 - t * t);
          }
          s[i].r[e] = value;
        }
        store_shared(factor + warp_row * C::kStrideX, C::kStrideX, s);
        __syncwarp();
        multiply_columns(sums, factor + warp_row * C::kStrideX, C::kStrideX, kOf == Gradient::V ? col_dv : col_qk,
                         C::kStride, C::kCols, n.dim);
      }
    store_global(grad + row_at + warp_row * row_ld, row_ld, sums, rows - warp_row, n.dim, {1, 1});
  }
}

// Calls f(element type, std::integral_constant D) with the least tuned D that holds the head.
template <class F>
void with_dim(DType type, int64_t dim, F&& f) {
  with_type(type, [&]<class T>(T* t) {
    if (dim <= 64)
      f(t, std::integral_constant<int, 64>{});
    else if (dim <= 128)
      f(t, std::integral_constant<int, 128>{});
    else
      f(t, std::integral_constant<int, 256>{});
  });
}

Heads heads_of(const Tensor& q, const Tensor& k) { return {int(q.dim(1)), int(k.dim(1)), int(q.dim(2))}; }

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.raw());
}

}  // namespace

void Cuda::attention_forward(Tensor& o, Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                             const AttentionSpans& spans) {
  const Spans s(spans);
  with_dim(q.dtype(), q.dim(2), [&]<class T, int D>(T*, std::integral_constant<int, D>) {
    using C = Config<T, D>;
    // A sample wastes at most one tile: more are never needed.
    const dim3 grid(blocks_for(q.dim(0), C::kRows) + unsigned(s.samples), unsigned(q.dim(1)));
    launch(forward_kernel<T, D>, grid, C::kThreads, kForwardShared<T, D>, stream_, data<T>(o), data<float>(lse),
           data<T>(q), data<T>(k), data<T>(v), s, heads_of(q, k));
  });
}

void Cuda::attention_backward(Tensor* dq, Tensor* dk, Tensor* dv, const Tensor& dout, const Tensor& o,
                              const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                              const AttentionSpans& spans) {
  const Spans s(spans);
  const Tensor d = Tensor::empty(lse.shape(), DType::F32, Device::CUDA);
  for (Tensor* grad : {dk, dv})
    if (grad) set_bytes(grad->raw(), 0, grad->bytes());  // for keys of no sample
  with_dim(q.dtype(), q.dim(2), [&]<class T, int D>(T*, std::integral_constant<int, D>) {
    using C = Config<T, D>;
    launch(dot_kernel<T>, blocks_for(lse.size(), 4), 128, 0, stream_, data<float>(d), data<T>(dout), data<T>(o),
           lse.size(), int(q.dim(2)));
    const auto run = [&](auto kernel, Tensor* grad) {
      if (!grad) return;
      const dim3 grid(blocks_for(grad->dim(0), C::kRows) + unsigned(s.samples), unsigned(grad->dim(1)));
      launch(kernel, grid, C::kThreads, kBackwardShared<T, D>, stream_, data<T>(*grad), data<T>(dout), data<float>(lse),
             data<float>(d), data<T>(q), data<T>(k), data<T>(v), s, heads_of(q, k));
    };
    run(backward_kernel<T, D, Gradient::Q>, dq);
    run(backward_kernel<T, D, Gradient::K>, dk);
    run(backward_kernel<T, D, Gradient::V>, dv);
  });
}

}  // namespace t2l::cuda
