// The differentiable operations. Each computes at once, on its inputs' device and in their dtype, and records its
// gradient if one is wanted. Rows are all axes but the last. A Var without a value means "not given".
#pragma once
#include "autograd/tape.h"

namespace t2l {

// ---- products.cpp
// y = act(x w^T + b).  x: [.., in]  w: [out, in]  b: [out] or not given -> [.., out]
Var linear(const Var& x, const Var& w, const Var& b = {}, Activation activation = Activation::None);
// A linear layer with only some of its weight's rows; what is not wanted is not computed. Block g < blocks is the rows
// begin + g * stride .. begin + g * stride + used. -> [.., blocks * used]
struct WeightRows {
  int64_t begin = 0, blocks = 1, stride = 0, used = 0;
};
Var linear_rows(const Var& x, const Var& w, const Var& b, const WeightRows& rows);
// op(a) op(b) for matrices, or for batches of them: a: [m, k] or [batch, m, k] (transposed: [.., k, m]), b alike.
Var matmul(const Var& a, const Var& b, bool transpose_a = false, bool transpose_b = false);

// ---- elementwise.cpp
Var add(const Var& a, const Var& b);
Var scale(const Var& x, float alpha);
Var activation(const Var& x, Activation kind);
Var gated(const Var& gate, const Var& up, Activation kind);  // act(gate) up
Var softcap(const Var& x, float cap);                        // cap tanh(x / cap)
// Inverted dropout: an element is kept with probability 1 - p and then divided by it. p = 0 returns x.
Var dropout(const Var& x, float p, RandomKey key);
Var cast(const Var& x, DType dtype);
// x factor + shift, where factor and shift, [cols] each, apply to every row; either may be not given
Var affine(const Var& x, const Var& factor, const Var& shift);
Var reshape(const Var& x, Shape shape);
Var sum_squares(const Var& x);  // of all elements -> f32 [1]

// ---- rows.cpp
// y[i] = x[ids[i]].  x: [m, cols]  ids: i32 [n], each in 0 .. m - 1 (checked where the ids are made) -> [n, cols]
Var gather_rows(const Var& x, const Tensor& ids);
// base[i] + x[ids[i]].  base: [n, cols]
Var add_rows(const Var& base, const Var& x, const Tensor& ids);
// [x0[ids0[i]], x1[ids1[i]], ..] side by side -> [n, cols0 + cols1 + ..]
Var gather_columns(const std::vector<std::pair<Var, Tensor>>& parts);
Var slice_rows(const Var& x, int64_t begin, int64_t end);     // of the first axis
Var slice_columns(const Var& x, int64_t begin, int64_t end);  // x: [rows, cols] -> [rows, end - begin]
Var concat_rows(const std::vector<Var>& parts);               // along the first axis; all other extents equal
Var transpose(const Var& x);                                  // the last two axes
// mean of the rows offsets[s] .. offsets[s + 1].  x: [rows, cols]  offsets: i32 [samples + 1] -> [samples, cols]
Var segment_mean(const Var& x, const Tensor& offsets);

// ---- norm.cpp
// (x - mean) / sqrt(var + eps) w + b over the last axis, with the biased variance.  w, b: [cols]
Var layernorm(const Var& x, const Var& w, const Var& b, float eps);
// x scale / max(|x|, eps), row by row
Var l2_normalize(const Var& x, float scale, float eps = 1e-12f);

// x / sqrt(mean(x^2) + eps) (w + shift) over the last axis.  w: [cols]; shift 0 is Llama's, 1 Gemma's
Var rmsnorm(const Var& x, const Var& w, float eps, float shift = 0);

// ---- lora.cpp. Rows offsets[s] .. offsets[s + 1] are sample s.  offsets: i32 [samples + 1], from 0 to tokens
// alpha x w[s]^T.  x: [tokens, k]  w: [samples, n, k] -> [tokens, n]
Var segment_matmul(const Var& x, const Var& w, const Tensor& offsets, float alpha = 1);
// base + scale b(a(x)).  base: [tokens, out]  x: [tokens, in]  a: [samples, r, in]  b: [samples, out, r] -> [tokens,
// out]
Var lora(const Var& base, const Var& x, const Var& a, const Var& b, const Tensor& offsets, float scale);

// ---- logits.cpp
// The language-model head and its loss: logits = x w^T, in f32; the sum over rows of weight times cross-entropy with
// label smoothing (Szegedy et al., 2016), after softcap(z) = c tanh(z / c) where softcap is not 0.
// x: [rows, hidden]  w: [vocab, hidden]  targets: i32 [rows]  weights: f32 [rows]; 0 leaves a row and its target out
// -> f32 [1]. losses, if given, becomes the rows' weighted losses, f32 [rows]. Logits of chunk_rows rows exist at a
// time; 0 stands for some 64 MB.
Var cross_entropy(const Var& x, const Var& w, const Tensor& targets, const Tensor& weights, float smoothing,
                  float softcap, Tensor* losses = nullptr, int64_t chunk_rows = 0);

// ---- reconstruction.cpp. Row i of the predictions has row ids[i] of the targets, f32.  ids: i32 [n]
// mean |prediction - z|, z = (target - mean) / (std + 1e-10), or the target where mean and std are not given. error, if
// given, becomes the same in the targets' own unit.  prediction: [n, ..]  target: [m, ..]  mean, std: [..] -> f32 [1]
Var l1_loss(const Var& prediction, const Tensor& target, const Tensor& ids, const Tensor& mean = {},
            const Tensor& std = {}, Tensor* error = nullptr);
// mean |b a - scale target_b target_a|, of which nothing larger than a or b exists.  a: [n, layers, r, in]
// b: [n, layers, out, r]  target_a: [m, layers, r, in]  target_b: [m, layers, out, r] -> f32 [1]
Var dense_l1_loss(const Var& a, const Var& b, const Tensor& target_a, const Tensor& target_b, const Tensor& ids,
                  float scale);

// ---- attention.cpp
// Rotary position embedding, halves form.  x: [tokens, heads, dim]  cos, sin: f32 [positions, dim / 2]
// positions: i32 [tokens]
Var rope(const Var& x, const Tensor& cos, const Tensor& sin, const Tensor& positions);
// softmax(softcap(scale q k^T)) v over the keys of each query's span.  q: [queries, heads, dim]
// k, v: [keys, kv_heads, dim]; dim even, at most 256; heads a multiple of kv_heads -> [queries, heads, dim]
Var attention(const Var& q, const Var& k, const Var& v, const AttentionSpans& spans);

}  // namespace t2l
