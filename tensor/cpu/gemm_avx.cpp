// Register tiles in AVX2 and AVX-512. Each step of k multiplies a row of B, kept in two vectors, by one broadcast
// element of A per row of C: 2 R independent chains of fused multiply-adds, where R rows fill the register file.
//
// A thin product reads each weight once, so it must not pay for a packed copy: a block of 16 rows (AVX2: 8) of B, as
// long as a cache line, is transposed in registers and multiplied there, in the order of k that the tiles keep. Dot
// products along k would need no transposing, and would give other bits than the same row in a larger batch.
#include <utility>

#include "tensor/cpu/gemm_pack.h"

namespace t2l::cpu {
namespace {

// One unit of R rows of A, unit after unit: of a packed panel, or where A lies. There a pointer to every third row lets
// the processor's addressing reach the others.
template <int kPitch>
struct PackedA {
  const float* p;
  PackedA(const void* a, int64_t) : p(static_cast<const float*>(a)) {}
  float operator()(int i) const { return p[i]; }
  void next() { p += kPitch; }
};
template <int R>
struct RowsA {
  const char* p[(R + 2) / 3];
  int64_t ld;
  RowsA(const void* a, int64_t bytes) : ld(bytes) {
    for (int i = 0; i < R; i += 3) p[i / 3] = static_cast<const char*>(a) + i * bytes;
  }
  float operator()(int i) const {
    float x;
    std::memcpy(&x, p[i / 3] + i % 3 * ld, sizeof x);
    return x;
  }
  void next() {
#pragma GCC unroll 8
    for (auto& each : p) each += 4;
  }
};

template <class A, int R>
void tile_avx2(float* to, int64_t ldc, const void* a, int64_t lda, const float* b, int64_t units, bool add,
               Ahead ahead) {
  A x_of(a, lda);
  __m256 c[R][2] = {};
  for (int64_t u = 0; u < units; ++u, x_of.next(), b += 16) {
    fetch(ahead, u);
    const __m256 b0 = _mm256_load_ps(b), b1 = _mm256_load_ps(b + 8);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const __m256 x = _mm256_set1_ps(x_of(i));
      c[i][0] = _mm256_fmadd_ps(x, b0, c[i][0]);
      c[i][1] = _mm256_fmadd_ps(x, b1, c[i][1]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      float* t = to + i * ldc + j * 8;
      _mm256_storeu_ps(t, add ? _mm256_add_ps(_mm256_loadu_ps(t), c[i][j]) : c[i][j]);
    }
}

// One target for both of the kernels below; only Bf16Pairs contains instructions beyond AVX-512F.
#define T2L_AVX512 __attribute__((target("avx512f,avx512bf16")))

struct F32Singles {
  T2L_AVX512 static __m512 multiply_add(__m512 c, __m512 x, __m512 y) { return _mm512_fmadd_ps(x, y, c); }
};
struct Bf16Pairs {  // c + x[2i] y[2i] + x[2i + 1] y[2i + 1], and subnormals are zero
  T2L_AVX512 static __m512 multiply_add(__m512 c, __m512 x, __m512 y) {
    return _mm512_dpbf16_ps(c, (__m512bh)x, (__m512bh)y);
  }
};

template <class Op, class A, int R>
T2L_AVX512 void tile_avx512(float* to, int64_t ldc, const void* a, int64_t lda, const float* b, int64_t units, bool add,
                            Ahead ahead) {
  A x_of(a, lda);
  __m512 c[R][2];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    c[i][0] = c[i][1] = _mm512_setzero_ps();
  }
  for (int64_t u = 0; u < units; ++u, x_of.next(), b += 32) {
    fetch(ahead, u);
    const __m512 b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const __m512 x = _mm512_set1_ps(x_of(i));
      c[i][0] = Op::multiply_add(c[i][0], x, b0);
      c[i][1] = Op::multiply_add(c[i][1], x, b1);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      float* t = to + i * ldc + j * 16;
      _mm512_storeu_ps(t, add ? _mm512_add_ps(_mm512_loadu_ps(t), c[i][j]) : c[i][j]);
    }
}

// ---- thin products

template <class Units, int R>
void thin_avx2(float* to, const float* a, const typename Units::T* b, int64_t ldb, int64_t depth, int width, bool add,
               int64_t ahead) {
  constexpr int kPer = Units::kPer;
  constexpr int64_t kFetch = 512 / sizeof(typename Units::T);
  __m256 c[R] = {};
  for (int64_t k = 0, u = 0; k < depth; k += 8 * kPer, u += 8) {
    const int64_t left = depth - k;
    __m256 r[8];
    for (int j = 0; j < 8; ++j) {
      const auto* p = b + std::min(j, width - 1) * ldb + k;
      r[j] = left >= 8 * kPer ? Units::along(p) : Units::some(p, left);
      _mm_prefetch(reinterpret_cast<const char*>(p + kFetch + (left > kFetch ? 0 : ahead)), _MM_HINT_T0);
    }
    transpose(r);
    const float* x = a + u / 16 * 128 + u % 16;
    for (int j = 0; j < 8 && j * kPer < left; ++j)
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) c[i] = _mm256_fmadd_ps(_mm256_broadcast_ss(x + i * 16 + j), r[j], c[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i, to += 8) _mm256_storeu_ps(to, add ? _mm256_add_ps(_mm256_loadu_ps(to), c[i]) : c[i]);
}

// The masked forms, with all set: in GCC 12 the plain ones warn of a register that is not read.
T2L_AVX512 inline __m512 join(__m256 low, __m256 high) {
  const __m512d whole = _mm512_castps_pd(_mm512_castps256_ps512(low));
  return _mm512_castpd_ps(_mm512_maskz_insertf64x4(0xff, whole, _mm256_castps_pd(high), 1));
}

// Eight units of rows [0 .. 3 | 4 .. 7] and [8 .. 11 | 12 .. 15], half a register each, become [unit][16 rows]. Inlined
// always, as a call takes all sixteen registers through memory.
T2L_AVX512 __attribute__((always_inline)) inline void transpose512(__m512* r) {
  constexpr __mmask16 kAll = 0xffff;
  __m512 s[8], t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    s[i] = _mm512_maskz_unpacklo_ps(kAll, r[i], r[i + 1]);
    s[i + 1] = _mm512_maskz_unpackhi_ps(kAll, r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      t[i + 2 * j] = _mm512_maskz_shuffle_ps(kAll, s[i + j], s[i + j + 2], 0x44);
      t[i + 2 * j + 1] = _mm512_maskz_shuffle_ps(kAll, s[i + j], s[i + j + 2], 0xee);
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_maskz_shuffle_f32x4(kAll, t[i], t[i + 4], 0x88);
    r[i + 4] = _mm512_maskz_shuffle_f32x4(kAll, t[i], t[i + 4], 0xdd);
  }
}

// Where each of 16 rows begins; those that do not exist are the last one again.
struct Rows16 {
  int64_t at[16];
  Rows16(int64_t ld, int width) {
    for (int j = 0; j < 16; ++j) at[j] = std::min(j, width - 1) * ld;
  }
};

// Register j of 16 that transpose512(), of each eight, turns into units 0 .. 15 of the rows at p, `left` elements long.
template <class Units, bool kWhole>
T2L_AVX512 inline __m512 load(const typename Units::T* p, const Rows16& row, int j, int64_t left) {
  const int first = j % 4 + j % 8 / 4 * 8, skipped = j / 8 * 8 * Units::kPer;
  const auto *low = p + row.at[first] + skipped, *high = p + row.at[first + 4] + skipped;
  if constexpr (kWhole) return join(Units::along(low), Units::along(high));
  return join(Units::some(low, left - skipped), Units::some(high, left - skipped));
}

template <class Op, class Units, int R>
T2L_AVX512 void thin_avx512(float* to, const float* a, const typename Units::T* b, int64_t ldb, int64_t depth,
                            int width, bool add, int64_t ahead) {
  constexpr int kPer = Units::kPer;
  constexpr int64_t kFetch = 512 / sizeof(typename Units::T);
  const Rows16 row(ldb, width);
  __m512 c[R], r[16];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) c[i] = _mm512_setzero_ps();
  int64_t left = depth;
  for (; left >= 16 * kPer; left -= 16 * kPer, b += 16 * kPer, a += 128) {
    const auto* next = b + kFetch + (left > kFetch ? 0 : ahead);
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      r[j] = load<Units, true>(b, row, j, left);
      _mm_prefetch(next + row.at[j], _MM_HINT_T0);
    }
#pragma GCC unroll 2
    for (int half = 0; half < 16; half += 8) {  // the second is transposed while the first is multiplied
      transpose512(r + half);
#pragma GCC unroll 8
      for (int j = half; j < half + 8; ++j)
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) c[i] = Op::multiply_add(c[i], _mm512_set1_ps(a[i * 16 + j]), r[j]);
    }
  }
  if (left > 0) {
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) r[j] = load<Units, false>(b, row, j, left);
    transpose512(r);
    transpose512(r + 8);
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      if (j * kPer >= left) break;
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) c[i] = Op::multiply_add(c[i], _mm512_set1_ps(a[i * 16 + j]), r[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i, to += 16) _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), c[i]) : c[i]);
}

