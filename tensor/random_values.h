// What is made of random bits, by one formula on every backend.
#pragma once
#include <cmath>

#include "tensor/random.h"

namespace t2l {

// Uniform in [low, high); low if they are equal. fma and the last step are explicit so that all compilers round alike:
// low + (high - low) u may round to high.
T2L_HOST_DEVICE inline float uniform_between(uint32_t bits, float low, float high) {
  const float x = fmaf(high - low, unit_uniform(bits), low);
  return x < high ? x : nextafterf(high, low);
}

// Two independent normal values of two words of random bits (Box & Muller, "A note on the generation of random normal
// deviates", 1958): radius sqrt(-2 ln u), angle 2 pi v. 24 bits reach 5.7 standard deviations.
T2L_HOST_DEVICE inline void normal_pair(float& x, float& y, uint32_t a, uint32_t b) {
  const float r = sqrtf(-2 * logf(1 - unit_uniform(a)));  // 1 - u is exact and never 0
#ifdef __CUDA_ARCH__
  float sine, cosine;
  sincospif(2 * unit_uniform(b), &sine, &cosine);
#else
  const float angle = 6.283185307f * unit_uniform(b), sine = sinf(angle), cosine = cosf(angle);
#endif
  x = r * cosine;
  y = r * sine;
}

}  // namespace t2l
