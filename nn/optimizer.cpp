#include "nn/optimizer.h"

#include <cmath>

namespace t2l {

Optimizer::Optimizer(Parameters& parameters, AdamW settings)
    : parameters_(parameters),
      settings_(settings),
      m_(Tensor::zeros(parameters.values().shape(), DType::F32, parameters.values().device())),
      v_(Tensor::zeros(parameters.values().shape(), DType::F32, parameters.values().device())) {}

float Optimizer::step(double lr) {
  settings_.lr = lr;
  const Tensor p = parameters_.values(), g = parameters_.grads();
  Tensor squared_norm = Tensor::empty({1}, DType::F32, p.device());
  backend(p).sum_squares(squared_norm, g);
  AdamW settings = settings_;
  int64_t begin = 0;
  for (const int64_t end : {parameters_.decaying(), p.size()}) {
    Tensor ps = p.slice(begin, end), ms = m_.slice(begin, end), vs = v_.slice(begin, end);
    if (begin < end) backend(p).adamw(ps, ms, vs, g.slice(begin, end), &squared_norm, settings);
    begin = end;
    settings.weight_decay = 0;
  }
  ++settings_.step;
  parameters_.clear_grads();
  return std::sqrt(squared_norm.to_vector<float>()[0]);
}

void Optimizer::restore(const Tensor& m, const Tensor& v, int64_t steps) {
  m_.copy_from(m);
  v_.copy_from(v);
  settings_.step = steps + 1;
}

}  // namespace t2l
