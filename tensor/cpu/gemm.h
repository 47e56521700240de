// The one matrix product of the CPU backend; every product of the engine on the CPU goes through it.
//
//   C[g] = act(op(A[g]) op(B[g]) + bias[g]) (+ C[g] if accumulate)
//
// Shapes, strides and groups as in Matmul (tensor/ops.h). A and B are both f32 or both bf16; C is f32 or bf16; sums are
// f32. Each element of C is summed over k in one fixed order that depends on k alone: not on m, n, groups or threads.
// So a row has the same bits alone, in a batch and in a prefill, on one machine: instruction sets differ in their
// order.
#pragma once
#include "tensor/ops.h"

namespace t2l::cpu {

struct Gemm {
  void* c = nullptr;
  const void *a = nullptr, *b = nullptr, *bias = nullptr;  // bias: null or the type of A and B
  DType input = DType::F32, output = DType::F32;
  Matmul spec;
};
void gemm(const Gemm& g);

// The instruction sets the kernels are written for, best last; chosen once per process by CPU features.
// The environment variable T2L_CPU (avx2, avx512, avx512_bf16, amx) lowers the choice, for tests.
enum class Isa { AVX2, AVX512, AVX512BF16, AMX };
Isa isa();
const char* name_of(Isa isa);

}  // namespace t2l::cpu
