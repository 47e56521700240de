// Our own matrix product on the GPU; see gemm.cu. What cuBLASLt is measured against.
#pragma once
#include "cuda/gpu.cuh"
#include "tensor/ops.h"

namespace t2l::cuda {

// C[g] = act(op(A[g]) op(B[g]) + bias[g]) (+ C[g] if accumulate): all of Matmul, any sizes, strides and alignment.
// c: f32 or bf16; a, b: both f32 or both bf16; bias: null or the type of a. Only the tensors' memory and types are
// looked at; shapes are the spec's, and must have been checked.
void own_gemm(Stream stream, Tensor& c, const Tensor& a, const Tensor& b, const Tensor* bias, const Matmul& spec);

}  // namespace t2l::cuda