using Tile = void (*)(float*, int64_t, const void*, int64_t, const float*, int64_t, bool, Ahead);

void run_avx2(float* c, int64_t ldc, const void* a, int64_t lda, const void* b, int64_t units, int rows, bool add,
              Ahead ahead) {
  static constexpr auto kTiles = []<int... I>(std::integer_sequence<int, I...>) {
    return std::array{std::array<Tile, sizeof...(I)>{tile_avx2<PackedA<8>, I + 1>...},
                      std::array<Tile, sizeof...(I)>{tile_avx2<RowsA<I + 1>, I + 1>...}};
  }
  (std::make_integer_sequence<int, 6>());
  kTiles[lda != 0][size_t(rows - 1)](c, ldc, a, lda, static_cast<const float*>(b), units, add, ahead);
}

template <class Op>
void run_avx512(float* c, int64_t ldc, const void* a, int64_t lda, const void* b, int64_t units, int rows, bool add,
                Ahead ahead) {
  static constexpr auto kTiles = []<int... I>(std::integer_sequence<int, I...>) {
    return std::array{std::array<Tile, sizeof...(I)>{tile_avx512<Op, PackedA<16>, I + 1>...},
                      std::array<Tile, sizeof...(I)>{tile_avx512<Op, RowsA<I + 1>, I + 1>...}};
  }
  (std::make_integer_sequence<int, 14>());
  kTiles[lda != 0][size_t(rows - 1)](c, ldc, a, lda, static_cast<const float*>(b), units, add, ahead);
}

