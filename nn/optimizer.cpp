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
  AdamW spared = settings_;
  spared.weight_decay = 0;
  for (int64_t i = 0; i < groups; ++i) {
    const int64_t begin = i * group_, end = std::min(begin + group_, n);
    const int64_t middle = std::clamp(parameters_.decaying(), begin, end);
    Tensor squared_norm = squared_norms.slice(i, i + 1);
    backend(p).sum_squares(squared_norm, g.slice(begin, end));
    const auto update = [&](int64_t from, int64_t to, const AdamW& settings) {
      if (from == to) return;
      Tensor ps = p.slice(from, to), ms = m_.slice(from, to), vs = v_.slice(from, to);
      backend(p).adamw(ps, ms, vs, g.slice(from, to), &squared_norm, settings);
    };
    update(begin, middle, settings_);
    update(middle, end, spared);
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
