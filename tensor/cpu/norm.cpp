// LayerNorm, RMSNorm and L2 normalisation, a row at a time; the mathematics stands in autograd/norm.cpp. The variance
// is that of the differences from the mean, in a second pass: x may be large and its differences small.
#include <cmath>

#include "tensor/cpu/cpu.h"

namespace t2l::cpu {
namespace {

// f(0) + .. + f(n - 1), always in the same order: in 32 lanes, then pairwise.
template <class F>
float sum(int64_t n, F&& f) {
  constexpr int64_t kLanes = 32;
  float lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) lane[l] += f(i + l);
  for (; i < n; ++i) lane[i % kLanes] += f(i);
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

// f(row) for every row, in parallel
template <class F>
void for_rows(const Tensor& x, F&& f) {
  parallel(x.rows(), kGrain / std::max<int64_t>(x.cols(), 1), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) f(r);
  });
}

// dw (+)= sum of rows of dy n, db (+)= sum of rows of dy, n = (x - mean) rstd; each null where not wanted, and mean
// where it is 0.
void params(Tensor* dw, Tensor* db, const Tensor& dy, const Tensor& x, const Tensor* mean, const Tensor& rstd,
            bool accumulate_w, bool accumulate_b) {
  constexpr int64_t kRows = 64;  // fixed, so that the sums are those of any number of threads
  const int64_t rows = x.rows(), cols = x.cols(), blocks = (rows + kRows - 1) / kRows;
  const Tensor partial = Tensor::empty({blocks, 2, cols});  // of dw and db
  with_type(x.dtype(), [&]<class T>(T*) {
    parallel(blocks, kGrain / (kRows * std::max<int64_t>(cols, 1)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        float *pw = partial.data<float>() + i * 2 * cols, *pb = pw + cols;
        std::fill_n(pw, 2 * cols, 0.f);
        for (int64_t r = i * kRows; r < std::min((i + 1) * kRows, rows); ++r) {
          const T *xr = x.data<T>() + r * cols, *dyr = dy.data<T>() + r * cols;
          const float mu = mean ? mean->data<float>()[r] : 0, rs = rstd.data<float>()[r];
          for (int64_t j = 0; j < cols; ++j) {
            pw[j] += float(dyr[j]) * ((float(xr[j]) - mu) * rs);
            pb[j] += float(dyr[j]);
          }
        }
      }
    });
    const auto add_blocks = [&](Tensor* d, int64_t which, bool accumulate) {
      if (!d) return;
      for (int64_t j0 = 0; j0 < cols; j0 += 64) {
        const int64_t width = std::min<int64_t>(64, cols - j0);
        float total[64] = {};
        for (int64_t i = 0; i < blocks; ++i)
          for (int64_t j = 0; j < width; ++j) total[j] += partial.data<float>()[(i * 2 + which) * cols + j0 + j];
        for (int64_t j = 0; j < width; ++j) put(d->data<T>()[j0 + j], total[j], accumulate);
      }
    };
    add_blocks(dw, 0, accumulate_w);
    add_blocks(db, 1, accumulate_b);
  });
}

}  // namespace

void Cpu::layernorm_forward(Tensor& y, Tensor& mean, Tensor& rstd, const Tensor& x, const Tensor& w, const Tensor& b,
                            float eps) {
  const int64_t cols = x.cols();
  with_type(y.dtype(), [&]<class T>(T*) {
    const T *wp = w.data<T>(), *bp = b.data<T>();
    for_rows(x, [&](int64_t r) {
      const T* xr = x.data<T>() + r * cols;
      T* yr = y.data<T>() + r * cols;
      const float mu = sum(cols, [&](int64_t j) { return float(xr[j]); }) / float(cols);
      const float var = sum(cols, [&](int64_t j) { return (float(xr[j]) - mu) * (float(xr[j]) - mu); }) / float(cols);
      const float rs = 1 / std::sqrt(var + eps);
      for (int64_t j = 0; j < cols; ++j) yr[j] = T((float(xr[j]) - mu) * rs * float(wp[j]) + float(bp[j]));
      mean.data<float>()[r] = mu;
      rstd.data<float>()[r] = rs;
    });
  });
}

