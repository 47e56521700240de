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

inline void check_i32(const char* op, const Tensor& t, int64_t n) {
  T2L_CHECK(t.dtype() == DType::I32 && t.size() == n, "{}: {} {} where {} i32 are needed", op, name_of(t.dtype()),
            t.shape().str(), n);
}

inline void check_put_rows(const Tensor& y, const Tensor& x, const Tensor& ids) {
  T2L_CHECK(x.dtype() == y.dtype() && x.cols() == y.cols(), "put_rows: rows of {} {} into {} {}", name_of(x.dtype()),
            x.shape().str(), name_of(y.dtype()), y.shape().str());
  check_i32("put_rows", ids, x.rows());
}

// y: [tokens, n]  x: [tokens, k]  w: [samples, n, k], or [samples, k, n]  offsets: [samples + 1]
inline void check_segments(const char* op, const Tensor& y, const Tensor& x, const Tensor& w, const Tensor& offsets,
                           bool transpose_w) {
  const int64_t n = y.cols(), k = x.cols();
  T2L_CHECK(x.dtype() == y.dtype() && x.rank() == 2 && y.rank() == 2 && x.dim(0) == y.dim(0) && w.rank() == 3 &&
                w.dim(1) == (transpose_w ? n : k) && w.dim(2) == (transpose_w ? k : n),
            "{}: {} {}, {} {} and {}", op, name_of(y.dtype()), y.shape().str(), name_of(x.dtype()), x.shape().str(),
            w.shape().str());
  check_i32(op, offsets, w.dim(0) + 1);
}

inline void check_f32(const char* op, const Tensor& t) {
  T2L_CHECK(t.dtype() == DType::F32, "{}: {} where f32 is needed", op, name_of(t.dtype()));
}

}  // namespace t2l
