// Register tiles in AVX2 and AVX-512. Each step of k multiplies a row of B, kept in two vectors, by one broadcast
// element of A per row of C: 2 R independent chains of fused multiply-adds, where R rows fill the register file.
#include <utility>

#include "tensor/cpu/gemm_pack.h"

namespace t2l::cpu {
namespace {

template <int R>
void tile_avx2(float* to, int64_t ldc, const float* a, const float* b, int64_t units, bool add, Ahead ahead) {
  __m256 c[R][2] = {};
  for (int64_t u = 0; u < units; ++u, a += 8, b += 16) {
    fetch(ahead, u);
    const __m256 b0 = _mm256_load_ps(b), b1 = _mm256_load_ps(b + 8);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const __m256 x = _mm256_broadcast_ss(a + i);
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

template <class Op, int R>
T2L_AVX512 void tile_avx512(float* to, int64_t ldc, const float* a, const float* b, int64_t units, bool add,
                            Ahead ahead) {
  __m512 c[R][2];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) c[i][0] = c[i][1] = _mm512_setzero_ps();
  for (int64_t u = 0; u < units; ++u, a += 16, b += 32) {
    fetch(ahead, u);
    const __m512 b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const __m512 x = _mm512_set1_ps(a[i]);
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

using Tile = void (*)(float*, int64_t, const float*, const float*, int64_t, bool, Ahead);

void run_avx2(float* c, int64_t ldc, const void* a, const void* b, int64_t units, int rows, bool add, Ahead ahead) {
  static constexpr Tile kTiles[] = {tile_avx2<1>, tile_avx2<2>, tile_avx2<3>, tile_avx2<4>, tile_avx2<5>, tile_avx2<6>};
  kTiles[rows - 1](c, ldc, static_cast<const float*>(a), static_cast<const float*>(b), units, add, ahead);
}

template <class Op>
void run_avx512(float* c, int64_t ldc, const void* a, const void* b, int64_t units, int rows, bool add, Ahead ahead) {
  static constexpr auto kTiles = []<int... I>(std::integer_sequence<int, I...>) {
    return std::array<Tile, sizeof...(I)>{tile_avx512<Op, I + 1>...};
  }
  (std::make_integer_sequence<int, 14>());
  kTiles[rows - 1](c, ldc, static_cast<const float*>(a), static_cast<const float*>(b), units, add, ahead);
}

}  // namespace

const GemmKernel kAvx2F32 = {6, 16, 1, 8, 1, 1, 512, pack<F32Units, 8>, pack<F32Units, 16>, true, run_avx2};
const GemmKernel kAvx2BF16 = {6, 16, 1, 8, 1, 1, 512, pack<WidenedUnits, 8>, pack<WidenedUnits, 16>, true, run_avx2};
const GemmKernel kAvx512F32 = {
    14, 32, 1, 16, 1, 1, 512, pack<F32Units, 16>, pack<F32Units, 32>, true, run_avx512<F32Singles>};
const GemmKernel kAvx512WidenBF16 = {
    14, 32, 1, 16, 1, 1, 512, pack<WidenedUnits, 16>, pack<WidenedUnits, 32>, true, run_avx512<F32Singles>};
const GemmKernel kAvx512BF16 = {
    14, 32, 1, 16, 2, 1, 1024, pack<PairUnits, 16>, pack<PairUnits, 32>, true, run_avx512<Bf16Pairs>};

}  // namespace t2l::cpu
