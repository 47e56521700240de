// The AMX register tile: C [32, 32] in four of the eight tile registers, each 16 rows of 64 bytes; a step multiplies
// [32, 32] of A by [32, 32] of B, k in pairs. Written over a type that has the tile instructions as functions: the
// hardware's, in gemm_amx.cpp, or a model of them, in tests, that runs where AMX does not exist.
#pragma once
#include "tensor/cpu/gemm_pack.h"

namespace t2l::cpu {

template <class Tiles>
void run_amx(float* c, int64_t ldc, const void* a, int64_t, const void* b, int64_t units, int rows, bool add,
             Ahead ahead) {
  constexpr int64_t kA = 64, kB = 128;  // bytes from row to row
  const int64_t row_c = ldc * 4;
  const char *pa = static_cast<const char*>(a), *pb = static_cast<const char*>(b);
  char* pc = reinterpret_cast<char*>(c);
  const bool lower = rows > 16;
  if (add) {
    Tiles::template load<0>(pc, row_c);
    Tiles::template load<1>(pc + 64, row_c);
    if (lower) Tiles::template load<2>(pc + 16 * row_c, row_c);
    if (lower) Tiles::template load<3>(pc + 16 * row_c + 64, row_c);
  } else {
    Tiles::template zero<0>();
    Tiles::template zero<1>();
    Tiles::template zero<2>();
    Tiles::template zero<3>();
  }
  for (int64_t u = 0; u < units; u += 16, pa += 32 * kA, pb += 16 * kB) {
    for (int i = 0; i < 16; ++i) fetch(ahead, u + i);
    Tiles::template load<4>(pa, kA);
    Tiles::template load<6>(pb, kB);
    Tiles::template load<7>(pb + 64, kB);
    Tiles::template multiply_add<0, 4, 6>();
    Tiles::template multiply_add<1, 4, 7>();
    if (lower) {
      Tiles::template load<5>(pa + 16 * kA, kA);
      Tiles::template multiply_add<2, 5, 6>();
      Tiles::template multiply_add<3, 5, 7>();
    }
  }
  Tiles::template store<0>(pc, row_c);
  Tiles::template store<1>(pc + 64, row_c);
  if (lower) Tiles::template store<2>(pc + 16 * row_c, row_c);
  if (lower) Tiles::template store<3>(pc + 16 * row_c + 64, row_c);
}

template <class Tiles>
constexpr GemmKernel amx_kernel() {
  return {.mr = 32,
          .nr = 32,
          .rows_step = 16,
          .pitch_a = 32,
          .per_unit = 2,
          .units_step = 16,
          .kc = 1024,
          .pack_a = pack<PairUnits, 32, true>,
          .pack_b = pack<PairUnits, 32>,
          .adds_whole = false,
          .reads_rows = false,
          .run = run_amx<Tiles>,
          .begin = Tiles::begin,
          .end = Tiles::end};
}

}  // namespace t2l::cpu
