// Per-sample products: every segment of rows meets its own matrix. All are cut into tiles of C, which threads take as
// they come; a tile is one call of the matrix product into f32, in the cache, then scaled and rounded once. Samples of
// few rows, as in decoding, take dot products instead, as packing would cost more than the product. A row's bits do not
// depend on what else is in the batch, save on which side of kFewRows its sample is.
#include <bit>
#include <cstring>
#include <vector>

#include "tensor/alike.h"
#include "tensor/cpu/cpu.h"
#include "tensor/cpu/gemm.h"

namespace t2l::cpu {
namespace {

constexpr int64_t kRows = 128, kCols = 1024;         // of the largest tile: half a megabyte
constexpr int64_t kLeastRows = 16, kLeastCols = 64;  // and of the smallest that gives all threads something to do
constexpr int64_t kFewRows = 8;

// A product into C, and how.
struct Tile {
  Gemm product;
  bool few_rows;
};

const void* at(const void* p, DType t, int64_t i) { return static_cast<const std::byte*>(p) + i * int64_t(size_of(t)); }

// C's tiles of [rows, cols] of one product, each a product of its own.
void cut(std::vector<Tile>& tiles, const Gemm& g, int64_t rows, int64_t cols) {
  const Matmul& s = g.spec;
  const bool few_rows = s.m <= kFewRows && s.transpose_b;
  for (int64_t i = 0; i < s.m; i += rows)
    for (int64_t j = 0; j < s.n; j += cols) {
      Gemm& t = tiles.emplace_back(Tile{g, few_rows}).product;
      t.spec.m = std::min(rows, s.m - i);
      t.spec.n = std::min(cols, s.n - j);
      t.a = at(g.a, g.input, s.transpose_a ? i : i * s.lda);
      t.b = at(g.b, g.input, s.transpose_b ? j * s.ldb : j);
      t.c = const_cast<void*>(at(g.c, g.output, i * s.ldc + j));
    }
}

typedef float Floats __attribute__((vector_size(32)));
typedef uint32_t Words __attribute__((vector_size(32)));
typedef uint16_t Halves __attribute__((vector_size(16)));
constexpr int64_t kVector = 8;

Floats load(const float* x) {
  Floats v;
  std::memcpy(&v, x, sizeof v);
  return v;
}
Floats load(const bf16* x) {
  Halves v;
  std::memcpy(&v, x, sizeof v);
  return std::bit_cast<Floats>(__builtin_convertvector(v, Words) << 16);
}
template <class T>
Floats load(const T* x, int64_t n) {
  T padded[kVector] = {};
  std::copy_n(x, n, padded);
  return load(padded);
}

// The sum of each of eight vectors: their transpose, added up on the way.
Floats sums_of(const Floats (&v)[kVector]) {
  Floats fours[4], twos[2];
  for (int i = 0; i < 4; ++i)
    fours[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13) +
               __builtin_shufflevector(v[2 * i], v[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  for (int i = 0; i < 2; ++i)
    twos[i] = __builtin_shufflevector(fours[2 * i], fours[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13) +
              __builtin_shufflevector(fours[2 * i], fours[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15);
  return __builtin_shufflevector(twos[0], twos[1], 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(twos[0], twos[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

// y[j] = x w[j], eight j at a time, the last of them anew if n is no multiple.  x: [k]  w: rows of ldw
template <class T>
void dot_products(float* y, const T* x, const T* w, int64_t ldw, int64_t n, int64_t k) {
  const int64_t last = std::max<int64_t>(n - kVector, 0), whole = k / kVector * kVector;
  int64_t row[kVector];
  for (int64_t c = 0; c < kVector; ++c) row[c] = std::min(c, n - 1) * ldw;
  for (int64_t j = 0; j < n; j += kVector) {
    const T* const from = w + std::min(j, last) * ldw;
    Floats sum[kVector];
    for (Floats& s : sum) s = Floats{};  // = {} becomes a slow `rep stos`
    for (int64_t i = 0; i < whole; i += kVector) {
      const Floats u = load(x + i);
      for (int64_t c = 0; c < kVector; ++c) sum[c] += u * load(from + row[c] + i);
    }
    if (whole < k) {
      const Floats u = load(x + whole, k - whole);
      for (int64_t c = 0; c < kVector; ++c) sum[c] += u * load(from + row[c] + whole, k - whole);
    }
    const Floats sums = sums_of(sum);
    std::memcpy(y + std::min(j, last), &sums, size_t(std::min(kVector, n)) * sizeof(float));
  }
}

// sums: [m, n] = op(A) op(B)
void product(float* sums, const Tile& t) {
  const Matmul& s = t.product.spec;
  if (t.few_rows) {
    with_type(t.product.input, [&]<class T>(T*) {
      for (int64_t r = 0; r < s.m; ++r)
        dot_products(sums + r * s.n, static_cast<const T*>(t.product.a) + r * s.lda, static_cast<const T*>(t.product.b),
                     s.ldb, s.n, s.k);
    });
    return;
  }
  Gemm g = t.product;
  g.c = sums, g.output = DType::F32;
  g.spec.ldc = s.n, g.spec.accumulate = false;
  gemm(g);
}

void compute(const std::vector<Tile>& tiles, float alpha) {
  if (tiles.empty()) return;
  int64_t largest = 0;
  double work = 0;
  for (const Tile& t : tiles) {
    const Matmul& s = t.product.spec;
    largest = std::max(largest, s.m * s.n);
    work += double(s.m) * double(s.n) * double(s.k + 16);
  }
  const int64_t count = int64_t(tiles.size()),
                threads = work < 1e5 ? 1 : std::min<int64_t>(count, omp_get_max_threads());
  const Tensor scratch = Tensor::empty({threads, largest});
#pragma omp parallel for schedule(dynamic) num_threads(int(threads)) if (threads > 1)
  for (int64_t i = 0; i < count; ++i) {
    const Gemm& t = tiles[size_t(i)].product;
    const Matmul& s = t.spec;
    float* const sums = scratch.data<float>() + (threads > 1 ? omp_get_thread_num() : 0) * largest;
    product(sums, tiles[size_t(i)]);
    with_type(t.output, [&]<class T>(T*) {
      for (int64_t r = 0; r < s.m; ++r) {
        T* const c = static_cast<T*>(t.c) + r * s.ldc;
        const float* const sum = sums + r * s.n;
        if (s.accumulate)
          for (int64_t j = 0; j < s.n; ++j) c[j] = T(float(c[j]) + alpha * sum[j]);
        else
          for (int64_t j = 0; j < s.n; ++j) c[j] = T(alpha * sum[j]);
      }
    });
  }
}

// The offsets, which no sample may leave.
const int32_t* checked(const Tensor& offsets, int64_t tokens) {
  const auto o = offsets.host<int32_t>();
  T2L_CHECK(o.front() == 0 && o.back() == tokens && std::is_sorted(o.begin(), o.end()),
            "{} segments of {} rows from {} to {}", o.size() - 1, tokens, o.front(), o.back());
  return o.data();
}

int64_t share(int64_t n, int64_t least, int64_t most) {
  return std::clamp(n / (2 * omp_get_max_threads()) / least * least, least, most);
}

}  // namespace

void Cpu::segment_matmul(Tensor& y, const Tensor& x, const Tensor& w, const Tensor& offsets, bool transpose_w,
                         float alpha, bool accumulate) {
  check_segments("segment_matmul", y, x, w, offsets, transpose_w);
  T2L_CHECK(w.dtype() == x.dtype(), "segment_matmul: {} by {}", name_of(x.dtype()), name_of(w.dtype()));
  const int64_t n = y.cols(), k = x.cols();
  const int32_t* offset = checked(offsets, x.dim(0));
  std::vector<Tile> tiles;
  for (int64_t s = 0; s + 1 < offsets.size(); ++s) {
    const Gemm g{.c = const_cast<void*>(at(y.raw(), y.dtype(), offset[s] * n)),
                 .a = at(x.raw(), x.dtype(), offset[s] * k),
                 .b = at(w.raw(), w.dtype(), s * n * k),
                 .input = x.dtype(),
                 .output = y.dtype(),
                 .spec = {.m = offset[s + 1] - offset[s],
                          .n = n,
                          .k = k,
                          .transpose_b = transpose_w,
                          .lda = k,
                          .ldb = transpose_w ? k : n,
                          .ldc = n,
                          .accumulate = accumulate}};
    cut(tiles, g, share(x.rows(), kLeastRows, kRows), kCols);
  }
  compute(tiles, alpha);
}

void Cpu::segment_matmul_weight(Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& offsets, float alpha,
                                bool accumulate) {
  check_segments("segment_matmul_weight", dy, x, dw, offsets, true);
  const int64_t n = dy.cols(), k = x.cols();
  const int32_t* offset = checked(offsets, x.dim(0));
  std::vector<Tile> tiles;
  for (int64_t s = 0; s + 1 < offsets.size(); ++s) {
    const Gemm g{.c = const_cast<void*>(at(dw.raw(), dw.dtype(), s * n * k)),
                 .a = at(dy.raw(), dy.dtype(), offset[s] * n),
                 .b = at(x.raw(), x.dtype(), offset[s] * k),
                 .input = x.dtype(),
                 .output = dw.dtype(),
                 .spec = {.m = n,
                          .n = k,
                          .k = offset[s + 1] - offset[s],
                          .transpose_a = true,
                          .lda = n,
                          .ldb = k,
                          .ldc = k,
                          .accumulate = accumulate}};
    cut(tiles, g, kRows, share(k, kLeastCols, kCols));
  }
  compute(tiles, alpha);
}

}  // namespace t2l::cpu
