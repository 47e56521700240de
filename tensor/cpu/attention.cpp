// Flash attention (Dao, "FlashAttention-2", 2023) on the register kernels of the matrix product: tiles of scores live
// in the cache, the softmax runs online, and forward saves only each query's LSE = log(sum exp(score)).
// Backward makes P = exp(S - LSE) again, in two passes that share nothing: tiles of keys, which see a contiguous range
// of queries since first and last do not decrease, give dK and dV; tiles of queries give dQ.
// All sums run in an order that depends on the sample alone. The mathematics stands in autograd/attention.cpp.
#include <cmath>
#include <limits>
#include <utility>

#include "tensor/cpu/cpu.h"
#include "tensor/cpu/gemm_kernels.h"
#include "tensor/cpu/vmath.h"

namespace t2l::cpu {
namespace {

constexpr int64_t kRows = 126, kCols = 128;  // a tile of scores: whole register tiles (of 6 and 14 rows), 64 KB
constexpr int64_t kLanes = 16;               // columns handled at once; divides every kernel's nr
constexpr float kInfinity = std::numeric_limits<float>::infinity();

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Products of tiles with `rows` rows. Left factors are packed by mr rows, right ones by nr columns; a product lies in
// panels of nr columns: element (i, j) at row(i) + panel(j) + j % nr.
class Tiles {
 public:
  explicit Tiles(DType inputs)
      : inputs_(gemm_kernel(std::min(isa(), Isa::AVX512), inputs)),
        sums_(gemm_kernel(std::min(isa(), Isa::AVX512), DType::F32)),
        mr_(sums_.mr),
        nr_(sums_.nr) {}

  // Room, in floats, for a left factor, a right factor and a product of at most kRows rows.
  int64_t left_size(int64_t depth) const { return ceil_div(kRows, mr_) * left_panel(depth); }
  int64_t right_size(int64_t cols, int64_t depth) const { return round_up(cols, nr_) * round_up(depth, kLanes); }
  int64_t product_size(int64_t cols) const { return ceil_div(cols, nr_) * product_panel(); }

  void set_rows(int64_t rows) {
    rows_ = rows;
    height_ = ceil_div(rows, ceil_div(rows, mr_));  // register tiles of nearly equal height
  }
  int64_t row(int64_t i) const { return (i / height_ * mr_ + i % height_) * nr_; }
  int64_t panel(int64_t j) const { return j / nr_ * product_panel(); }
  int64_t at(int64_t i, int64_t j) const { return row(i) + panel(j) + j % nr_; }

  template <class T>
  void pack_left(float* to, const T* from, int64_t ld, int64_t depth) const {
    for (int64_t t = 0, i = 0; i < rows_; ++t, i += height_)
      inputs_.pack_a(to + t * left_panel(depth), from + i * ld, ld, false, height(i), depth, depth);
  }
  // A product becomes the left factor of the next one.
  void pack_left_product(float* to, const float* from, int64_t depth) const {
    for (int64_t t = 0, i = 0; i < rows_; ++t, i += height_)
      for (int64_t k = 0; k < depth; k += nr_) {
        const int64_t width = std::min<int64_t>(nr_, depth - k);
        sums_.pack_a(to + t * left_panel(depth) + k * sums_.pitch_a, from + row(i) + panel(k), nr_, false, height(i),
                     width, width);
      }
  }
  // The right factor [depth, cols], or with `transposed` its transpose, [cols, depth].
  template <class T>
  void pack_right(float* to, const T* from, int64_t ld, bool transposed, int64_t cols, int64_t depth) const {
    for (int64_t j = 0; j < cols; j += nr_)
      inputs_.pack_b(to + j * round_up(depth, kLanes), from + (transposed ? j * ld : j), ld, !transposed,
                     int(std::min<int64_t>(nr_, cols - j)), depth, depth);
  }
  void multiply(float* product, const float* left, const float* right, int64_t cols, int64_t depth, bool add) const {
    const char* const here = reinterpret_cast<const char*>(right);
    const Ahead nothing{here, here, 0, 0};  // all is in the cache already
    for (int64_t j = 0; j < cols; j += nr_)
      for (int64_t t = 0, i = 0; i < rows_; ++t, i += height_)
        sums_.run(product + row(i) + panel(j), nr_, left + t * left_panel(depth), right + j * round_up(depth, kLanes),
                  depth, height(i), add, nothing);
  }
  // to[i * ld + j] = product(i, j) factor(i)
  template <class T, class F>
  void write(T* to, int64_t ld, const float* product, int64_t cols, F&& factor) const {
    for (int64_t i = 0; i < rows_; ++i) {
      const float f = factor(i);
      for (int64_t j = 0; j < cols; ++j) to[i * ld + j] = f == 0 ? T(0.f) : T(product[at(i, j)] * f);
    }
  }

