// AdamW over the slab of a model's trainable parameters, with the gradient clipped to a norm.
#pragma once
#include "nn/parameters.h"

namespace t2l {

class Optimizer {
 public:
  // Moments start at zero. The parameters must be committed.
  Optimizer(Parameters& parameters, AdamW settings);

  // One update with the gradients collected so far, at this learning rate; then clears them.
  // Returns the norm of the gradient before clipping.
  float step(double lr);

  int64_t steps() const { return settings_.step - 1; }  // updates made
  const Tensor& first_moment() const { return m_; }     // f32, as the parameters' slab
  const Tensor& second_moment() const { return v_; }
  void restore(const Tensor& m, const Tensor& v, int64_t steps);

 private:
  Parameters& parameters_;
  AdamW settings_;
  Tensor m_, v_;
};

}  // namespace t2l
