// What differs between instruction sets in gemm.cpp: how panels are packed and one register tile of C is computed.
//
// The kernels see k in units of 32 bits: one f32, or two bf16 that are neighbours along k. A packed panel of A or B
// holds, unit after unit, the unit of each of its rows (columns of B), `pitch` of them. Only AMX wants its A the other
// way round: [k / 32][row][32].
#pragma once
#include <cstdint>

#include "tensor/cpu/gemm.h"

namespace t2l::cpu {

// dst: packed panel of `units` units, a multiple of 8 of them written, zero beyond k.
// src: element (w, k) at [w * ld + k], or [k * ld + w] if k is the row, for w < width, k < depth.
using Pack = void (*)(void* dst, const void* src, int64_t ld, bool k_is_row, int width, int64_t depth, int64_t units);

// Memory to fetch into L2 while a kernel runs, a line per unit from p and q each: along rows of 2^log2_lines lines.
struct Ahead {
  const char *p, *q;
  int64_t stride;  // bytes from row to row
  int log2_lines;
};

// A thin product: few rows of C from B as it lies in memory, [n, k], of which nothing is copied.
struct ThinKernel {
  int rows, cols;  // the largest tile of C, [rows, cols]
  Pack pack_a;     // to [unit / 16][8 rows][16]
  // c [rows, cols] (+)= A B over one pass of `depth` elements of k, bit for bit as GemmKernel::run. Row j of B begins
  // at b + j * ldb; those from `width` on do not exist. What is read after a row's end is `ahead` elements beyond it.
  void (*run)(float* c, const void* a, const void* b, int64_t ldb, int64_t depth, int rows, int width, bool add,
              int64_t ahead);
};

struct GemmKernel {
  int mr, nr;      // the tile of C, [mr, nr]
  int rows_step;   // rows are computed this many at a time
  int pitch_a;     // rows a packed panel of A has room for; a panel of B has nr columns
  int per_unit;    // elements of k in a unit
  int units_step;  // panels are zero-padded to a multiple of this many units
  int64_t kc;      // elements of k per pass. A constant, as sums are rounded where passes meet
  Pack pack_a, pack_b;
  bool adds_whole;  // whether add is one addition of the pass's sum, or each product is added
  bool reads_rows;  // whether A may be read where it lies, [m, k], if k is whole units
  // c [rows, nr] (+)= A B, over one pass; rows up to a multiple of rows_step may be overwritten. lda: bytes from row to
  // row of A where it lies, 0 for a packed panel.
  void (*run)(float* c, int64_t ldc, const void* a, int64_t lda, const void* b, int64_t units, int rows, bool add,
              Ahead ahead);
  ThinKernel thin = {};       // rows: 0 if there is none
  void (*begin)() = nullptr;  // before the first and after the last run of a thread
  void (*end)() = nullptr;
};

const GemmKernel& gemm_kernel(Isa isa, DType input);
void gemm(const Gemm& g, const GemmKernel& kernel);

extern const GemmKernel kAvx2F32, kAvx2BF16, kAvx512F32, kAvx512WidenBF16, kAvx512BF16, kAmxBF16;

}  // namespace t2l::cpu