void Cpu::layernorm_backward(Tensor& dx, const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& mean,
                             const Tensor& rstd, bool accumulate) {
  const int64_t cols = x.cols();
  with_type(dx.dtype(), [&]<class T>(T*) {
    const T* wp = w.data<T>();
    for_rows(x, [&](int64_t r) {
      const T *xr = x.data<T>() + r * cols, *dyr = dy.data<T>() + r * cols;
      T* dxr = dx.data<T>() + r * cols;
      const float mu = mean.data<float>()[r], rs = rstd.data<float>()[r];
      const auto n = [&](int64_t j) { return (float(xr[j]) - mu) * rs; };
      const auto dn = [&](int64_t j) { return float(dyr[j]) * float(wp[j]); };
      const float mean_dn = sum(cols, dn) / float(cols);
      const float mean_dn_n = sum(cols, [&](int64_t j) { return dn(j) * n(j); }) / float(cols);
      for (int64_t j = 0; j < cols; ++j) put(dxr[j], rs * (dn(j) - mean_dn - n(j) * mean_dn_n), accumulate);
    });
  });
}

void Cpu::layernorm_backward_params(Tensor* dw, Tensor* db, const Tensor& dy, const Tensor& x, const Tensor& mean,
                                    const Tensor& rstd, bool accumulate_w, bool accumulate_b) {
  params(dw, db, dy, x, &mean, rstd, accumulate_w, accumulate_b);
}

void Cpu::rmsnorm_forward(Tensor& y, Tensor& rstd, const Tensor& x, const Tensor& w, float eps, float shift) {
  const int64_t cols = x.cols();
  with_type(y.dtype(), [&]<class T>(T*) {
    const T* wp = w.data<T>();
    for_rows(x, [&](int64_t r) {
      const T* xr = x.data<T>() + r * cols;
      T* yr = y.data<T>() + r * cols;
      const float square = sum(cols, [&](int64_t j) { return float(xr[j]) * float(xr[j]); }) / float(cols);
      const float rs = 1 / std::sqrt(square + eps);
      if (shift == 0)
        for (int64_t j = 0; j < cols; ++j) yr[j] = T(float(T(float(xr[j]) * rs)) * float(wp[j]));
      else
        for (int64_t j = 0; j < cols; ++j) yr[j] = T(float(xr[j]) * rs * (float(wp[j]) + shift));
      rstd.data<float>()[r] = rs;
    });
  });
}

void Cpu::rmsnorm_backward(Tensor& dx, const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd,
                           float shift, bool accumulate) {
  const int64_t cols = x.cols();
  with_type(dx.dtype(), [&]<class T>(T*) {
    const T* wp = w.data<T>();
    for_rows(x, [&](int64_t r) {
      const T *xr = x.data<T>() + r * cols, *dyr = dy.data<T>() + r * cols;
      T* dxr = dx.data<T>() + r * cols;
      const float rs = rstd.data<float>()[r];
      const auto n = [&](int64_t j) { return float(xr[j]) * rs; };
      const auto dn = [&](int64_t j) { return float(dyr[j]) * (float(wp[j]) + shift); };
      const float mean_dn_n = sum(cols, [&](int64_t j) { return dn(j) * n(j); }) / float(cols);
      for (int64_t j = 0; j < cols; ++j) put(dxr[j], rs * (dn(j) - n(j) * mean_dn_n), accumulate);
    });
  });
}

void Cpu::rmsnorm_backward_params(Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& rstd, bool accumulate) {
  params(&dw, nullptr, dy, x, nullptr, rstd, accumulate, false);
}

void Cpu::l2_normalize_forward(Tensor& y, Tensor& norm, const Tensor& x, float scale, float eps) {
  const int64_t cols = x.cols();
  with_type(y.dtype(), [&]<class T>(T*) {
    for_rows(x, [&](int64_t r) {
      const T* xr = x.data<T>() + r * cols;
      T* yr = y.data<T>() + r * cols;
      const float length = std::sqrt(sum(cols, [&](int64_t j) { return float(xr[j]) * float(xr[j]); }));
      const float factor = scale / std::max(length, eps);
      for (int64_t j = 0; j < cols; ++j) yr[j] = T(float(xr[j]) * factor);
      norm.data<float>()[r] = length;
    });
  });
}

void Cpu::l2_normalize_backward(Tensor& dx, const Tensor& dy, const Tensor& x, const Tensor& norm, float scale,
                                float eps, bool accumulate) {
  const int64_t cols = x.cols();
  with_type(dx.dtype(), [&]<class T>(T*) {
    for_rows(x, [&](int64_t r) {
      const T *xr = x.data<T>() + r * cols, *dyr = dy.data<T>() + r * cols;
      T* dxr = dx.data<T>() + r * cols;
      const float length = norm.data<float>()[r], inverse = 1 / std::max(length, eps);
      const auto unit = [&](int64_t j) { return float(xr[j]) * inverse; };
      const float along = length > eps ? sum(cols, [&](int64_t j) { return unit(j) * float(dyr[j]); }) : 0;
      for (int64_t j = 0; j < cols; ++j) put(dxr[j], scale * inverse * (float(dyr[j]) - unit(j) * along), accumulate);
    });
  });
}

}  // namespace t2l::cpu