template <class Units>
using ThinTile = void (*)(float*, const float*, const typename Units::T*, int64_t, int64_t, int, bool, int64_t);

template <class Units>
void run_thin_avx2(float* c, const void* a, const void* b, int64_t ldb, int64_t depth, int rows, int width, bool add,
                   int64_t ahead) {
  static constexpr ThinTile<Units> kTiles[] = {thin_avx2<Units, 1>, thin_avx2<Units, 2>, thin_avx2<Units, 3>,
                                               thin_avx2<Units, 4>, thin_avx2<Units, 5>, thin_avx2<Units, 6>};
  kTiles[rows - 1](c, static_cast<const float*>(a), static_cast<const typename Units::T*>(b), ldb, depth, width, add,
                   ahead);
}

template <class Op, class Units>
void run_thin_avx512(float* c, const void* a, const void* b, int64_t ldb, int64_t depth, int rows, int width, bool add,
                     int64_t ahead) {
  static constexpr auto kTiles = []<int... I>(std::integer_sequence<int, I...>) {
    return std::array<ThinTile<Units>, sizeof...(I)>{thin_avx512<Op, Units, I + 1>...};
  }
  (std::make_integer_sequence<int, 8>());
  kTiles[rows - 1](c, static_cast<const float*>(a), static_cast<const typename Units::T*>(b), ldb, depth, width, add,
                   ahead);
}

template <class Units>
constexpr GemmKernel avx2() {
  return {.mr = 6,
          .nr = 16,
          .rows_step = 1,
          .pitch_a = 8,
          .per_unit = Units::kPer,
          .units_step = 1,
          .kc = 512 * Units::kPer,
          .pack_a = pack<Units, 8>,
          .pack_b = pack<Units, 16>,
          .adds_whole = true,
          .reads_rows = !std::is_same_v<Units, WidenedUnits>,
          .run = run_avx2,
          .thin = {.rows = 6, .cols = 8, .pack_a = pack<Units, 8, true>, .run = run_thin_avx2<Units>}};
}
template <class Op, class Units>
constexpr GemmKernel avx512() {
  return {.mr = 14,
          .nr = 32,
          .rows_step = 1,
          .pitch_a = 16,
          .per_unit = Units::kPer,
          .units_step = 1,
          .kc = 512 * Units::kPer,
          .pack_a = pack<Units, 16>,
          .pack_b = pack<Units, 32>,
          .adds_whole = true,
          .reads_rows = !std::is_same_v<Units, WidenedUnits>,
          .run = run_avx512<Op>,
          .thin = {.rows = 8, .cols = 16, .pack_a = pack<Units, 8, true>, .run = run_thin_avx512<Op, Units>}};
}

}  // namespace

const GemmKernel kAvx2F32 = avx2<F32Units>(), kAvx2BF16 = avx2<WidenedUnits>();
const GemmKernel kAvx512F32 = avx512<F32Singles, F32Units>(), kAvx512WidenBF16 = avx512<F32Singles, WidenedUnits>(),
                 kAvx512BF16 = avx512<Bf16Pairs, PairUnits>();

}  // namespace t2l::cpu
