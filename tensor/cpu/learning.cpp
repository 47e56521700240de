// AdamW:  m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2,
//         p = p (1 - lr wd) - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)
// with g scaled to a norm of at most max_norm first; and what a training run draws and measures.
#include <cmath>
#include <vector>

#include "tensor/adamw.h"
#include "tensor/alike.h"
#include "tensor/cpu/cpu.h"
#include "tensor/random_values.h"

namespace t2l::cpu {
namespace {

// Sixteen running sums, so that the order does not depend on how wide the compiler's vectors are.
template <class T>
float squares(const T* x, int64_t n) {
  constexpr int64_t kLanes = 16;
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t k = 0; k < kLanes; ++k) sums[k] += float(x[i + k]) * float(x[i + k]);
  for (int64_t k = 0; i + k < n; ++k) sums[k] += float(x[i + k]) * float(x[i + k]);
  float total = 0;
  for (const float s : sums) total += s;
  return total;
}

// y[i] = the value of element i; value fills four elements from their random bits
template <class F>
void draw(Tensor& y, RandomKey key, F values) {
  float* out = y.data<float>();
  const int64_t n = y.size();
  parallel((n + 3) / 4, kGrain / 16, [=](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float four[4];
      values(four, philox(key, uint64_t(block)));
      std::copy_n(four, std::min<int64_t>(4, n - 4 * block), out + 4 * block);
    }
  });
}

}  // namespace

void Cpu::sum_squares(Tensor& y, const Tensor& x) {
  check_f32("sum_squares", y);
  T2L_CHECK(y.size() == 1, "sum_squares to {}", y.shape().str());
  constexpr int64_t kChunk = 4096;
  const int64_t n = x.size(), chunks = (n + kChunk - 1) / kChunk;
  std::vector<float> sums(static_cast<size_t>(chunks));
  with_type(x.dtype(), [&]<class T>(T*) {
    parallel(chunks, kGrain / kChunk, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        sums[size_t(i)] = squares(x.data<T>() + i * kChunk, std::min(kChunk, n - i * kChunk));
    });
  });
  double total = 0;
  for (const float s : sums) total += s;
  *y.data<float>() = float(total);
}

void Cpu::adamw(Tensor& p, Tensor& m, Tensor& v, const Tensor& g, const Tensor* squared_norm, const AdamW& h) {
  check_f32("adamw", p);
  check_alike("adamw", p, m, v, g);
  const AdamWStep step(h);
  const float clip = squared_norm ? step.clip(*squared_norm->data<float>()) : 1;
  float *ps = p.data<float>(), *ms = m.data<float>(), *vs = v.data<float>();
  const float* gs = g.data<float>();
  parallel(p.size(), kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) step(ps[i], ms[i], vs[i], gs[i] * clip);
  });
}

void Cpu::random_uniform(Tensor& y, float low, float high, RandomKey key) {
  check_f32("random_uniform", y);
  T2L_CHECK(low <= high, "random_uniform in [{}, {})", low, high);
  draw(y, key, [=](float(&four)[4], const Random4& bits) {
    for (int k = 0; k < 4; ++k) four[k] = uniform_between(bits.v[k], low, high);
  });
}

void Cpu::random_normal(Tensor& y, float mean, float std, RandomKey key) {
  check_f32("random_normal", y);
  draw(y, key, [=](float(&four)[4], const Random4& bits) {
    for (int k = 0; k < 4; k += 2) normal_pair(four[k], four[k + 1], bits.v[k], bits.v[k + 1]);
    for (float& x : four) x = fmaf(std, x, mean);
  });
}

}  // namespace t2l::cpu
