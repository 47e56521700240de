#include <cmath>

#include "tests/harness.h"

namespace t2l::test {
namespace {

// Who sees whom: a pattern of spans, made for given numbers of queries.
enum Mask : int64_t {
  kFull,
  kCausal,
  kWindow,  // causal, and of the last 20 keys only
  kGist,    // the second half of the queries sees the first half's last key, and itself causally
  kBlind,   // causal, but the first third sees nothing
  kCached,  // causal after 37 earlier keys; the keys of a sample do not follow those of the one before
};

// size: mask, heads, kv_heads, dim, softcap, then the lengths of the samples
void inputs(Inputs& in, const Size& s) {
  const int64_t mask = s[0], heads = s[1], kv_heads = s[2], dim = s[3];
  std::vector<int32_t> q_offsets{0}, k_begin, k_len, first, last;
  int32_t keys = 0;
  for (size_t i = 5; i < s.size(); ++i) {
    const int32_t length = int32_t(s[i]), past = mask == kCached ? 37 : 0;
    keys += mask == kCached ? 3 : 0;
    q_offsets.push_back(q_offsets.back() + length);
    k_begin.push_back(keys);
    k_len.push_back(length + past);
    for (int32_t q = 0; q < length; ++q) {
      int32_t from = keys, to = keys + past + q;
      if (mask == kFull) to = keys + length - 1;
      if (mask == kWindow) from = std::max(from, to - 19);
      if (mask == kGist && q >= length / 2) from = keys + std::max(length / 2 - 1, 0);
      if (mask == kBlind && q < length / 3) to = keys - 1;
      first.push_back(from);
      last.push_back(to);
    }
    keys += length + past;
  }
  const int64_t queries = q_offsets.back();
  in.normal({queries, heads, dim}).normal({keys, kv_heads, dim}).normal({keys, kv_heads, dim}, 0.3);
  in.integers(q_offsets).integers(k_begin).integers(k_len).integers(first).integers(last);
}

float scale_of(const Size& s) { return 1 / std::sqrt(float(s[3])); }

std::vector<Var> run(const std::vector<Var>& in, const Size& s) {
  return {attention(in[0], in[1], in[2],
                    {in[3].value, in[4].value, in[5].value, in[6].value, in[7].value, scale_of(s), float(s[4])})};
}

Arrays reference(const Arrays& in, const Size& s) {
  const int64_t heads = s[1], kv_heads = s[2], dim = s[3];
  const double softcap = double(s[4]);
  Array o(in[0].shape);
  std::vector<double> p;
  for (int64_t i = 0; i < o.dim(0); ++i)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t first = int64_t(in[6][i]), last = int64_t(in[7][i]), h_kv = h / (heads / kv_heads);
      double max = -INFINITY, sum = 0;
      p.clear();
      for (int64_t k = first; k <= last; ++k) {
        double x = 0;
        for (int64_t d = 0; d < dim; ++d) x += in[0](i * heads + h, d) * in[1](k * kv_heads + h_kv, d);
        x *= double(scale_of(s));
        if (softcap > 0) x = softcap * std::tanh(x / softcap);
        p.push_back(x);
        max = std::max(max, x);
      }
      for (double& x : p) sum += x = std::exp(x - max);
      for (int64_t k = first; k <= last; ++k)
        for (int64_t d = 0; d < dim; ++d)
          o(i * heads + h, d) += p[size_t(k - first)] / sum * in[2](k * kv_heads + h_kv, d);
    }
  return {o};
}

Work work(const Size& s, size_t bytes) {
  Inputs in(1);
  inputs(in, s);
  double pairs = 0;
  for (int64_t i = 0; i < in.list[0].array.dim(0); ++i) pairs += in.list[7].array[i] - in.list[6].array[i] + 1;
  return {double(2 * (in.list[0].array.v.size() + in.list[1].array.v.size())) * double(bytes),
          4 * pairs * double(s[1] * s[3])};
}

const OpTest attention_test{
    .name = "attention",
    .sizes =
        {
            {kFull, 1, 1, 2, 0, 3},
            {kFull, 2, 1, 10, 0, 1, 5, 0, 4},
            {kFull, 2, 2, 64, 0, 33, 70},
            {kFull, 1, 1, 34, 0, 150},
            {kFull, 2, 1, 128, 0, 5, 66},
            {kFull, 1, 1, 256, 0, 37, 3},
            {kCausal, 3, 1, 10, 0, 3, 6},
            {kCausal, 2, 1, 80, 0, 1, 33, 70},
            {kCausal, 4, 2, 64, 3, 70, 5},
            {kWindow, 2, 2, 34, 0, 45, 140},
            {kGist, 2, 1, 64, 2, 33, 70},
            {kBlind, 2, 1, 16, 0, 5, 70, 1},
            {kBlind, 1, 1, 2, 1, 6, 3},
            {kCached, 2, 1, 64, 0, 1, 40, 3},
            {kFull, 1, 1, 8, 0},
        },
    .perf = {{kFull, 12, 12, 64, 0, 512},
             {kFull, 12, 12, 32, 0, 30, 50, 20, 64, 100},
             {kCausal, 32, 8, 64, 0, 2048},
             {kCausal, 8, 4, 256, 50, 1024}},
    .inputs = inputs,
    .run = run,
    .reference = reference,
    // A score is a sum of up to 256 products, of size 1 to 4; exp turns its absolute error into a relative one. In bf16
    // CUDA rounds the probabilities too, and backward the scores' gradients.
    .f32 = 1e-6,
    .bf16 = 4e-3,
    .grad_f32 = 1.5e-6,
    .grad_bf16 = 6e-3,
    .work = work,
};
T2L_OP_TEST(attention_test);

}  // namespace
}  // namespace t2l::test
