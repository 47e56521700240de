// Packing for gemm.cpp: blocks of 8x8 units are read from either orientation of the source, transposed in registers
// where the panel wants the other one, and written. AVX2 does this as fast as AVX-512 would: the shuffles bound it.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "tensor/cpu/gemm_kernels.h"

namespace t2l::cpu {

// The first n of 8 units, or of 16 halves of them, from where no more than these may be read; zero beyond.
inline __m256i below(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(std::clamp<int64_t>(n, 0, 8))),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i some_pairs(const uint16_t* p, int64_t n) {
  const __m256i whole = below(n / 2), pairs = _mm256_maskload_epi32(reinterpret_cast<const int*>(p), whole);
  if (n <= 0 || n % 2 == 0) return pairs;
  const __m256i next = _mm256_andnot_si256(whole, below(n / 2 + 1));
  return _mm256_or_si256(pairs, _mm256_and_si256(next, _mm256_set1_epi32(p[n - 1])));
}

// The 8 units that lie along a row of the source, and the same unit of 8 neighbouring columns.
struct F32Units {
  using T = float;
  static constexpr int kPer = 1;
  static __m256 some(const float* p, int64_t n) { return _mm256_maskload_ps(p, below(n)); }
  static __m256 along(const float* p) { return _mm256_loadu_ps(p); }
  static __m256 across(const float* p, int64_t) { return _mm256_loadu_ps(p); }
};
struct WidenedUnits {  // bf16 to f32, for machines without bf16 arithmetic
  using T = uint16_t;
  static constexpr int kPer = 1;
  static __m256 along(const uint16_t* p) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
  }
  static __m256 some(const uint16_t* p, int64_t n) {
    const __m256i h = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(some_pairs(p, std::min<int64_t>(n, 8))));
    return _mm256_castsi256_ps(_mm256_slli_epi32(h, 16));
  }
  static __m256 across(const uint16_t* p, int64_t) { return along(p); }
};
struct PairUnits {
  using T = uint16_t;
  static constexpr int kPer = 2;
  static __m256 some(const uint16_t* p, int64_t n) { return _mm256_castsi256_ps(some_pairs(p, n)); }
  static __m256 along(const uint16_t* p) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }
  static __m256 across(const uint16_t* p, int64_t ld) {
    const __m128i even = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i odd = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + ld));
    const __m128i lo = _mm_unpacklo_epi16(even, odd), hi = _mm_unpackhi_epi16(even, odd);
    return _mm256_castsi256_ps(_mm256_set_m128i(hi, lo));
  }
};

inline void fetch(const Ahead& ahead, int64_t u) {
  const int64_t line = u & ((1 << ahead.log2_lines) - 1);
  const int64_t at = (u >> ahead.log2_lines) * ahead.stride + line * 64;
  _mm_prefetch(ahead.p + at, _MM_HINT_T1);
  _mm_prefetch(ahead.q + at, _MM_HINT_T1);
}

inline void transpose(__m256 (&r)[8]) {
  __m256 s[8], t[8];
  for (int i = 0; i < 8; i += 2) {
    s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      t[i + 2 * j] = _mm256_shuffle_ps(s[i + j], s[i + j + 2], 0x44);
      t[i + 2 * j + 1] = _mm256_shuffle_ps(s[i + j], s[i + j + 2], 0xee);
    }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
  }
}

// Where a block of the source can be read in full vectors: in place, or from a copy padded with zeros if only part of
// it exists. rows by cols elements of T of which `rows_there` by `cols_there` are the source's.
template <class T, int kRows, int kCols>
struct Block {
  const T* p;
  int64_t step;
  T padded[kRows * kCols];

  Block(const T* src, int64_t ld, int64_t rows_there, int64_t cols_there) : p(src), step(ld) {
    if (rows_there >= kRows && cols_there >= kCols) return;
    std::memset(padded, 0, sizeof padded);
    for (int64_t i = 0; i < std::min<int64_t>(rows_there, kRows); ++i)
      std::copy_n(src + i * ld, std::min<int64_t>(cols_there, kCols), padded + i * kCols);
    p = padded, step = kCols;
  }
};

// The panel is [unit][kPitch], or with kTileRows [unit / 16][kPitch][16].
template <class Units, int kPitch, bool kTileRows, bool kKIsRow>
void pack_panel(float* dst, const typename Units::T* src, int64_t ld, int width, int64_t depth, int64_t units) {
  using T = typename Units::T;
  constexpr int kPer = Units::kPer;
  if constexpr (kKIsRow && !kTileRows) {
    for (int64_t u = 0; u < units; ++u) {
      const Block<T, kPer, kPitch> block(src + u * kPer * ld, ld, depth - u * kPer, width);
      for (int w = 0; w < kPitch; w += 8) _mm256_store_ps(dst + u * kPitch + w, Units::across(block.p + w, block.step));
    }
    return;
  }
  // Two lines of each of 8 rows at a time: rows at a distance of a power of two compete for the same cache sets, and
  // what is packed should still be in L1 when its line is completed.
  for (int64_t u0 = 0; u0 < units; u0 += 32)
    for (int w = 0; w < width; w += 8)
      for (int64_t u = u0; u < std::min(u0 + 32, units); u += 8) {
        const int64_t k = u * kPer;
        __m256 r[8];
        if constexpr (kKIsRow) {
          const Block<T, 8 * kPer, 8> block(src + k * ld + w, ld, depth - k, width - w);
          for (int i = 0; i < 8; ++i) r[i] = Units::across(block.p + i * kPer * block.step, block.step);
        } else {
          // Rows the panel has and the source has not are never looked at; they repeat the last one.
          const int rows = std::min(8, width - w);
          const Block<T, 8, 8 * kPer> block(src + w * ld + k, ld, depth - k < 8 * kPer ? rows : 8, depth - k);
          if (rows == 8)
            for (int i = 0; i < 8; ++i) r[i] = Units::along(block.p + i * block.step);
          else
            for (int i = 0; i < 8; ++i) r[i] = Units::along(block.p + std::min(i, rows - 1) * block.step);
        }
        if constexpr (kKIsRow == kTileRows) transpose(r);
        for (int i = 0; i < 8; ++i)
          _mm256_store_ps(kTileRows ? dst + (u / 16 * kPitch + w + i) * 16 + u % 16 : dst + (u + i) * kPitch + w, r[i]);
      }
}

template <class Units, int kPitch, bool kTileRows = false>
void pack(void* dst, const void* src, int64_t ld, bool k_is_row, int width, int64_t depth, int64_t units) {
  auto* d = static_cast<float*>(dst);
  auto* s = static_cast<const typename Units::T*>(src);
  if (k_is_row)
    pack_panel<Units, kPitch, kTileRows, true>(d, s, ld, width, depth, units);
  else
    pack_panel<Units, kPitch, kTileRows, false>(d, s, ld, width, depth, units);
}

}  // namespace t2l::cpu
