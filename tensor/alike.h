// What operations demand of their tensors, on every backend.
#pragma once
#include "tensor/tensor.h"

namespace t2l {

// All of one type and of one number of elements.
template <class... Rest>
void check_alike(const char* op, const Tensor& first, const Rest&... rest) {
  const auto check = [&](const Tensor& t) {
    T2L_CHECK(t.dtype() == first.dtype() && t.size() == first.size(), "{}: {} {} beside {} {}", op, name_of(t.dtype()),
              t.shape().str(), name_of(first.dtype()), first.shape().str());
  };
  (check(rest), ...);
}

// v: null, or one element of x's type for each column of x.
inline void check_columns(const char* op, const Tensor& x, const Tensor* v) {
  T2L_CHECK(!v || (v->dtype() == x.dtype() && v->size() == x.cols()), "{}: {} {} for the columns of {} {}", op,
            name_of(v->dtype()), v->shape().str(), name_of(x.dtype()), x.shape().str());
}

inline void check_f32(const char* op, const Tensor& t) {
  T2L_CHECK(t.dtype() == DType::F32, "{}: {} where f32 is needed", op, name_of(t.dtype()));
}

}  // namespace t2l
