// Rotary position embedding (Su et al., "RoFormer", 2021), the pair of a dimension being half the head away.
#include "tensor/cpu/cpu.h"

namespace t2l::cpu {

void Cpu::rope(Tensor& y, const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& positions, bool inverse,
               bool accumulate) {
  const int64_t tokens = x.dim(0), heads = x.dim(1), dim = x.dim(2), half = dim / 2;
  const float sign = inverse ? -1.f : 1.f;
  with_type(y.dtype(), [&]<class T>(T*) {
    parallel(tokens, kGrain / std::max<int64_t>(heads * dim, 1), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin * heads; row < end * heads; ++row) {
        const int64_t position = positions.data<int32_t>()[row / heads];
        const float *c = cos.data<float>() + position * half, *s = sin.data<float>() + position * half;
        const T* from = x.data<T>() + row * dim;
        T* to = y.data<T>() + row * dim;
#pragma omp simd  // y may be x, but never another part of it
        for (int64_t j = 0; j < half; ++j) {
          const float a = float(from[j]), b = float(from[j + half]);
          put(to[j], a * c[j] - sign * b * s[j], accumulate);
          put(to[j + half], b * c[j] + sign * a * s[j], accumulate);
        }
      }
    });
  });
}

}  // namespace t2l::cpu
