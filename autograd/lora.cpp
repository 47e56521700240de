// y[t] = alpha x[t] w[s]^T, token t of sample s:   dx[t] = alpha dy[t] w[s],   dw[s] = alpha sum over t of dy[t]^T x[t]
// y = base + scale b(a(x)) (Hu et al., "LoRA", 2021), t = a(x):   dt = scale b^T(dy),   db = scale dy^T t,
//   da = dt^T x,   dx = a^T(dt)
#include "autograd/ops.h"

namespace t2l {
namespace {

Tensor shrink(const Tensor& x, const Tensor& a, const Tensor& offsets, float alpha) {
  Tensor t = Tensor::empty({x.rows(), a.dim(1)}, x.dtype(), x.device());
  backend(x).segment_matmul(t, x, a, offsets, true, alpha, false);
  return t;
}

}  // namespace

Var segment_matmul(const Var& x, const Var& w, const Tensor& offsets, float alpha) {
  T2L_CHECK(w.value.rank() == 3, "segment_matmul with {}", w.shape().str());
  const Tensor y = shrink(x.value, w.value, offsets, alpha);
  if (!Tape::wanted({&x, &w})) return y;
  return Tape::record(y, [=, tx = GradTarget(x), tw = GradTarget(w), xv = w.needs_grad() ? x.value : Tensor{},
                          wv = x.needs_grad() ? w.value : Tensor{}](const Tensor& dy) {
    Backend& on = backend(dy);
    tx.write([&](Tensor& dx, bool accumulate) { on.segment_matmul(dx, dy, wv, offsets, false, alpha, accumulate); });
    tw.write([&](Tensor& dw, bool accumulate) { on.segment_matmul_weight(dw, dy, xv, offsets, alpha, accumulate); });
  });
}

Var lora(const Var& base, const Var& x, const Var& a, const Var& b, const Tensor& offsets, float scale) {
  T2L_CHECK(a.value.rank() == 3 && b.value.rank() == 3 && a.dim(0) == b.dim(0) && a.dim(1) == b.dim(2),
            "lora: A {} and B {}", a.shape().str(), b.shape().str());
  const Tensor t = shrink(x.value, a.value, offsets, 1);
  Tensor y = base.value.clone();
  backend(y).segment_matmul(y, t, b.value, offsets, true, scale, true);
  if (!Tape::wanted({&base, &x, &a, &b})) return y;
  const bool through_a = x.needs_grad() || a.needs_grad();
  return Tape::record(y, [=, tbase = GradTarget(base), tx = GradTarget(x), ta = GradTarget(a), tb = GradTarget(b),
                          xv = a.needs_grad() ? x.value : Tensor{}, av = x.needs_grad() ? a.value : Tensor{},
                          bv = through_a ? b.value : Tensor{}, tv = b.needs_grad() ? t : Tensor{}](const Tensor& dy) {
    Backend& on = backend(dy);
    tbase.write([&](Tensor& d, bool accumulate) { on.scale(d, dy, 1, accumulate); });
    tb.write([&](Tensor& db, bool accumulate) { on.segment_matmul_weight(db, dy, tv, offsets, scale, accumulate); });
    if (!through_a) return;
    Tensor dt = Tensor::empty({dy.rows(), bv.dim(2)}, dy.dtype(), dy.device());
    on.segment_matmul(dt, dy, bv, offsets, false, scale, false);
    ta.write([&](Tensor& da, bool accumulate) { on.segment_matmul_weight(da, dt, xv, offsets, 1, accumulate); });
    tx.write([&](Tensor& dx, bool accumulate) { on.segment_matmul(dx, dt, av, offsets, false, 1, accumulate); });
  });
}

}  // namespace t2l
