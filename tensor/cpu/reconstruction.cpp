// Mean absolute errors, with their gradients in the same pass.
//
// The dense one, mean |D| with D = b a - s b* a* = [b, -s b*] [a; a*], takes a pair of matrices per thread. A strip of
// four rows meets a panel of sixteen columns: D stays in registers, becomes its sign there, and is multiplied by a into
// db and by b into da, both in the first-level cache. Padding is zero, and so is the sign of zero.
#include "tensor/reconstruction.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "tensor/cpu/cpu.h"

namespace t2l::cpu {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The rows of the targets, which no id may leave.
const int32_t* checked(const Tensor& ids, int64_t rows) {
  for (const int32_t i : ids.host<int32_t>()) T2L_CHECK(i >= 0 && i < rows, "reconstruction: target {} of {}", i, rows);
  return ids.data<int32_t>();
}

// In sixteen running sums, so that the order does not depend on how wide the compiler's vectors are.
float sum_of(const float* x, int64_t n) {
  constexpr int64_t kLanes = 16;
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t k = 0; k < kLanes; ++k) sums[k] += x[i + k];
  for (int64_t k = 0; i + k < n; ++k) sums[k] += x[i + k];
  float total = 0;
  for (const float s : sums) total += s;
  return total;
}

// ---- D in registers
typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Mask __attribute__((vector_size(32)));
constexpr int64_t kLanes = 8;   // of Floats
constexpr int64_t kStrip = 4;   // rows of D in registers
constexpr int64_t kPanel = 16;  // columns
constexpr int64_t kBlock = 16;  // panels in the first-level cache

Floats load(const float* x) {
  Floats v;
  std::memcpy(&v, x, sizeof v);
  return v;
}
void store(float* x, const Floats& v) { std::memcpy(x, &v, sizeof v); }

// A strip against `panels` panels; returns the sum of |D|.  b: [2 r, kStrip]  a: [panels, 2 r, kPanel]
// da: [panels, r, kPanel], added to; null: loss only  db: [r, kStrip, kLanes], added to
double strip(float* da, float* db, const float* b, const float* a, int64_t panels, int64_t r) {
  Floats sums[2] = {Floats{}, Floats{}};
  for (int64_t p = 0; p < panels; ++p, a += 2 * r * kPanel) {
    Floats d[kStrip][2];
    for (auto& row : d) row[0] = row[1] = Floats{};
    for (int64_t k = 0; k < 2 * r; ++k) {
      const Floats a0 = load(a + k * kPanel), a1 = load(a + k * kPanel + kLanes);
#pragma GCC unroll 4
      for (int i = 0; i < kStrip; ++i) {
        d[i][0] += b[k * kStrip + i] * a0;
        d[i][1] += b[k * kStrip + i] * a1;
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kStrip; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        const Mask sign = (d[i][j] < 0.f) - (d[i][j] > 0.f);
        const Floats s = __builtin_convertvector(sign, Floats);
        sums[j] += d[i][j] * s;
        d[i][j] = s;
      }
    if (!da) continue;
    for (int64_t k = 0; k < r; ++k, da += kPanel) {
      const Floats a0 = load(a + k * kPanel), a1 = load(a + k * kPanel + kLanes);
      Floats da0 = load(da), da1 = load(da + kLanes);
#pragma GCC unroll 4
      for (int i = 0; i < kStrip; ++i) {
        da0 += b[k * kStrip + i] * d[i][0];
        da1 += b[k * kStrip + i] * d[i][1];
        float* const to = db + (k * kStrip + i) * kLanes;
        Floats sum = load(to);
        sum += a0 * d[i][0];
        sum += a1 * d[i][1];
        store(to, sum);
      }
      store(da, da0);
      store(da + kLanes, da1);
    }
  }
  float lanes[kLanes];
  store(lanes, sums[0] + sums[1]);
  double total = 0;
  for (const float x : lanes) total += double(x);
  return total;
}

// One pair of matrices and its target.
class DensePair {
 public:
  DensePair(const DenseSizes& sizes, float scale) : s_(sizes), scale_(scale) {
    const size_t r = size_t(s_.rank);
    b_.resize(size_t(ceil_div(s_.out, kStrip)) * 2 * r * kStrip);
    a_.resize(kBlock * 2 * r * kPanel);
    da_.resize(kBlock * r * kPanel);
    db_.resize(r * kStrip * kLanes);
  }

  // Sum of |D|; da: [r, in], db: [out, r], each null where not wanted, are multiplied by `unit`.
  double operator()(float* da, float* db, const float* a, const float* b, const float* target_a, const float* target_b,
                    float unit) {
    const int64_t r = s_.rank;
    for (int64_t k = 0; k < 2 * r; ++k)
      for (int64_t i = 0; i < ceil_div(s_.out, kStrip) * kStrip; ++i)
        b_[size_t((i / kStrip * 2 * r + k) * kStrip + i % kStrip)] = i >= s_.out ? 0
                                                                     : k < r     ? b[i * r + k]
                                                                                 : -scale_ * target_b[i * r + k - r];
    if (db) std::fill_n(db, s_.out * r, 0.f);
    const bool gradients = da || db;
    double sum = 0;
    for (int64_t begin = 0; begin < s_.in; begin += kBlock * kPanel) {
      const int64_t columns = std::min(kBlock * kPanel, s_.in - begin), panels = ceil_div(columns, kPanel);
      for (int64_t k = 0; k < 2 * r; ++k) {
        const float* const from = begin + (k < r ? a + k * s_.in : target_a + (k - r) * s_.in);
        for (int64_t j = 0; j < panels * kPanel; ++j)
          a_[size_t((j / kPanel * 2 * r + k) * kPanel + j % kPanel)] = j < columns ? from[j] : 0;
      }
      std::fill(da_.begin(), da_.end(), 0.f);
      for (int64_t i = 0; i < s_.out; i += kStrip) {
        std::fill(db_.begin(), db_.end(), 0.f);
        sum += strip(gradients ? da_.data() : nullptr, db_.data(), &b_[size_t(i * 2 * r)], a_.data(), panels, r);
        if (!db) continue;
        for (int64_t row = i; row < std::min(i + kStrip, s_.out); ++row)
          for (int64_t k = 0; k < r; ++k) {
            const float* const lanes = &db_[size_t((k * kStrip + row - i) * kLanes)];
            float total = 0;
            for (int64_t l = 0; l < kLanes; ++l) total += lanes[l];
            db[row * r + k] += unit * total;
          }
      }
      if (!da) continue;
      for (int64_t k = 0; k < r; ++k)
        for (int64_t j = 0; j < columns; ++j)
          da[k * s_.in + begin + j] = unit * da_[size_t((j / kPanel * r + k) * kPanel + j % kPanel)];
    }
    return sum;
  }

 private:
  const DenseSizes s_;
  const float scale_;
  std::vector<float> b_, a_;    // [out / kStrip, 2 r, kStrip], [kBlock, 2 r, kPanel]
  std::vector<float> da_, db_;  // [kBlock, r, kPanel], [r, kStrip, kLanes]
};

}  // namespace

