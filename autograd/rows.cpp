// y[i] = x[ids[i]]:   dx[r] = sum over ids[i] = r of dy[i]
// y[s] = mean of segment s:   dx[i] = dy[s] / length of s, for i in s
#include <numeric>

#include "autograd/ops.h"

namespace t2l {
namespace {

void check_ids(const Tensor& ids, int64_t n) {
  T2L_CHECK(ids.dtype() == DType::I32 && ids.rank() == 1 && ids.dim(0) == n, "{} {} ids for {} rows",
            name_of(ids.dtype()), ids.shape().str(), n);
}

}  // namespace

Var gather_columns(const std::vector<std::pair<Var, Tensor>>& parts) {
  int64_t width = 0;
  bool wanted = false;
  const int64_t n = parts.at(0).second.dim(0);
  for (auto& [x, ids] : parts) {
    T2L_CHECK(x.value.rank() == 2, "rows of {}", x.shape().str());
    check_ids(ids, n);
    width += x.dim(1);
    wanted |= Tape::wanted({&x});
  }
  const Tensor& x0 = parts[0].first.value;
  // Zeros, since a Trace that looks for NaN sees all of y after each of several parts.
  Tensor y = parts.size() == 1 ? Tensor::empty({n, width}, x0.dtype(), x0.device())
                               : Tensor::zeros({n, width}, x0.dtype(), x0.device());
  int64_t column = 0;
  for (auto& [x, ids] : parts) {
    backend(y).gather_rows(y, column, x.value, ids, false);
    column += x.dim(1);
  }
  if (!wanted) return y;
  std::vector<std::pair<GradTarget, Tensor>> targets(parts.begin(), parts.end());
  return Tape::record(y, [targets](const Tensor& dy) {
    int64_t begin = 0;
    for (auto& [target, ids_of] : targets) {
      const Tensor& ids = ids_of;  // a lambda cannot capture a binding
      target.write([&](Tensor& dx, bool accumulate) { backend(dy).scatter_rows(dx, dy, begin, ids, accumulate); });
      begin += target.shape[1];
    }
  });
}

Var gather_rows(const Var& x, const Tensor& ids) { return gather_columns({{x, ids}}); }

Var add_rows(const Var& base, const Var& x, const Tensor& ids) {
  T2L_CHECK(base.value.rank() == 2 && x.value.rank() == 2 && base.dim(1) == x.dim(1), "rows of {} added to {}",
            x.shape().str(), base.shape().str());
  check_ids(ids, base.dim(0));
  Tensor y = base.value.clone();
  backend(y).gather_rows(y, 0, x.value, ids, true);
  if (!Tape::wanted({&base, &x})) return y;
  return Tape::record(y, [tb = GradTarget(base), tx = GradTarget(x), ids](const Tensor& dy) {
    tb.write([&](Tensor& d, bool accumulate) { backend(dy).scale(d, dy, 1, accumulate); });
    tx.write([&](Tensor& dx, bool accumulate) { backend(dy).scatter_rows(dx, dy, 0, ids, accumulate); });
  });
}

Var slice_rows(const Var& x, int64_t begin, int64_t end) {
  Tensor y = x.value.slice(begin, end);
  if (!Tape::wanted({&x})) return y;
  return Tape::record(y, [=, tx = GradTarget(x)](const Tensor& dy) {
    tx.write([&](Tensor& dx, bool accumulate) {
      if (!accumulate) dx.zero();
      Tensor rows = dx.slice(begin, end);
      backend(dy).scale(rows, dy, 1, accumulate);
    });
  });
}

Var slice_columns(const Var& x, int64_t begin, int64_t end) {
  T2L_CHECK(x.value.rank() == 2 && 0 <= begin && begin <= end && end <= x.dim(1), "columns {} to {} of {}", begin, end,
            x.shape().str());
  std::vector<int32_t> rows(size_t(x.dim(0)));
  std::iota(rows.begin(), rows.end(), 0);
  const Tensor ids = Tensor::from(rows, x.value.device());
  Tensor y = Tensor::empty({x.dim(0), end - begin}, x.value.dtype(), x.value.device());
  backend(y).scatter_rows(y, x.value, begin, ids, false);
  if (!Tape::wanted({&x})) return y;
  return Tape::record(y, [=, tx = GradTarget(x)](const Tensor& dy) {
    tx.write([&](Tensor& dx, bool accumulate) {
      if (!accumulate) dx.zero();
      backend(dy).gather_rows(dx, begin, dy, ids, true);
    });
  });
}

Var concat_rows(const std::vector<Var>& parts) {
  std::array<int64_t, Shape::kMaxRank> d{};
  const Shape& s = parts.at(0).shape();
  std::copy(s.begin(), s.end(), d.begin());
  d[0] = 0;
  bool wanted = false;
  for (const Var& x : parts) {
    T2L_CHECK(x.value.rank() == s.rank() && std::equal(s.begin() + 1, s.end(), x.shape().begin() + 1),
              "concat_rows of {} and {}", s.str(), x.shape().str());
    d[0] += x.dim(0);
    wanted |= Tape::wanted({&x});
  }
  const Tensor& x0 = parts[0].value;
  Tensor y = Tensor::empty(Shape(std::span<const int64_t>(d.data(), size_t(s.rank()))), x0.dtype(), x0.device());
  int64_t row = 0;
  for (const Var& x : parts) {
    y.slice(row, row + x.dim(0)).copy_from(x.value);
    row += x.dim(0);
  }
  if (!wanted) return y;
  return Tape::record(y, [targets = std::vector<GradTarget>(parts.begin(), parts.end())](const Tensor& dy) {
    int64_t begin = 0;
    for (const GradTarget& t : targets) {
      t.write([&](Tensor& dx, bool accumulate) {
        backend(dy).scale(dx, dy.slice(begin, begin + t.shape[0]), 1, accumulate);
      });
      begin += t.shape[0];
    }
  });
}

Var transpose(const Var& x) {
  const int rank = x.value.rank();
  T2L_CHECK(rank >= 2, "transpose of {}", x.shape().str());
  std::array<int64_t, Shape::kMaxRank> d{};
  std::copy(x.shape().begin(), x.shape().end(), d.begin());
  std::swap(d[size_t(rank - 1)], d[size_t(rank - 2)]);
  const int64_t n = x.dim(-2), m = x.dim(-1), batch = n > 0 && m > 0 ? x.value.size() / (n * m) : 0;
  Tensor y = Tensor::empty(Shape(std::span<const int64_t>(d.data(), size_t(rank))), x.value.dtype(), x.value.device());
  Tensor y3 = y.reshape({batch, m, n});
  backend(y).transpose(y3, x.value.reshape({batch, n, m}), false);
  if (!Tape::wanted({&x})) return y;
  return Tape::record(y, [=, tx = GradTarget(x)](const Tensor& dy) {
    tx.write([&](Tensor& dx, bool accumulate) {
      Tensor dx3 = dx.reshape({batch, n, m});
      backend(dy).transpose(dx3, dy.reshape({batch, m, n}), accumulate);
    });
  });
}

Var segment_mean(const Var& x, const Tensor& offsets) {
  T2L_CHECK(x.value.rank() == 2 && offsets.dtype() == DType::I32 && offsets.rank() == 1 && offsets.dim(0) > 0,
            "segment_mean of {} by offsets {}", x.shape().str(), offsets.shape().str());
  Tensor y = Tensor::empty({offsets.dim(0) - 1, x.dim(1)}, x.value.dtype(), x.value.device());
  backend(y).segment_mean_forward(y, x.value, offsets);
  if (!Tape::wanted({&x})) return y;
  return Tape::record(y, [tx = GradTarget(x), offsets](const Tensor& dy) {
    tx.write([&](Tensor& dx, bool accumulate) { backend(dy).segment_mean_backward(dx, dy, offsets, accumulate); });
  });
}

}  // namespace t2l
