// Element by element, in f32 and rounded once; what is summed over rows is summed in blocks of rows, in an order that
// depends on the shape alone. The loops are vectorised: T is f32 or bf16, a parameter of every function here.
#include <vector>

#include "tensor/alike.h"
#include "tensor/cpu/cpu.h"
#include "tensor/cpu/vmath.h"

namespace t2l::cpu {
namespace {

// y = values, or y += values: fill(values, i, n) computes those of the elements i .. i + n; i is a multiple of kBlock.
// Two loops, because compilers vectorise most f below only where `omp simd` says so, and rounding only where it does
// not.
constexpr int64_t kBlock = 256;
template <class T, class F>
void each_block(Tensor& y, bool accumulate, F fill) {
  const int64_t size = y.size();
  parallel((size + kBlock - 1) / kBlock, kGrain / kBlock, [=, data = y.data<T>()](int64_t begin, int64_t end) {
    float values[kBlock];
    for (int64_t i = begin * kBlock; i < std::min(size, end * kBlock); i += kBlock) {
      const int64_t n = std::min(kBlock, size - i);
      fill(values, i, n);
      T* out = data + i;
      if (accumulate)
        for (int64_t k = 0; k < n; ++k) out[k] = T(float(out[k]) + values[k]);
      else
        for (int64_t k = 0; k < n; ++k) out[k] = T(values[k]);
    }
  });
}

// y[i] = f(i), or y[i] += f(i)
template <class T, class F>
void each(Tensor& y, bool accumulate, F f) {
  each_block<T>(y, accumulate, [f](float* values, int64_t i, int64_t n) {
    const F value = f;  // its pointers in registers
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) values[k] = value(i + k);
  });
}

// Calls f with the activation and its derivative.
template <class F>
void with_activation(Activation kind, F&& f) {
  switch (kind) {
    case Activation::None: return f([](float x) { return x; }, [](float) { return 1.0f; });
    case Activation::SiLU: return f([](float x) { return silu(x); }, [](float x) { return silu_derivative(x); });
    case Activation::GELU: return f([](float x) { return gelu(x); }, [](float x) { return gelu_derivative(x); });
    case Activation::GELUTanh:
      return f([](float x) { return gelu_tanh(x); }, [](float x) { return gelu_tanh_derivative(x); });
  }
}

// [cols] as f32, or `otherwise` everywhere where it is not given
template <class T>
std::vector<float> columns(const Tensor* v, int64_t cols, float otherwise) {
  if (!v) return std::vector<float>(size_t(cols), otherwise);
  return {v->data<T>(), v->data<T>() + cols};
}

template <class T>
void affine(Tensor& y, const Tensor& x, const Tensor* factor, const Tensor* shift, bool accumulate) {
  const int64_t rows = x.rows(), cols = x.cols();
  const std::vector<float> f = columns<T>(factor, cols, 1), s = columns<T>(shift, cols, 0);
  parallel(rows, kGrain / std::max<int64_t>(cols, 1), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      T* out = y.data<T>() + r * cols;
      const T* in = x.data<T>() + r * cols;
      const float *factors = f.data(), *shifts = s.data();
#pragma omp simd
      for (int64_t c = 0; c < cols; ++c) put(out[c], float(in[c]) * factors[c] + shifts[c], accumulate);
    }
  });
}

// y[c] (+)= sum over r of term(r cols + c)
template <class T, class F>
void column_sums(Tensor& y, int64_t rows, int64_t cols, bool accumulate, F term) {
  constexpr int64_t kRows = 64, kCols = 512;
  const int64_t down = (rows + kRows - 1) / kRows, across = (cols + kCols - 1) / kCols;
  std::vector<float> sums(size_t(std::max<int64_t>(down, 1) * cols));  // [down, cols]
  parallel(down * across, kGrain / (kRows * std::clamp<int64_t>(cols, 1, kCols)), [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t r0 = piece / across * kRows, r1 = std::min(rows, r0 + kRows);
      const int64_t c0 = piece % across * kCols, c1 = std::min(cols, c0 + kCols);
      float* sum = sums.data() + piece / across * cols;
      for (int64_t r = r0; r < r1; ++r)
#pragma omp simd
        for (int64_t c = c0; c < c1; ++c) sum[c] += term(r * cols + c);
    }
  });
  parallel(cols, kGrain / std::max<int64_t>(down, 1), [&](int64_t begin, int64_t end) {
    float* total = sums.data();
    for (int64_t i = 1; i < down; ++i) {
      const float* sum = sums.data() + i * cols;
#pragma omp simd
      for (int64_t c = begin; c < end; ++c) total[c] += sum[c];
    }
    for (int64_t c = begin; c < end; ++c) put(y.data<T>()[c], total[c], accumulate);
  });
}

}  // namespace

void Cpu::add(Tensor& y, const Tensor& a, const Tensor& b) {
  check_alike("add", y, a, b);
  with_type(y.dtype(), [&]<class T>(T*) {
    each<T>(y, false, [a = a.data<T>(), b = b.data<T>()](int64_t i) { return float(a[i]) + float(b[i]); });
  });
}

void Cpu::scale(Tensor& y, const Tensor& x, float alpha, bool accumulate) {
  check_alike("scale", y, x);
  with_type(y.dtype(), [&]<class T>(T*) {
    each<T>(y, accumulate, [alpha, x = x.data<T>()](int64_t i) { return alpha * float(x[i]); });
  });
}

void Cpu::activation_forward(Tensor& y, const Tensor& x, Activation kind) {
  check_alike("activation_forward", y, x);
  with_type(y.dtype(), [&]<class T>(T*) {
    with_activation(kind, [&](auto act, auto) {
      each<T>(y, false, [act, x = x.data<T>()](int64_t i) { return act(float(x[i])); });
    });
  });
}

