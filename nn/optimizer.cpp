#include "nn/optimizer.h"

#include <algorithm>
#include <cmath>

namespace t2l {

Optimizer::Optimizer(Parameters& parameters, AdamW settings, int64_t group)
    : parameters_(parameters),
      settings_(settings),
      group_(group > 0 ? group : std::max<int64_t>(parameters.values().size(), 1)),
      m_(Tensor::zeros(parameters.values().shape(), DType::F32, parameters.values().device())),
      v_(Tensor::zeros(parameters.values().shape(), DType::F32, parameters.values().device())) {}

float Optimizer::step(double lr) {
  settings_.lr = lr;
  const Tensor &p = parameters_.values(), &g = parameters_.grads();
  const int64_t n = p.size(), groups = (n + group_ - 1) / group_;
  const Tensor squared_norms = Tensor::zeros({groups}, DType::F32, p.device());
  for (int64_t i = 0; i < groups; ++i) {
    const int64_t begin = i * group_, end = std::min(begin + group_, n);
    const auto part = [&](const Tensor& slab) { return slab.slice(begin, end); };
    Tensor squared_norm = squared_norms.slice(i, i + 1), pi = part(p), mi = part(m_), vi = part(v_);
    backend(p).sum_squares(squared_norm, part(g));
    backend(p).adamw(pi, mi, vi, part(g), &squared_norm, settings_);
  }
  ++settings_.step;
  parameters_.clear_grads();
  float largest = 0;  // NaN if any is
  for (const float squared : squared_norms.to_vector<float>()) largest = squared <= largest ? largest : squared;
  return std::sqrt(largest);
}

void Optimizer::restore(const Tensor& m, const Tensor& v, int64_t steps) {
  m_.copy_from(m);
  v_.copy_from(v);
  settings_.step = steps + 1;
}

}  // namespace t2l
