// y = a + b:           da = db = dy            y = alpha x:    dx = alpha dy
// y = act(x):          dx = act'(x) dy         y = act(g) u:   dg = act'(g) u dy,  du = act(g) dy
// y = x f + s:         dx = f dy,  df = sum of rows of x dy,  ds = sum of rows of dy
// y = c tanh(x / c):   dx = (1 - (y / c)^2) dy
// dropout and cast are linear: their gradient is themselves, with the same key, and the cast back.
#include "autograd/ops.h"

namespace t2l {
namespace {

Tensor like(const Tensor& x) { return Tensor::empty(x.shape(), x.dtype(), x.device()); }

void check_same(const char* op, const Var& a, const Var& b) {
  T2L_CHECK(a.shape() == b.shape() && a.value.dtype() == b.value.dtype(), "{} of {} {} and {} {}", op,
            name_of(a.value.dtype()), a.shape().str(), name_of(b.value.dtype()), b.shape().str());
}

}  // namespace

Var add(const Var& a, const Var& b) {
  check_same("add", a, b);
  Tensor y = like(a.value);
  backend(y).add(y, a.value, b.value);
  if (!Tape::wanted({&a, &b})) return y;
  return Tape::record(y, [ta = GradTarget(a), tb = GradTarget(b)](const Tensor& dy) {
    for (const GradTarget* t : {&ta, &tb})
      t->write([&](Tensor& d, bool accumulate) { backend(dy).scale(d, dy, 1, accumulate); });
  });
}

Var scale(const Var& x, float alpha) {
  Tensor y = like(x.value);
  backend(y).scale(y, x.value, alpha, false);
  if (!Tape::wanted({&x})) return y;
  return Tape::record(y, [=, tx = GradTarget(x)](const Tensor& dy) {
    tx.write([&](Tensor& dx, bool accumulate) { backend(dy).scale(dx, dy, alpha, accumulate); });
  });
}

Var activation(const Var& x, Activation kind) {
  Tensor y = like(x.value);
  backend(y).activation_forward(y, x.value, kind);
  if (!Tape::wanted({&x})) return y;
  return Tape::record(y, [=, tx = GradTarget(x), xv = x.value](const Tensor& dy) {
    tx.write([&](Tensor& dx, bool accumulate) { backend(dy).activation_backward(dx, dy, xv, kind, accumulate); });
  });
}

Var gated(const Var& gate, const Var& up, Activation kind) {
  check_same("gated", gate, up);
  Tensor y = like(gate.value);
  backend(y).gated_forward(y, gate.value, up.value, kind);
  if (!Tape::wanted({&gate, &up})) return y;
  return Tape::record(
      y, [kind, tg = GradTarget(gate), tu = GradTarget(up), gv = gate.value, uv = up.value](const Tensor& dy) {
        const auto both = [&](Tensor* dgate, bool acc_gate) {
          if (!tu) return backend(dy).gated_backward(dgate, acc_gate, nullptr, false, dy, gv, uv, kind);
          tu.write([&](Tensor& dup, bool acc_up) {
            backend(dy).gated_backward(dgate, acc_gate, &dup, acc_up, dy, gv, uv, kind);
          });
        };
        if (!tg) return both(nullptr, false);
        tg.write([&](Tensor& dgate, bool accumulate) { both(&dgate, accumulate); });
      });
}

Var softcap(const Var& x, float cap) {
  T2L_CHECK(cap > 0, "softcap of {}", cap);
  Tensor y = like(x.value);
  backend(y).softcap_forward(y, x.value, cap);
  if (!Tape::wanted({&x})) return y;
  return Tape::record(y, [=, tx = GradTarget(x)](const Tensor& dy) {
    tx.write([&](Tensor& dx, bool accumulate) { backend(dy).softcap_backward(dx, dy, y, cap, accumulate); });
  });
}

Var dropout(const Var& x, float p, RandomKey key) {
  T2L_CHECK(p >= 0 && p < 1, "dropout with probability {}", p);
  if (p == 0) return x;
  Tensor y = like(x.value);
  backend(y).dropout(y, x.value, p, key, false);
  if (!Tape::wanted({&x})) return y;
  return Tape::record(y, [=, tx = GradTarget(x)](const Tensor& dy) {
    tx.write([&](Tensor& dx, bool accumulate) { backend(dy).dropout(dx, dy, p, key, accumulate); });
  });
}

Var cast(const Var& x, DType dtype) {
  if (x.value.dtype() == dtype) return x;
  Tensor y = x.value.to(dtype);
  if (!Tape::wanted({&x})) return y;
  return Tape::record(y, [tx = GradTarget(x)](const Tensor& dy) {
    tx.write([&](Tensor& dx, bool accumulate) { backend(dy).cast(dx, dy, accumulate); });
  });
}

Var affine(const Var& x, const Var& factor, const Var& shift) {
  for (const Var* v : {&factor, &shift})
    T2L_CHECK(!*v || v->value.size() == x.value.cols(), "affine: {} values for {} columns", v->value.size(),
              x.value.cols());
  Tensor y = like(x.value);
  backend(y).affine_forward(y, x.value, factor ? &factor.value : nullptr, shift ? &shift.value : nullptr);
  if (!Tape::wanted({&x, &factor, &shift})) return y;
  return Tape::record(y, [tx = GradTarget(x), tf = GradTarget(factor), ts = GradTarget(shift),
                          fv = x.needs_grad() ? factor.value : Tensor{},
                          xv = factor.needs_grad() ? x.value : Tensor{}](const Tensor& dy) {
    tx.write([&](Tensor& dx, bool accumulate) { backend(dy).affine_backward(dx, dy, fv ? &fv : nullptr, accumulate); });
    tf.write([&](Tensor& df, bool accumulate) { backend(dy).affine_backward_factor(df, dy, xv, accumulate); });
    ts.write([&](Tensor& ds, bool accumulate) { backend(dy).sum_rows(ds, dy, accumulate); });
  });
}

Var reshape(const Var& x, Shape shape) {
  Tensor y = x.value.reshape(shape);
  if (!Tape::wanted({&x})) return y;
  return Tape::record(y, [tx = GradTarget(x)](const Tensor& dy) {
    tx.write([&](Tensor& dx, bool accumulate) { backend(dy).scale(dx, dy, 1, accumulate); });
  });
}

Var sum_squares(const Var& x) {
  Tensor y = Tensor::empty({1}, DType::F32, x.value.device());
  backend(y).sum_squares(y, x.value);
  if (!Tape::wanted({&x})) return y;
  return Tape::record(y, [tx = GradTarget(x), xv = x.value](const Tensor& dy) {
    const float factor = 2 * dy.to_vector<float>()[0];
    tx.write([&](Tensor& dx, bool accumulate) { backend(dx).scale(dx, xv, factor, accumulate); });
  });
}

}  // namespace t2l
