// y = act(x w^T + b):   dx = dz w,   dw = dz^T x,   db = sum of the rows of dz,   dz = act'(z) dy
// c = op(a) op(b):      d op(a) = dc op(b)^T,   d op(b) = op(a)^T dc
#include "autograd/ops.h"

namespace t2l {
namespace {

Shape with_cols(const Shape& s, int64_t cols) {
  std::array<int64_t, Shape::kMaxRank> d{};
  std::copy(s.begin(), s.end(), d.begin());
  d[size_t(s.rank() - 1)] = cols;
  return Shape(std::span<const int64_t>(d.data(), size_t(s.rank())));
}

// The products of a linear layer with some rows of its weight.
struct Blocks {
  int64_t rows, in;
  WeightRows w;

  Matmul forward(Activation activation) const {
    return {.m = rows,
            .n = w.used,
            .k = in,
            .transpose_b = true,
            .lda = in,
            .ldb = in,
            .ldc = w.blocks * w.used,
            .groups = w.blocks,
            .stride_b = w.stride * in,
            .stride_c = w.used,
            .stride_bias = w.stride,
            .activation = activation};
  }
  Matmul dx(bool accumulate) const {  // of one block; blocks add up
    return {.m = rows, .n = in, .k = w.used, .lda = w.blocks * w.used, .ldb = in, .ldc = in, .accumulate = accumulate};
  }
  Matmul dw(bool accumulate) const {
    return {.m = w.used,
            .n = in,
            .k = rows,
            .transpose_a = true,
            .lda = w.blocks * w.used,
            .ldb = in,
            .ldc = in,
            .groups = w.blocks,
            .stride_a = w.used,
            .stride_c = w.stride * in,
            .accumulate = accumulate};
  }
};

Var linear_forward(const Var& x, const Var& w, const Var& b, const WeightRows& rows, Activation kind) {
  T2L_CHECK(w.value.rank() == 2 && x.value.cols() == w.dim(1), "linear: {} columns for a weight {}", x.value.cols(),
            w.shape().str());
  T2L_CHECK(rows.begin >= 0 && rows.blocks > 0 && rows.used >= 0 && (rows.blocks == 1 || rows.used <= rows.stride) &&
                rows.begin + (rows.blocks - 1) * rows.stride + rows.used <= w.dim(0),
            "linear: {} blocks of {} rows of a weight {}", rows.blocks, rows.used, w.shape().str());
  T2L_CHECK(!b || b.value.size() == w.dim(0), "linear: {} biases for a weight {}", b.value.size(), w.shape().str());
  Tensor y = Tensor::empty(with_cols(x.shape(), rows.blocks * rows.used), x.value.dtype(), x.value.device());
  const Tensor bias = b ? b.value.slice(rows.begin, b.dim(0)) : Tensor{};
  backend(y).matmul(y, x.value, w.value.slice(rows.begin, w.dim(0)), b ? &bias : nullptr,
                    Blocks{x.value.rows(), w.dim(1), rows}.forward(kind));
  return y;
}

// Zeroes the rows (or, in a bias, the elements) that `w` does not name.
void zero_others(const Tensor& t, const WeightRows& w) {
  int64_t end = 0;
  for (int64_t g = 0; g < w.blocks; ++g) {
    t.slice(end, w.begin + g * w.stride).zero();
    end = w.begin + g * w.stride + w.used;
  }
  t.slice(end, t.dim(0)).zero();
}

}  // namespace

Var linear_rows(const Var& x, const Var& w, const Var& b, const WeightRows& rows) {
  const Var y = linear_forward(x, w, b, rows, Activation::None);
  if (!Tape::wanted({&x, &w, &b})) return y;
  return Tape::record(
      y.value, [s = Blocks{x.value.rows(), w.dim(1), rows}, tx = GradTarget(x), tw = GradTarget(w), tb = GradTarget(b),
                wv = x.needs_grad() ? w.value : Tensor{}, xv = w.needs_grad() ? x.value : Tensor{}](const Tensor& dy) {
        Backend& on = backend(dy);
        tx.write([&](Tensor& dx, bool accumulate) {
          const Tensor flat = dy.reshape({dy.size()});
          for (int64_t g = 0; g < s.w.blocks; ++g) {
            const int64_t row = s.w.begin + g * s.w.stride;
            on.matmul(dx, flat.slice(std::min(g * s.w.used, dy.size()), dy.size()), wv.slice(row, row + s.w.used),
                      nullptr, s.dx(accumulate || g > 0));
          }
        });
        tw.write([&](Tensor& dw, bool accumulate) {
          if (!accumulate) zero_others(dw, s.w);
          Tensor named = dw.slice(s.w.begin, dw.dim(0));
          on.matmul(named, dy, xv, nullptr, s.dw(accumulate));
        });
        tb.write([&](Tensor& db, bool accumulate) {
          if (!accumulate) zero_others(db, s.w);
          Tensor sums = Tensor::empty({s.w.blocks, s.w.used}, dy.dtype(), dy.device());
          on.sum_rows(sums, dy, false);
          for (int64_t g = 0; g < s.w.blocks; ++g) {
            Tensor named = db.slice(s.w.begin + g * s.w.stride, s.w.begin + g * s.w.stride + s.w.used);
            on.scale(named, sums.slice(g, g + 1), 1, accumulate);
          }
        });
      });
}

Var linear(const Var& x, const Var& w, const Var& b, Activation kind) {
  const WeightRows all{.used = w.dim(0)};
  if (kind == Activation::None) return linear_rows(x, w, b, all);
  if (Tape::wanted({&x, &w, &b})) return activation(linear_rows(x, w, b, all), kind);
  return linear_forward(x, w, b, all, kind);
}

Var matmul(const Var& a, const Var& b, bool ta, bool tb) {
  const int rank = a.value.rank();
  T2L_CHECK((rank == 2 || rank == 3) && b.value.rank() == rank && (rank == 2 || a.dim(0) == b.dim(0)),
            "matmul of {} and {}", a.shape().str(), b.shape().str());
  const int64_t groups = rank == 3 ? a.dim(0) : 1;
  const int64_t m = a.dim(ta ? -1 : -2), k = a.dim(ta ? -2 : -1), n = b.dim(tb ? -2 : -1);
  T2L_CHECK(k == b.dim(tb ? -1 : -2), "matmul: inner sizes {} and {}", k, b.dim(tb ? -1 : -2));
  // c = op(a) op(b) for contiguous matrices
  const auto spec = [groups](int64_t m_, int64_t n_, int64_t k_, bool ta_, bool tb_, bool accumulate) {
    return Matmul{.m = m_,
                  .n = n_,
                  .k = k_,
                  .transpose_a = ta_,
                  .transpose_b = tb_,
                  .lda = ta_ ? m_ : k_,
                  .ldb = tb_ ? k_ : n_,
                  .ldc = n_,
                  .groups = groups,
                  .stride_a = m_ * k_,
                  .stride_b = k_ * n_,
                  .stride_c = m_ * n_,
                  .accumulate = accumulate};
  };
  Tensor c = Tensor::empty(rank == 3 ? Shape{groups, m, n} : Shape{m, n}, a.value.dtype(), a.value.device());
  backend(c).matmul(c, a.value, b.value, nullptr, spec(m, n, k, ta, tb, false));
  if (!Tape::wanted({&a, &b})) return c;
  return Tape::record(c, [=, da = GradTarget(a), db = GradTarget(b), av = b.needs_grad() ? a.value : Tensor{},
                          bv = a.needs_grad() ? b.value : Tensor{}](const Tensor& dc) {
    Backend& on = backend(dc);
    da.write([&](Tensor& d, bool accumulate) {
      ta ? on.matmul(d, bv, dc, nullptr, spec(k, m, n, tb, true, accumulate))
         : on.matmul(d, dc, bv, nullptr, spec(m, k, n, false, !tb, accumulate));
    });
    db.write([&](Tensor& d, bool accumulate) {
      tb ? on.matmul(d, dc, av, nullptr, spec(n, k, m, true, ta, accumulate))
         : on.matmul(d, av, dc, nullptr, spec(k, n, m, !ta, false, accumulate));
    });
  });
}

}  // namespace t2l
