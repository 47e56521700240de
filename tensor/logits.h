// What both backends' operations on logits share.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "tensor/alike.h"
#include "tensor/random.h"

namespace t2l {

// Unsigned integers in the order of the floats; -0 equals 0, and NaN is the least, as -infinity.
T2L_HOST_DEVICE inline uint32_t ordered_bits(float x) {
  if (!(x > -INFINITY)) return 0x007fffff;  // that of -infinity
  x += 0.0f;
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
constexpr uint32_t kLeastFinite = 0x00800000;  // ordered bits of the least number above -infinity

inline void check_cross_entropy(const Tensor& loss, const Tensor* dlogits, const Tensor& logits, const Tensor& targets,
                                const Tensor& weights, float smoothing, float softcap) {
  const int64_t rows = logits.rows();
  check_f32("cross_entropy", loss);
  check_alike("cross_entropy", loss, weights);
  if (dlogits) check_alike("cross_entropy", *dlogits, logits);
  check_i32("cross_entropy", targets, rows);
  T2L_CHECK(loss.size() == rows && smoothing >= 0 && smoothing <= 1 && softcap >= 0,
            "cross_entropy: {} losses for logits {}, smoothing {}, softcap {}", loss.size(), logits.shape().str(),
            smoothing, softcap);
}

inline void check_sample(const Tensor& ids, const Tensor& logits, const Tensor& uniform, float temperature) {
  check_i32("sample", ids, logits.rows());
  check_f32("sample", uniform);
  T2L_CHECK(uniform.size() == ids.size() && temperature >= 0, "sample: {} numbers for logits {}, temperature {}",
            uniform.size(), logits.shape().str(), temperature);
  T2L_CHECK(logits.cols() <= 1 << 24, "sample: {} logits in a row", logits.cols());  // f32 counts them
}

}  // namespace t2l
