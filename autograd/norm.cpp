// n = (x - mean) rstd,  y = n w + b:
//   dx = rstd (dn - mean(dn) - n mean(dn n)),  dn = dy w;   dw = sum of rows of dy n,   db = sum of rows of dy
// n = x rstd,  y = n (w + shift):   dx = rstd (dn - n mean(dn n)),  dn = dy (w + shift);   dw = sum of rows of dy n
// y = x s / max(|x|, eps):   dx = s / |x| (dy - x (x dy) / |x|^2),  or s dy / eps below eps
#include "autograd/ops.h"

namespace t2l {

Var layernorm(const Var& x, const Var& w, const Var& b, float eps) {
  T2L_CHECK(w.value.size() == x.value.cols() && b.value.size() == x.value.cols(),
            "layernorm: weight {} and bias {} for {}", w.shape().str(), b.shape().str(), x.shape().str());
  const int64_t rows = x.value.rows();
  const Device device = x.value.device();
  Tensor y = Tensor::empty(x.shape(), x.value.dtype(), device);
  Tensor mean = Tensor::empty({rows}, DType::F32, device), rstd = Tensor::empty({rows}, DType::F32, device);
  backend(y).layernorm_forward(y, mean, rstd, x.value, w.value, b.value, eps);
  if (!Tape::wanted({&x, &w, &b})) return y;
  return Tape::record(y, [=, tx = GradTarget(x), tw = GradTarget(w), tb = GradTarget(b), xv = x.value,
                          wv = x.needs_grad() ? w.value : Tensor{}](const Tensor& dy) {
    Backend& on = backend(dy);
    tx.write([&](Tensor& dx, bool accumulate) { on.layernorm_backward(dx, dy, xv, wv, mean, rstd, accumulate); });
    const auto params = [&](Tensor* dw, bool acc_w) {
      const auto run = [&](Tensor* db, bool acc_b) {
        on.layernorm_backward_params(dw, db, dy, xv, mean, rstd, acc_w, acc_b);
      };
      if (!tb) return run(nullptr, false);
      tb.write([&](Tensor& db, bool accumulate) { run(&db, accumulate); });
    };
    if (tw)
      tw.write([&](Tensor& dw, bool accumulate) { params(&dw, accumulate); });
    else if (tb)
      params(nullptr, false);
  });
}

Var rmsnorm(const Var& x, const Var& w, float eps, float shift) {
  T2L_CHECK(w.value.size() == x.value.cols(), "rmsnorm: weight {} for {}", w.shape().str(), x.shape().str());
  const Device device = x.value.device();
  Tensor y = Tensor::empty(x.shape(), x.value.dtype(), device);
  Tensor rstd = Tensor::empty({x.value.rows()}, DType::F32, device);
  backend(y).rmsnorm_forward(y, rstd, x.value, w.value, eps, shift);
  if (!Tape::wanted({&x, &w})) return y;
  return Tape::record(y, [=, tx = GradTarget(x), tw = GradTarget(w), xv = x.value,
                          wv = x.needs_grad() ? w.value : Tensor{}](const Tensor& dy) {
    Backend& on = backend(dy);
    tx.write([&](Tensor& dx, bool accumulate) { on.rmsnorm_backward(dx, dy, xv, wv, rstd, shift, accumulate); });
    tw.write([&](Tensor& dw, bool accumulate) { on.rmsnorm_backward_params(dw, dy, xv, rstd, accumulate); });
  });
}

Var l2_normalize(const Var& x, float s, float eps) {
  Tensor y = Tensor::empty(x.shape(), x.value.dtype(), x.value.device());
  Tensor norm = Tensor::empty({x.value.rows()}, DType::F32, x.value.device());
  backend(y).l2_normalize_forward(y, norm, x.value, s, eps);
  if (!Tape::wanted({&x})) return y;
  return Tape::record(y, [=, tx = GradTarget(x), xv = x.value](const Tensor& dy) {
    tx.write(
        [&](Tensor& dx, bool accumulate) { backend(dy).l2_normalize_backward(dx, dy, xv, norm, s, eps, accumulate); });
  });
}

}  // namespace t2l
