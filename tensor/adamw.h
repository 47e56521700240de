// One step of AdamW for one element, the same on every backend.
#pragma once
#include <cmath>

#include "tensor/ops.h"

namespace t2l {

// m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  p = p (1 - lr wd) - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) +
// eps)
struct AdamWStep {
  float decay, one_minus_b1, b2, one_minus_b2, size, root_correction2, eps, max_norm;

  explicit AdamWStep(const AdamW& h)
      : decay(float(1 - h.lr * h.weight_decay)),
        one_minus_b1(float(1 - h.beta1)),
        b2(float(h.beta2)),
        one_minus_b2(float(1 - h.beta2)),
        size(float(h.lr / (1 - std::pow(h.beta1, double(h.step))))),
        root_correction2(float(std::sqrt(1 - std::pow(h.beta2, double(h.step))))),
        eps(float(h.eps)),
        max_norm(float(h.max_norm)) {}

  // What gradients of this squared norm are multiplied by; NaN if it is NaN.
  T2L_HOST_DEVICE float clip(float squared_norm) const {
    const float c = max_norm / (sqrtf(squared_norm) + 1e-6f);
    return max_norm > 0 && !(c >= 1) ? c : 1;
  }

  T2L_HOST_DEVICE void operator()(float& p, float& m, float& v, float g) const {
    m += one_minus_b1 * (g - m);
    v = b2 * v + one_minus_b2 * g * g;
    p = decay * p - size * (m / (sqrtf(v) / root_correction2 + eps));
  }
};

}  // namespace t2l
