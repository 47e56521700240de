#include "tensor/ops.h"

namespace t2l {
namespace {

// Elements from the first to the last that the matrices of all groups touch.
int64_t extent(int64_t rows, int64_t cols, int64_t ld, int64_t groups, int64_t stride) {
  return rows == 0 || cols == 0 || groups == 0 ? 0 : (groups - 1) * stride + (rows - 1) * ld + cols;
}

}  // namespace

void check_matmul(const Tensor& c, const Tensor& a, const Tensor& b, const Tensor* bias, const Matmul& s) {
  T2L_CHECK(a.dtype() == b.dtype() && a.dtype() != DType::I32 && (c.dtype() == DType::F32 || c.dtype() == a.dtype()) &&
                (!bias || bias->dtype() == a.dtype()),
            "matmul: {} x {} to {}", name_of(a.dtype()), name_of(b.dtype()), name_of(c.dtype()));
  T2L_CHECK(s.m >= 0 && s.n >= 0 && s.k >= 0 && s.groups >= 0, "matmul: negative sizes");
  const auto fits = [&](const Tensor& t, int64_t rows, int64_t cols, int64_t ld, int64_t stride) {
    return ld >= cols && stride >= 0 && extent(rows, cols, ld, s.groups, stride) <= t.size();
  };
  T2L_CHECK(fits(a, s.transpose_a ? s.k : s.m, s.transpose_a ? s.m : s.k, s.lda, s.stride_a) &&
                fits(b, s.transpose_b ? s.n : s.k, s.transpose_b ? s.k : s.n, s.ldb, s.stride_b) &&
                fits(c, s.m, s.n, s.ldc, s.stride_c) && (!bias || (s.groups - 1) * s.stride_bias + s.n <= bias->size()),
            "matmul: {} x {} x {} ({} groups) reaches outside {}, {} or {}", s.m, s.n, s.k, s.groups, a.shape().str(),
            b.shape().str(), c.shape().str());
  T2L_CHECK(!s.accumulate || (!bias && s.activation == Activation::None),
            "matmul: accumulate with a bias or activation");
}

}  // namespace t2l
