// exp, erf, tanh and the activations made of them, in f32, as plain inline code without branches or calls, so that a
// loop over any of them becomes vector code. Largest relative error against the exact value, over all finite f32
// (tests/gemm.cpp): exp 1.2e-7, sigmoid and silu 2.5e-7, tanh and erf 2e-7. Infinities give the limits, NaN stays NaN.
// The polynomials are minimax fits (Remez), their error far below rounding.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "tensor/ops.h"

namespace t2l::cpu {

namespace vmath {
// if_true where c, else if_false; in bits, as GCC turns a conditional into branches and then vectorises nothing
inline float select(bool c, float if_true, float if_false) {
  const uint32_t mask = -uint32_t(c);
  return std::bit_cast<float>((std::bit_cast<uint32_t>(if_true) & mask) | (std::bit_cast<uint32_t>(if_false) & ~mask));
}
// these keep a NaN in x
inline float at_most(float x, float high) { return select(high < x, high, x); }
inline float at_least(float x, float low) { return select(low > x, low, x); }
}  // namespace vmath

// e^x = 2^n e^r, |r| <= ln(2) / 2. 2^n is two factors, so that subnormal results and overflow are rounded as they
// should.
[[gnu::always_inline]] inline float exp(float x) {
  x = vmath::at_least(vmath::at_most(x, 89.f), -104.f);
  constexpr float kRound = 0x1.8p23f;  // adding it leaves n in the low bits
  const float shifted = x * 0x1.715476p0f + kRound;
  const float n = shifted - kRound;
  const float r = std::fma(n, 0x1.05c61p-29f, std::fma(n, -0x1.62e43p-1f, x));  // ln 2 in two pieces
  float p = 0.0013814599951729178f;
  p = std::fma(p, r, 0.008368716575205326f);
  p = std::fma(p, r, 0.04166838899254799f);
  p = std::fma(p, r, 0.1666652113199234f);
  p = std::fma(p, r, 0.4999999403953552f);
  p = std::fma(p * r, r, r) + 1;
  const int32_t e = int32_t(std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound));
  const int32_t half = e >> 1;
  const auto power_of_two = [](int32_t i) { return std::bit_cast<float>(uint32_t(i + 127) << 23); };
  return p * power_of_two(half) * power_of_two(e - half);
}

[[gnu::always_inline]] inline float sigmoid(float x) {
  const float e = cpu::exp(-std::fabs(x));
  return vmath::select(x < 0, e, 1) / (1 + e);
}

[[gnu::always_inline]] inline float tanh(float x) {
  const float a = std::fabs(x), s = x * x;
  float p = -0.00513866264373064f;
  p = std::fma(p, s, 0.02009197138249874f);
  p = std::fma(p, s, -0.05355885997414589f);
  p = std::fma(p, s, 0.1332911103963852f);
  p = std::fma(p, s, -0.3333319127559662f);
  const float large = 1 - 2 / (cpu::exp(2 * a) + 1);
  return std::copysign(vmath::select(a < 0.625f, std::fma(p * s, a, a), large), x);
}

[[gnu::always_inline]] inline float erf(float x) {
  const float a = std::fabs(x), s = x * x;
  float p = 7.853860734030604e-05f;
  p = std::fma(p, s, -0.0008010193705558777f);
  p = std::fma(p, s, 0.005188327748328447f);
  p = std::fma(p, s, -0.026853810995817184f);
  p = std::fma(p, s, 0.1128358542919159f);
  p = std::fma(p, s, -0.3761262595653534f);
  p = std::fma(p, s, 1.1283791065216064f);
  const float t = vmath::at_most(a, 4.f);  // 1 - erf(4) is below half an ulp of 1
  float q = 0.00018557395378593355f;       // q(t) = log(1 - erf(t))
  q = std::fma(q, t, -0.002939606783911586f);
  q = std::fma(q, t, 0.02180531620979309f);
  q = std::fma(q, t, -0.10303736478090286f);
  q = std::fma(q, t, -0.6382256746292114f);
  q = std::fma(q, t, -1.1270400285720825f);
  q = std::fma(q, t, -0.00035372027195990086f);
  return std::copysign(vmath::select(a < 1, p * a, 1 - cpu::exp(q)), x);
}

// x f(x) at -infinity is 0, though -infinity times 0 is not: from here on f(x) is 0 in f32 for all activations.
[[gnu::always_inline]] inline float finite_below(float x) { return vmath::at_least(x, -1e4f); }

[[gnu::always_inline]] inline float silu(float x) { return finite_below(x) * sigmoid(x); }
[[gnu::always_inline]] inline float silu_derivative(float x) {
  x = vmath::at_most(finite_below(x), 1e4f);
  const float s = sigmoid(x);
  return s * (1 + x * (1 - s));
}

[[gnu::always_inline]] inline float gelu(float x) {
  return 0.5f * finite_below(x) * (1 + cpu::erf(x * 0.70710678118654752f));
}
[[gnu::always_inline]] inline float gelu_derivative(float x) {
  x = vmath::at_most(finite_below(x), 1e4f);
  constexpr float kDensity0 = 0.39894228040143268f;  // 1 / sqrt(2 pi)
  return 0.5f * (1 + cpu::erf(x * 0.70710678118654752f)) + x * kDensity0 * cpu::exp(-0.5f * x * x);
}

// 0.5 x (1 + tanh(u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
[[gnu::always_inline]] inline float gelu_tanh(float x) {
  const float y = vmath::at_most(finite_below(x), 1e4f);
  const float u = 0.79788456080286536f * y * std::fma(0.044715f * y, y, 1.f);
  return 0.5f * finite_below(x) * (1 + cpu::tanh(u));
}
[[gnu::always_inline]] inline float gelu_tanh_derivative(float x) {
  x = vmath::at_most(finite_below(x), 1e4f);
  constexpr float kSlope = 0.79788456080286536f;
  const float t = cpu::tanh(kSlope * x * std::fma(0.044715f * x, x, 1.f));
  return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * kSlope * std::fma(3 * 0.044715f * x, x, 1.f);
}

}  // namespace t2l::cpu
