// Activations and their derivatives, in f32: SiLU x sigmoid(x); GELU x Phi(x), exact with erf; GELUTanh, Hendrycks &
// Gimpel's approximation x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
#pragma once
#include "cuda/gpu.cuh"
#include "tensor/ops.h"

namespace t2l::cuda {

template <Activation kind>
__device__ inline float activate(float x) {
  if constexpr (kind == Activation::SiLU) return x / (1 + expf(-x));
  if constexpr (kind == Activation::GELU) return 0.5f * x * (1 + erff(x * 0.70710678f));
  if constexpr (kind == Activation::GELUTanh) return 0.5f * x * (1 + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
  return x;
}

// The derivative at x.
template <Activation kind>
__device__ inline float activate_slope(float x) {
  if constexpr (kind == Activation::SiLU) {
    const float s = 1 / (1 + expf(-x));
    return s * (1 + x * (1 - s));
  }
  if constexpr (kind == Activation::GELU)
    return 0.5f * (1 + erff(x * 0.70710678f)) + x * 0.39894228f * expf(-0.5f * x * x);
  if constexpr (kind == Activation::GELUTanh) {
    const float t = tanhf(0.79788456f * (x + 0.044715f * x * x * x));
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.79788456f * (1 + 3 * 0.044715f * x * x);
  }
  return 1;
}

__device__ inline float activate(float x, Activation kind) {
  switch (kind) {
    case Activation::SiLU: return activate<Activation::SiLU>(x);
    case Activation::GELU: return activate<Activation::GELU>(x);
    case Activation::GELUTanh: return activate<Activation::GELUTanh>(x);
    case Activation::None: break;
  }
  return x;
}

__device__ inline float activate_slope(float x, Activation kind) {
  switch (kind) {
    case Activation::SiLU: return activate_slope<Activation::SiLU>(x);
    case Activation::GELU: return activate_slope<Activation::GELU>(x);
    case Activation::GELUTanh: return activate_slope<Activation::GELUTanh>(x);
    case Activation::None: break;
  }
  return 1;
}

}  // namespace t2l::cuda