void Cpu::l1_loss(Tensor& loss, Tensor* error, Tensor* dprediction, const Tensor& prediction, const Tensor& target,
                  const Tensor& ids, const Tensor* mean, const Tensor* std) {
  check_l1_loss(loss, error, dprediction, prediction, target, ids, mean, std);
  constexpr int64_t kChunk = 512;
  const int32_t* const id = checked(ids, target.dim(0));
  const int64_t size = prediction.size(), cols = size / prediction.dim(0), chunks = ceil_div(cols, kChunk);
  const float unit = float(1 / double(size));
  struct Sums {
    float loss, error;
  };
  std::vector<Sums> sums(size_t(prediction.dim(0) * chunks));
  parallel(int64_t(sums.size()), kGrain / kChunk, [&](int64_t first, int64_t last) {
    float d[kChunk], deviation[kChunk];
    for (int64_t c = first; c < last; ++c) {
      const int64_t row = c / chunks, column = c % chunks * kChunk, n = std::min(kChunk, cols - column);
      const float* const p = prediction.data<float>() + row * cols + column;
      const float* const t = target.data<float>() + id[row] * cols + column;
      if (mean) {
        const float *const m = mean->data<float>() + column, *const s = std->data<float>() + column;
        for (int64_t i = 0; i < n; ++i) deviation[i] = s[i] + kStdEpsilon;
        for (int64_t i = 0; i < n; ++i) d[i] = p[i] - (t[i] - m[i]) / deviation[i];
      } else {
        for (int64_t i = 0; i < n; ++i) d[i] = p[i] - t[i];
      }
      if (dprediction) {
        float* const dp = dprediction->data<float>() + row * cols + column;
        for (int64_t i = 0; i < n; ++i) dp[i] = float(int(d[i] > 0) - int(d[i] < 0)) * unit;
      }
      for (int64_t i = 0; i < n; ++i) d[i] = std::abs(d[i]);
      Sums& sum = sums[size_t(c)];
      sum.loss = sum.error = sum_of(d, n);
      if (!mean || !error) continue;
      for (int64_t i = 0; i < n; ++i) d[i] *= deviation[i];
      sum.error = sum_of(d, n);
    }
  });
  double totals[2] = {};
  for (const Sums& s : sums) totals[0] += double(s.loss), totals[1] += double(s.error);
  *loss.data<float>() = float(totals[0] / double(size));
  if (error) *error->data<float>() = float(totals[1] / double(size));
}

void Cpu::dense_l1_loss(Tensor& loss, Tensor* da, Tensor* db, const Tensor& a, const Tensor& b, const Tensor& target_a,
                        const Tensor& target_b, const Tensor& ids, float scale) {
  const DenseSizes s = check_dense_l1_loss(loss, da, db, a, b, target_a, target_b, ids);
  const int32_t* const id = checked(ids, target_a.dim(0));
  const float unit = float(1 / s.elements());
  const int64_t size_a = s.rank * s.in, size_b = s.out * s.rank;
  std::vector<double> sums(size_t(s.matrices));
  const int threads = int(std::min<int64_t>(s.matrices, omp_get_max_threads()));
#pragma omp parallel num_threads(threads)
  {
    DensePair pair(s, scale);
#pragma omp for schedule(dynamic)
    for (int64_t g = 0; g < s.matrices; ++g) {
      const int64_t t = id[g / s.layers] * s.layers + g % s.layers;
      const auto at = [](Tensor* x, int64_t i) { return x ? x->data<float>() + i : nullptr; };
      sums[size_t(g)] =
          pair(at(da, g * size_a), at(db, g * size_b), a.data<float>() + g * size_a, b.data<float>() + g * size_b,
               target_a.data<float>() + t * size_a, target_b.data<float>() + t * size_b, unit);
    }
  }
  double total = 0;
  for (const double x : sums) total += x;
  *loss.data<float>() = float(total / s.elements());
}

}  // namespace t2l::cpu
