// Rope: (a, b) = (x[j], x[j + dim/2]) -> (a cos - b sin, b cos + a sin); the gradient is the inverse rotation.
// Attention: p = exp(s - lse),  o = p v,  D = sum of do o:   dv = p^T do,   ds = p (do v^T - D) softcap'(s),
//            dq = scale ds k,   dk = scale ds^T q.   (Dao, "FlashAttention-2", 2023; nothing of size [queries, keys]
//            exists.)
#include "autograd/ops.h"

namespace t2l {

Var rope(const Var& x, const Tensor& cos, const Tensor& sin, const Tensor& positions) {
  T2L_CHECK(x.value.rank() == 3 && x.dim(2) % 2 == 0 && cos.dim(1) == x.dim(2) / 2 && cos.shape() == sin.shape() &&
                positions.size() == x.dim(0),
            "rope: {} with tables {} and {} positions", x.shape().str(), cos.shape().str(), positions.size());
  Tensor y = Tensor::empty(x.shape(), x.value.dtype(), x.value.device());
  backend(y).rope(y, x.value, cos, sin, positions, false, false);
  if (!Tape::wanted({&x})) return y;
  return Tape::record(y, [=, tx = GradTarget(x)](const Tensor& dy) {
    tx.write([&](Tensor& dx, bool accumulate) { backend(dy).rope(dx, dy, cos, sin, positions, true, accumulate); });
  });
}

Var attention(const Var& q, const Var& k, const Var& v, const AttentionSpans& spans) {
  T2L_CHECK(q.value.rank() == 3 && k.value.rank() == 3 && k.shape() == v.shape() && q.dim(2) == k.dim(2) &&
                q.dim(2) % 2 == 0 && q.dim(2) <= 256 && k.dim(1) > 0 && q.dim(1) % k.dim(1) == 0,
            "attention of queries {} and keys {}", q.shape().str(), k.shape().str());
  T2L_CHECK(spans.first.size() == q.dim(0) && spans.last.size() == q.dim(0) &&
                spans.k_begin.size() == spans.q_offsets.size() - 1 && spans.k_len.size() == spans.k_begin.size(),
            "attention: spans of {} queries for {}", spans.first.size(), q.dim(0));
  Tensor o = Tensor::empty(q.shape(), q.value.dtype(), q.value.device());
  Tensor lse = Tensor::empty({q.dim(0), q.dim(1)}, DType::F32, q.value.device());
  backend(o).attention_forward(o, lse, q.value, k.value, v.value, spans);
  if (!Tape::wanted({&q, &k, &v})) return o;
  return Tape::record(o, [=, tq = GradTarget(q), tk = GradTarget(k), tv = GradTarget(v), qv = q.value, kv = k.value,
                          vv = v.value](const Tensor& dout) {
    // The kernels overwrite; a gradient that already holds something is added to afterwards.
    Tensor d[3];
    const GradTarget* targets[3] = {&tq, &tk, &tv};
    for (int i = 0; i < 3; ++i) {
      const GradTarget& t = *targets[i];
      if (!t) continue;
      bool direct = t.slot->grad && !t.slot->written;
      for (int j = 0; j < i; ++j) direct = direct && targets[j]->slot != t.slot;  // k and v may be one variable
      d[i] = direct ? t.slot->grad : Tensor::empty(t.shape, t.dtype, t.device);
    }
    backend(dout).attention_backward(d[0] ? &d[0] : nullptr, d[1] ? &d[1] : nullptr, d[2] ? &d[2] : nullptr, dout, o,
                                     lse, qv, kv, vv, spans);
    for (int i = 0; i < 3; ++i) {
      if (!*targets[i]) continue;
      Slot& slot = *targets[i]->slot;
      if (std::exchange(slot.written, true))
        backend(dout).add(slot.grad, slot.grad, d[i]);
      else
        slot.grad = d[i];
    }
  });
}

}  // namespace t2l
