// AdamW over the slab of a model's trainable parameters, with the gradient clipped to a norm.
#pragma once
#include "nn/parameters.h"

namespace t2l {

class Optimizer {
 public:
  // Moments start at zero. The parameters must be committed. group > 0: each `group` elements of the slab are clipped
  // by themselves, as parameters of separate models.
  Optimizer(Parameters& parameters, AdamW settings, int64_t group = 0);

  // One update with the gradients collected so far, at this learning rate; then clears them.
  // Returns the norm of the gradient before clipping; of groups, the largest.
  float step(double lr);

  int64_t steps() const { return settings_.step - 1; }  // updates made
  const Tensor& first_moment() const { return m_; }     // f32, as the parameters' slab
  const Tensor& second_moment() const { return v_; }
  void restore(const Tensor& m, const Tensor& v, int64_t steps);

 private:
  Parameters& parameters_;
  AdamW settings_;
  int64_t group_;
  Tensor m_, v_;
};

}  // namespace t2l
