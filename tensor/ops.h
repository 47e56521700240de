// What operations take besides tensors.
#pragma once
#include <cstdint>

#include "tensor/random.h"
#include "tensor/tensor.h"

namespace t2l {

enum class Activation : uint8_t { None, SiLU, GELU, GELUTanh };  // GELU is the exact one, with erf

// C[g] = act(op(A[g]) op(B[g]) + bias[g]) (+ C[g] if accumulate), for each group g < groups.
//
// op(A) is [m, k], stored [m, k] or, transposed, [k, m]; op(B) is [k, n], stored [k, n] or, transposed, [n, k] as a
// linear layer's weight; C is [m, n]. Row i of a stored matrix begins at g * stride + i * ld, in elements: a group may
// be a block of columns. bias[g] has n elements from g * stride_bias. accumulate excludes bias and activation.
struct Matmul {
  int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false, transpose_b = false;
  int64_t lda = 0, ldb = 0, ldc = 0;
  int64_t groups = 1, stride_a = 0, stride_b = 0, stride_c = 0, stride_bias = 0;
  Activation activation = Activation::None;
  bool accumulate = false;
};

// Throws std::logic_error if the types disagree or a matrix reaches outside its tensor.
void check_matmul(const Tensor& c, const Tensor& a, const Tensor& b, const Tensor* bias, const Matmul& spec);

// Who may see whom: query i attends to the keys first[i] .. last[i], inclusive rows of k; none if last < first, and
// then o is 0 and lse -inf. Both are non-decreasing within a sample. Sample s has the queries q_offsets[s] ..
// q_offsets[s + 1] and the keys k_begin[s] .. k_begin[s] + k_len[s]. Packing, causality, encoders, sliding windows and
// a KV cache are all such intervals. Score = softcap(scale q k), softcap(x) = c tanh(x / c), or x where c is 0.
// Query head h reads key head h / (heads / kv_heads).
struct AttentionSpans {
  Tensor q_offsets;       // i [samples + 1]
  Tensor k_begin, k_len;  // i [samples]
  Tensor first, last;     // i [queries]
  float scale = 1, softcap = 0;
};

// AdamW (Loshchilov & Hutter, "Decoupled weight decay regularization"), as torch.optim.AdamW computes it; step counts
// from 1. The gradient is first multiplied by min(1, max_norm / (norm + 1e-6)).
struct AdamW {
  // double, as 1 - float(0.999) would be off by 1e-5
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.01, max_norm = 0;
  int64_t step = 1;
};

}  // namespace t2l
