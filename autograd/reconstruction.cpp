// loss = mean |p - z|:                  dp = sign(p - z) / elements
// loss = mean |D|, D = b a - s b* a*:   db = S a^T,  da = b^T S,  S = sign(D) / elements
// Gradients are made together with the loss and only scaled in backward.
#include "autograd/ops.h"

namespace t2l {
namespace {

Tensor place_for(const Var& x, bool wanted) {
  return wanted && x.needs_grad() ? Tensor::empty(x.shape(), DType::F32, x.value.device()) : Tensor{};
}
Tensor* given(Tensor& t) { return t ? &t : nullptr; }
const Tensor* given(const Tensor& t) { return t ? &t : nullptr; }

}  // namespace

Var l1_loss(const Var& prediction, const Tensor& target, const Tensor& ids, const Tensor& mean, const Tensor& std,
            Tensor* error) {
  const Device device = prediction.value.device();
  const bool wanted = Tape::wanted({&prediction});
  Tensor loss = Tensor::empty({1}, DType::F32, device), dp = place_for(prediction, wanted);
  if (error) *error = Tensor::empty({1}, DType::F32, device);
  backend(device).l1_loss(loss, error, given(dp), prediction.value, target, ids, given(mean), given(std));
  if (!wanted) return loss;
  return Tape::record(loss, [dp, tp = GradTarget(prediction)](const Tensor& dy) {
    const float factor = dy.to_vector<float>()[0];
    tp.write([&](Tensor& d, bool accumulate) { backend(dy).scale(d, dp, factor, accumulate); });
  });
}

Var dense_l1_loss(const Var& a, const Var& b, const Tensor& target_a, const Tensor& target_b, const Tensor& ids,
                  float scale) {
  const Device device = a.value.device();
  const bool wanted = Tape::wanted({&a, &b});
  Tensor loss = Tensor::empty({1}, DType::F32, device), da = place_for(a, wanted), db = place_for(b, wanted);
  backend(device).dense_l1_loss(loss, given(da), given(db), a.value, b.value, target_a, target_b, ids, scale);
  if (!wanted) return loss;
  return Tape::record(loss, [da, db, ta = GradTarget(a), tb = GradTarget(b)](const Tensor& dy) {
    const float factor = dy.to_vector<float>()[0];
    ta.write([&](Tensor& d, bool accumulate) { backend(dy).scale(d, da, factor, accumulate); });
    tb.write([&](Tensor& d, bool accumulate) { backend(dy).scale(d, db, factor, accumulate); });
  });
}

}  // namespace t2l