 private:
  int height(int64_t i) const { return int(std::min(height_, rows_ - i)); }
  int64_t left_panel(int64_t depth) const { return round_up(depth, kLanes) * sums_.pitch_a; }
  int64_t product_panel() const { return round_up(kRows, mr_) * nr_; }

  const GemmKernel &inputs_, &sums_;  // of one instruction set and so of one mr, nr; f32 register tiles both
  int64_t mr_, nr_, rows_ = 0, height_ = 1;
};

struct Sizes {
  int64_t heads, kv_heads, dim, samples;
  Sizes(const Tensor& q, const Tensor& k, const AttentionSpans& spans)
      : heads(q.dim(1)), kv_heads(k.dim(1)), dim(q.dim(2)), samples(spans.k_begin.size()) {}
};

struct Piece {
  int64_t sample, begin, end;
};
// Cuts [begin(s), begin(s) + size(s)) of all samples into pieces of at most kRows.
template <class Begin, class Count>
std::vector<Piece> cut(int64_t samples, Begin&& begin, Count&& count) {
  std::vector<Piece> pieces;
  for (int64_t s = 0; s < samples; ++s) {
    const int64_t b = begin(s), e = b + count(s);
    for (int64_t i = b; i < e; i += kRows) pieces.push_back({s, i, std::min(i + kRows, e)});
  }
  return pieces;
}
std::vector<Piece> cut_queries(const AttentionSpans& spans, int64_t samples) {
  const int32_t* offset = spans.q_offsets.data<int32_t>();
  return cut(
      samples, [=](int64_t s) { return offset[s]; }, [=](int64_t s) { return offset[s + 1] - offset[s]; });
}

// f(piece, head, scratch of `floats` floats), in parallel
template <class F>
void for_pieces(const std::vector<Piece>& pieces, int64_t heads, int64_t floats, F&& f) {
  const int64_t tasks = int64_t(pieces.size()) * heads, threads = std::clamp<int64_t>(tasks, 1, omp_get_max_threads());
  floats = round_up(floats, 16);
  const Tensor scratch = Tensor::empty({threads, floats});
#pragma omp parallel for schedule(dynamic) num_threads(int(threads))
  for (int64_t i = 0; i < tasks; ++i)
    f(pieces[size_t(i / heads)], i % heads, scratch.data<float>() + omp_get_thread_num() * floats);
}

// Takes `floats` floats, rounded up to a cache line, off the scratch memory.
float* take(float*& scratch, int64_t floats) { return std::exchange(scratch, scratch + round_up(floats, 16)); }

// One row of scores: those of the columns [begin, end) become exp(score - max), all others 0, and sum and max go on
// from what they were. Returns by what earlier sums must be multiplied.
float online_softmax(const Tiles& tiles, float* row, int64_t cols, int64_t begin, int64_t end, float scale,
                     float softcap, float& max, float& sum) {
  const int64_t padded = round_up(cols, kLanes);
  const auto block = [&](int64_t j) { return row + tiles.at(0, j); };
  if (begin >= end) {
    for (int64_t j = 0; j < padded; j += kLanes) std::fill_n(block(j), kLanes, 0.f);
    return 1;
  }
  float lane[kLanes];
  std::fill_n(lane, kLanes, max);
  for (int64_t j = 0; j < padded; j += kLanes) {
    float* s = block(j);
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) s[l] *= scale;
    if (softcap != 0)
      for (int64_t l = 0; l < kLanes; ++l) s[l] = softcap * cpu::tanh(s[l] / softcap);
    for (int64_t l = 0; l < std::min(begin - j, kLanes); ++l) s[l] = -kInfinity;
    for (int64_t l = std::max<int64_t>(end - j, 0); l < kLanes; ++l) s[l] = -kInfinity;
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) lane[l] = s[l] > lane[l] ? s[l] : lane[l];
  }
  const float before = max;
  const float highest = max = *std::max_element(lane, lane + kLanes);
  std::fill_n(lane, kLanes, 0.f);
  for (int64_t j = 0; j < padded; j += kLanes) {
    float* s = block(j);
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) s[l] = cpu::exp(s[l] - highest);
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) lane[l] += s[l];
  }
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  const float factor = before == -kInfinity ? 0 : std::exp(before - max);
  sum = sum * factor + lane[0];
  return factor;
}