void Cpu::activation_backward(Tensor& dx, const Tensor& dy, const Tensor& x, Activation kind, bool accumulate) {
  check_alike("activation_backward", dx, dy, x);
  with_type(dx.dtype(), [&]<class T>(T*) {
    with_activation(kind, [&](auto, auto slope) {
      each<T>(dx, accumulate,
              [slope, dy = dy.data<T>(), x = x.data<T>()](int64_t i) { return float(dy[i]) * slope(float(x[i])); });
    });
  });
}

void Cpu::gated_forward(Tensor& y, const Tensor& gate, const Tensor& up, Activation kind) {
  check_alike("gated_forward", y, gate, up);
  with_type(y.dtype(), [&]<class T>(T*) {
    with_activation(kind, [&](auto act, auto) {
      each<T>(y, false,
              [act, g = gate.data<T>(), u = up.data<T>()](int64_t i) { return act(float(g[i])) * float(u[i]); });
    });
  });
}

void Cpu::gated_backward(Tensor* dgate, bool accumulate_gate, Tensor* dup, bool accumulate_up, const Tensor& dy,
                         const Tensor& gate, const Tensor& up, Activation kind) {
  check_alike("gated_backward", dy, gate, up, dgate ? *dgate : dy, dup ? *dup : dy);
  with_type(dy.dtype(), [&]<class T>(T*) {
    with_activation(kind, [&, d = dy.data<T>(), g = gate.data<T>(), u = up.data<T>()](auto act, auto slope) {
      if (dgate)
        each<T>(*dgate, accumulate_gate, [=](int64_t i) { return float(d[i]) * float(u[i]) * slope(float(g[i])); });
      if (dup) each<T>(*dup, accumulate_up, [=](int64_t i) { return float(d[i]) * act(float(g[i])); });
    });
  });
}

void Cpu::softcap_forward(Tensor& y, const Tensor& x, float cap) {
  check_alike("softcap_forward", y, x);
  with_type(y.dtype(), [&]<class T>(T*) {
    each<T>(y, false, [cap, x = x.data<T>()](int64_t i) { return cap * cpu::tanh(float(x[i]) / cap); });
  });
}

void Cpu::softcap_backward(Tensor& dx, const Tensor& dy, const Tensor& y, float cap, bool accumulate) {
  check_alike("softcap_backward", dx, dy, y);
  with_type(dx.dtype(), [&]<class T>(T*) {
    each<T>(dx, accumulate, [cap, dy = dy.data<T>(), y = y.data<T>()](int64_t i) {
      const float t = float(y[i]) / cap;
      return float(dy[i]) * (1 - t * t);
    });
  });
}

void Cpu::dropout(Tensor& y, const Tensor& x, float p, RandomKey key, bool accumulate) {
  check_alike("dropout", y, x);
  const float factor = 1 / (1 - p);
  with_type(y.dtype(), [&]<class T>(T*) {
    each_block<T>(y, accumulate, [=, data = x.data<T>()](float* values, int64_t i, int64_t n) {
      const T* in = data + i;
      uint32_t bits[kBlock];
      for (int64_t k = 0; k < n; k += 4) {
        const Random4 four = philox(key, uint64_t(i + k) / 4);
        std::copy_n(four.v, 4, bits + k);
      }
#pragma omp simd
      for (int64_t k = 0; k < n; ++k) values[k] = unit_uniform(bits[k]) >= p ? float(in[k]) * factor : 0;
    });
  });
}

void Cpu::cast(Tensor& y, const Tensor& x, bool accumulate) {
  T2L_CHECK(y.size() == x.size(), "cast: {} to {}", x.shape().str(), y.shape().str());
  with_type(y.dtype(), [&]<class Y>(Y*) {
    with_type(x.dtype(),
              [&]<class X>(X*) { each<Y>(y, accumulate, [x = x.data<X>()](int64_t i) { return float(x[i]); }); });
  });
}

void Cpu::affine_forward(Tensor& y, const Tensor& x, const Tensor* factor, const Tensor* shift) {
  check_alike("affine_forward", y, x);
  check_columns("affine_forward", x, factor);
  check_columns("affine_forward", x, shift);
  with_type(y.dtype(), [&]<class T>(T*) { affine<T>(y, x, factor, shift, false); });
}

void Cpu::affine_backward(Tensor& dx, const Tensor& dy, const Tensor* factor, bool accumulate) {
  check_alike("affine_backward", dx, dy);
  check_columns("affine_backward", dx, factor);
  with_type(dx.dtype(), [&]<class T>(T*) { affine<T>(dx, dy, factor, nullptr, accumulate); });
}

void Cpu::affine_backward_factor(Tensor& dfactor, const Tensor& dy, const Tensor& x, bool accumulate) {
  check_alike("affine_backward_factor", dy, x);
  check_columns("affine_backward_factor", x, &dfactor);
  with_type(x.dtype(), [&]<class T>(T*) {
    column_sums<T>(dfactor, x.rows(), x.cols(), accumulate,
                   [dy = dy.data<T>(), x = x.data<T>()](int64_t i) { return float(dy[i]) * float(x[i]); });
  });
}

void Cpu::sum_rows(Tensor& y, const Tensor& x, bool accumulate) {
  check_columns("sum_rows", x, &y);
  with_type(x.dtype(), [&]<class T>(T*) {
    column_sums<T>(y, x.rows(), x.cols(), accumulate, [x = x.data<T>()](int64_t i) { return float(x[i]); });
  });
}

}  // namespace t2l::cpu
