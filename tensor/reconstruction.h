// What both backends' losses of predicted adapters share.
#pragma once
#include "tensor/alike.h"

namespace t2l {

constexpr float kStdEpsilon = 1e-10f;  // the official code's

inline void check_l1_loss(const Tensor& loss, const Tensor* error, const Tensor* dprediction, const Tensor& prediction,
                          const Tensor& target, const Tensor& ids, const Tensor* mean, const Tensor* std) {
  check_f32("l1_loss", loss);
  check_f32("l1_loss", prediction);
  check_f32("l1_loss", target);
  if (error) check_alike("l1_loss", loss, *error);
  if (dprediction) check_alike("l1_loss", prediction, *dprediction);
  T2L_CHECK(loss.size() == 1 && prediction.rank() > 0 && target.rank() > 0 && prediction.size() > 0 &&
                prediction.size() / prediction.dim(0) * target.dim(0) == target.size() && bool(mean) == bool(std),
            "l1_loss: {} and targets {}", prediction.shape().str(), target.shape().str());
  check_i32("l1_loss", ids, prediction.dim(0));
  if (mean) {
    check_f32("l1_loss", *mean);
    check_alike("l1_loss", *mean, *std);
    T2L_CHECK(mean->size() == prediction.size() / prediction.dim(0), "l1_loss: mean {} of {}", mean->shape().str(),
              prediction.shape().str());
  }
}

// The sizes of dense_l1_loss: b a of `matrices` pairs, a: [rank, in], b: [out, rank]; `layers` of them to a row.
struct DenseSizes {
  int64_t matrices, layers, rank, in, out;

  double elements() const { return double(matrices) * double(in) * double(out); }
};

inline DenseSizes check_dense_l1_loss(const Tensor& loss, const Tensor* da, const Tensor* db, const Tensor& a,
                                      const Tensor& b, const Tensor& target_a, const Tensor& target_b,
                                      const Tensor& ids) {
  for (const Tensor* t : {&loss, &a, &b, &target_a, &target_b}) check_f32("dense_l1_loss", *t);
  if (da) check_alike("dense_l1_loss", a, *da);
  if (db) check_alike("dense_l1_loss", b, *db);
  const auto fits = [](const Tensor& x, const Tensor& y, int64_t rows) {
    return x.rank() == 4 && y.rank() == 4 && x.dim(0) == rows && y.dim(0) == rows && x.dim(1) == y.dim(1) &&
           x.dim(2) == y.dim(3);
  };
  T2L_CHECK(loss.size() == 1 && fits(a, b, a.dim(0)) && fits(target_a, target_b, target_a.dim(0)) &&
                target_a.dim(1) == a.dim(1) && target_a.dim(2) == a.dim(2) && target_a.dim(3) == a.dim(3) &&
                target_b.dim(2) == b.dim(2) && a.size() > 0 && b.size() > 0,
            "dense_l1_loss: A {} and B {}, targets {} and {}", a.shape().str(), b.shape().str(), target_a.shape().str(),
            target_b.shape().str());
  check_i32("dense_l1_loss", ids, a.dim(0));
  return {a.dim(0) * a.dim(1), a.dim(1), a.dim(2), a.dim(3), b.dim(2)};
}

}  // namespace t2l