// What backward needs of a query; of kRows or kCols of them side by side.
struct QueryStats {
  alignas(64) float lse[kCols], d[kCols];
  alignas(64) int32_t first[kCols], last[kCols];

  // head h of the queries begin .. end; beyond them, up to a multiple of kLanes, ones that see nothing
  void load(const float* lse_of, const float* d_of, const AttentionSpans& spans, int64_t heads, int64_t h,
            int64_t begin, int64_t end) {
    for (int64_t i = 0; i < end - begin; ++i) {
      lse[i] = std::max(lse_of[(begin + i) * heads + h], std::numeric_limits<float>::lowest());  // -inf - -inf is NaN
      d[i] = d_of[(begin + i) * heads + h];
      first[i] = spans.first.data<int32_t>()[begin + i];
      last[i] = spans.last.data<int32_t>()[begin + i];
    }
    for (int64_t i = end - begin; i < round_up(end - begin, kLanes); ++i) {
      lse[i] = d[i] = 0;
      first[i] = std::numeric_limits<int32_t>::max();
      last[i] = -1;
    }
  }
};

// Scores and dP become P and dS, where rows are queries and columns keys from `key` on, or the other way round.
template <bool kKeyRows, bool kSoftcap>
void differentiate(const Tiles& tiles, float* scores, float* dp, int64_t rows, int64_t cols, const QueryStats& stats,
                   int64_t key, float scale, float softcap) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; j += kLanes) {
      float *s = scores + tiles.at(i, j), *ds = dp + tiles.at(i, j);
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const int64_t query = kKeyRows ? j + l : i;
        const int32_t k = int32_t(key + (kKeyRows ? i : j + l));
        float x = s[l] * scale, slope = scale;
        if constexpr (kSoftcap) {
          const float t = cpu::tanh(x / softcap);
          x = softcap * t;
          slope *= 1 - t * t;
        }
        // Not "seen ? p : 0", which the compiler would turn into branches.
        const bool seen = (k >= stats.first[query]) & (k <= stats.last[query]);
        const float hide = seen ? 0 : -kInfinity;
        s[l] = cpu::exp(x - stats.lse[query] + hide);
        ds[l] = s[l] * (ds[l] - stats.d[query]) * slope;
      }
    }
}
template <bool kKeyRows>
void differentiate(const Tiles& tiles, float* scores, float* dp, int64_t rows, int64_t cols, const QueryStats& stats,
                   int64_t key, const AttentionSpans& spans) {
  if (spans.softcap != 0)
    differentiate<kKeyRows, true>(tiles, scores, dp, rows, cols, stats, key, spans.scale, spans.softcap);
  else
    differentiate<kKeyRows, false>(tiles, scores, dp, rows, cols, stats, key, spans.scale, 0);
}

template <class T>
void forward(Tensor& o, Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v, const AttentionSpans& spans) {
  const Sizes n(q, k, spans);
  const int64_t dim = n.dim, ld = n.heads * dim, kv_ld = n.kv_heads * dim;
  const Tiles kernels(q.dtype());
  const int32_t *first = spans.first.data<int32_t>(), *last = spans.last.data<int32_t>();
  const int64_t sizes[] = {kernels.left_size(dim), kernels.right_size(kCols, dim) + kernels.right_size(dim, kCols),
                           kernels.product_size(kCols), kernels.left_size(kCols), kernels.product_size(dim)};
  const int64_t floats = sizes[0] + sizes[1] + sizes[2] + sizes[3] + sizes[4] + 5 * 16;
  for_pieces(cut_queries(spans, n.samples), n.heads, floats, [&](const Piece& piece, int64_t h, float* scratch) {
    float *left_q = take(scratch, sizes[0]), *right = take(scratch, sizes[1]), *scores = take(scratch, sizes[2]),
          *left_p = take(scratch, sizes[3]), *sums = take(scratch, sizes[4]);
    const int64_t begin = piece.begin, rows = piece.end - begin, kv_at = h / (n.heads / n.kv_heads) * dim;
    const int64_t keys_begin = first[begin], keys_end = last[piece.end - 1] + 1;
    Tiles tiles = kernels;
    tiles.set_rows(rows);
    float max[kRows], sum[kRows] = {};
    std::fill_n(max, kRows, -kInfinity);
    tiles.pack_left(left_q, q.data<T>() + begin * ld + h * dim, ld, dim);
    for (int64_t key = keys_begin; key < keys_end; key += kCols) {
      const int64_t cols = std::min(kCols, keys_end - key);
      tiles.pack_right(right, k.data<T>() + key * kv_ld + kv_at, kv_ld, true, cols, dim);
      tiles.multiply(scores, left_q, right, cols, dim, false);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t from = std::max<int64_t>(first[begin + i] - key, 0);
        const int64_t to = std::min<int64_t>(last[begin + i] + 1 - key, cols);
        const float factor =
            online_softmax(tiles, scores + tiles.row(i), cols, from, to, spans.scale, spans.softcap, max[i], sum[i]);
        if (factor != 1 && key > keys_begin)
          for (int64_t j = 0; j < dim; ++j) sums[tiles.at(i, j)] *= factor;
      }
      tiles.pack_left_product(left_p, scores, cols);
      tiles.pack_right(right, v.data<T>() + key * kv_ld + kv_at, kv_ld, false, dim, cols);
      tiles.multiply(sums, left_p, right, dim, cols, key > keys_begin);
    }
    tiles.write(o.data<T>() + begin * ld + h * dim, ld, sums, dim,
                [&](int64_t i) { return sum[i] > 0 ? 1 / sum[i] : 0; });
    for (int64_t i = 0; i < rows; ++i)
      lse.data<float>()[(begin + i) * n.heads + h] = sum[i] > 0 ? max[i] + std::log(sum[i]) : -kInfinity;
  });
}

template <class T>
void backward(Tensor* dq, Tensor* dk, Tensor* dv, const Tensor& dout, const Tensor& o, const Tensor& lse,
              const Tensor& q, const Tensor& k, const Tensor& v, const AttentionSpans& spans) {
  const Sizes n(q, k, spans);
  const int64_t dim = n.dim, ld = n.heads * dim, kv_ld = n.kv_heads * dim, group = n.heads / n.kv_heads;
  const int32_t *first = spans.first.data<int32_t>(), *last = spans.last.data<int32_t>();
  const Tiles kernels(q.dtype());
  const T *qp = q.data<T>(), *kp = k.data<T>(), *vp = v.data<T>(), *dop = dout.data<T>(), *op = o.data<T>();

  const Tensor d = Tensor::empty(lse.shape());
  float* dp = d.data<float>();
  parallel(d.size(), kGrain / std::max<int64_t>(dim, 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float lane[kLanes] = {};
      for (int64_t j = 0; j < dim; ++j) lane[j % kLanes] += float(dop[i * dim + j]) * float(op[i * dim + j]);
      for (int64_t half = kLanes / 2; half > 0; half /= 2)
        for (int64_t l = 0; l < half; ++l) lane[l] += lane[l + half];
      dp[i] = lane[0];
    }
  });

  const int64_t left = kernels.left_size(dim), right = kernels.right_size(kCols, dim) + kernels.right_size(dim, kCols),
                product = kernels.product_size(kCols), left_product = kernels.left_size(kCols),
                sums = kernels.product_size(dim);
  const int64_t floats = 2 * left + right + 2 * product + left_product + 2 * sums + 8 * 16;

  if (dk || dv) {
    if (dk) dk->zero();  // for keys of no sample
    if (dv) dv->zero();
    const int32_t *k_begin = spans.k_begin.data<int32_t>(), *k_len = spans.k_len.data<int32_t>();
    const auto pieces = cut(
        n.samples, [=](int64_t s) { return k_begin[s]; }, [=](int64_t s) { return k_len[s]; });
    for_pieces(pieces, n.kv_heads, floats, [&](const Piece& piece, int64_t h_kv, float* scratch) {
      float *left_k = take(scratch, left), *left_v = take(scratch, left), *factor = take(scratch, right),
            *scores = take(scratch, product), *dscores = take(scratch, product), *left_p = take(scratch, left_product),
            *sum_k = take(scratch, sums), *sum_v = take(scratch, sums);
      const int64_t rows = piece.end - piece.begin, at = piece.begin * kv_ld + h_kv * dim;
      Tiles tiles = kernels;
      tiles.set_rows(rows);
      tiles.pack_left(left_k, kp + at, kv_ld, dim);
      tiles.pack_left(left_v, vp + at, kv_ld, dim);
      // The queries that see one of the keys: those before have last < begin, those after first >= end.
      const int32_t* offset = spans.q_offsets.data<int32_t>() + piece.sample;
      const int64_t q_begin = std::lower_bound(last + offset[0], last + offset[1], piece.begin) - last;
      const int64_t q_end = std::lower_bound(first + offset[0], first + offset[1], piece.end) - first;
      bool add = false;
      for (int64_t h = h_kv * group; h < (h_kv + 1) * group; ++h)
        for (int64_t query = q_begin; query < q_end; query += kCols, add = true) {
          const int64_t cols = std::min(kCols, q_end - query);
          const T *q_at = qp + query * ld + h * dim, *do_at = dop + query * ld + h * dim;
          QueryStats stats;
          stats.load(lse.data<float>(), dp, spans, n.heads, h, query, query + cols);
          tiles.pack_right(factor, q_at, ld, true, cols, dim);
          tiles.multiply(scores, left_k, factor, cols, dim, false);
          tiles.pack_right(factor, do_at, ld, true, cols, dim);
          tiles.multiply(dscores, left_v, factor, cols, dim, false);
          differentiate<true>(tiles, scores, dscores, rows, cols, stats, piece.begin, spans);
          if (dv) {
            tiles.pack_left_product(left_p, scores, cols);
            tiles.pack_right(factor, do_at, ld, false, dim, cols);
            tiles.multiply(sum_v, left_p, factor, dim, cols, add);
          }
          if (dk) {
            tiles.pack_left_product(left_p, dscores, cols);
            tiles.pack_right(factor, q_at, ld, false, dim, cols);
            tiles.multiply(sum_k, left_p, factor, dim, cols, add);
          }
        }
      const auto one = [&](int64_t) { return add ? 1.f : 0.f; };
      if (dk) tiles.write(dk->data<T>() + at, kv_ld, sum_k, dim, one);
      if (dv) tiles.write(dv->data<T>() + at, kv_ld, sum_v, dim, one);
    });
  }

  if (!dq) return;
  for_pieces(cut_queries(spans, n.samples), n.heads, floats, [&](const Piece& piece, int64_t h, float* scratch) {
    float *left_q = take(scratch, left), *left_do = take(scratch, left), *factor = take(scratch, right),
          *scores = take(scratch, product), *dscores = take(scratch, product), *left_ds = take(scratch, left_product),
          *sum_q = take(scratch, sums);
    const int64_t rows = piece.end - piece.begin, at = piece.begin * ld + h * dim, kv_at = h / group * dim;
    const int64_t keys_begin = first[piece.begin], keys_end = last[piece.end - 1] + 1;
    Tiles tiles = kernels;
    tiles.set_rows(rows);
    tiles.pack_left(left_q, qp + at, ld, dim);
    tiles.pack_left(left_do, dop + at, ld, dim);
    QueryStats stats;
    stats.load(lse.data<float>(), dp, spans, n.heads, h, piece.begin, piece.end);
    for (int64_t key = keys_begin; key < keys_end; key += kCols) {
      const int64_t cols = std::min(kCols, keys_end - key);
      const T *k_at = kp + key * kv_ld + kv_at, *v_at = vp + key * kv_ld + kv_at;
      tiles.pack_right(factor, k_at, kv_ld, true, cols, dim);
      tiles.multiply(scores, left_q, factor, cols, dim, false);
      tiles.pack_right(factor, v_at, kv_ld, true, cols, dim);
      tiles.multiply(dscores, left_do, factor, cols, dim, false);
      differentiate<false>(tiles, scores, dscores, rows, cols, stats, key, spans);
      tiles.pack_left_product(left_ds, dscores, cols);
      tiles.pack_right(factor, k_at, kv_ld, false, dim, cols);
      tiles.multiply(sum_q, left_ds, factor, dim, cols, key > keys_begin);
    }
    tiles.write(dq->data<T>() + at, ld, sum_q, dim, [&](int64_t) { return keys_begin < keys_end ? 1.f : 0.f; });
  });
}

}  // namespace

void Cpu::attention_forward(Tensor& o, Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                            const AttentionSpans& spans) {
  with_type(q.dtype(), [&]<class T>(T*) { forward<T>(o, lse, q, k, v, spans); });
}

void Cpu::attention_backward(Tensor* dq, Tensor* dk, Tensor* dv, const Tensor& dout, const Tensor& o, const Tensor& lse,
                             const Tensor& q, const Tensor& k, const Tensor& v, const AttentionSpans& spans) {
  with_type(q.dtype(), [&]<class T>(T*) { backward<T>(dq, dk, dv, dout, o, lse, q, k, v, spans); });
}

}  // namespace t2l::cpu
