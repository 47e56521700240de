#include <catch2/catch.hpp>
#include <cmath>

#include "tests/harness.h"

namespace t2l::test {
namespace {

const auto kRowWork = [](const Size& s, size_t bytes) { return Work{2. * double(s[0] * s[1]) * double(bytes), 0}; };

Arrays layernorm_reference(const Arrays& in, double eps) {
  const Array& x = in[0];
  const int64_t cols = x.shape[-1];
  Array y(x.shape);
  for (int64_t i = 0; i < x.rows(); ++i) {
    double mean = 0, var = 0;
    for (int64_t j = 0; j < cols; ++j) mean += x(i, j) / double(cols);
    for (int64_t j = 0; j < cols; ++j) var += (x(i, j) - mean) * (x(i, j) - mean) / double(cols);
    for (int64_t j = 0; j < cols; ++j) y(i, j) = (x(i, j) - mean) / std::sqrt(var + eps) * in[1][j] + in[2][j];
  }
  return {y};
}

// size: rows, columns. Far from 0 in the mean: a variance by mean(x^2) - mean(x)^2 would fail.
const OpTest layernorm_test{
    .name = "layernorm",
    .sizes = {{7, 13}, {5, 64}, {290, 33}, {67, 384}, {9, 1030}, {3, 2200}, {0, 8}},
    .perf = {{8192, 384}, {8192, 1024}, {4096, 4096}},
    .inputs =
        [](Inputs& in, const Size& s) {
          in.normal({s[0], s[1]}, 3).normal({s[1]}, 1, 0.3).normal({s[1]}, 0, 0.3);
        },
    .run = [](const std::vector<Var>& in, const Size&) -> std::vector<Var> {
      return {layernorm(in[0], in[1], in[2], 1e-5f)};
    },
    .reference = [](const Arrays& in, const Size&) { return layernorm_reference(in, 1e-5f); },
    // x - mean rounds by 2^-24 |x| / std, here 3; a column's gradient sums up to 290 rows
    .f32 = 1e-6,
    .bf16 = 3e-3,
    .grad_f32 = 1e-6,
    .grad_bf16 = 3e-3,
    .work = kRowWork,
};
T2L_OP_TEST(layernorm_test);

// Rows so small that eps counts.
const OpTest layernorm_small{
    .name = "layernorm of small rows",
    .sizes = {{6, 20}, {5, 130}, {4, 1}},
    .inputs =
        [](Inputs& in, const Size& s) {
          in.normal({s[0], s[1]}, 0, 1e-3).normal({s[1]}, 1, 0.3).normal({s[1]}, 0, 0.3);
        },
    .run = [](const std::vector<Var>& in, const Size&) -> std::vector<Var> {
      return {layernorm(in[0], in[1], in[2], 1e-6f)};
    },
    .reference = [](const Arrays& in, const Size&) { return layernorm_reference(in, 1e-6f); },
    .f32 = 5e-7,
    .bf16 = 3e-3,
    // the differences' step, 1e-5, is not small against rows of 1e-3: checked in f32 and bf16 by layernorm above
    .differentiable = false,
};
T2L_OP_TEST(layernorm_small);

Arrays rmsnorm_reference(const Arrays& in, double eps, double shift) {
  const Array& x = in[0];
  Array y(x.shape);
  for (int64_t i = 0; i < x.rows(); ++i) {
    double square = 0;
    for (int64_t j = 0; j < x.shape[-1]; ++j) square += x(i, j) * x(i, j) / double(x.shape[-1]);
    for (int64_t j = 0; j < x.shape[-1]; ++j) y(i, j) = x(i, j) / std::sqrt(square + eps) * (in[1][j] + shift);
  }
  return {y};
}

// size: rows, columns, shift. eps is not small against the rows.
const OpTest rmsnorm_test{
    .name = "rmsnorm",
    .sizes = {{7, 13, 0}, {7, 13, 1}, {5, 64, 0}, {290, 33, 1}, {67, 384, 0}, {9, 1030, 1}, {3, 2200, 0}, {0, 8, 0}},
    .perf = {{8192, 576, 0}, {8192, 1024, 0}, {4096, 4096, 0}, {1, 4096, 0}},
    .inputs =
        [](Inputs& in, const Size& s) {
          in.normal({s[0], s[1]}, 0.2).normal({s[1]}, 1 - double(s[2]), 0.3);
        },
    .run = [](const std::vector<Var>& in, const Size& s) -> std::vector<Var> {
      return {rmsnorm(in[0], in[1], 0.05f, float(s[2]))};
    },
    .reference = [](const Arrays& in, const Size& s) { return rmsnorm_reference(in, 0.05f, double(s[2])); },
    .f32 = 3e-7,   // a sum of squares, a root, a division, two products
    .bf16 = 4e-3,  // x rstd and y are rounded where shift is 0
    .grad_f32 = 1e-6,
    .grad_bf16 = 3e-3,
    .work = kRowWork,
};
T2L_OP_TEST(rmsnorm_test);

// The two forms round differently in bf16, and as transformers' do, bit for bit.
TEST_CASE("rmsnorm rounds as its families do") {
  constexpr int64_t cols = 300;
  Inputs in(3);
  in.normal({cols}).normal({cols}, 1, 0.3);
  for (const Device device : devices())
    for (const float shift : {0.f, 1.f}) {
      const auto to_bf16 = [&](size_t i) {
        const std::vector<float> f(in.list[i].array.v.begin(), in.list[i].array.v.end());
        return Tensor::from(f).to(DType::BF16).to(device);
      };
      const Tensor x = to_bf16(0), w = to_bf16(1);
      const auto xs = to_double(x), ws = to_double(w), y = to_double(rmsnorm(x, w, 1e-6f, shift).value);
      double square = 0;
      for (const double v : xs) square += v * v / double(cols);
      const float rstd = float(1 / std::sqrt(square + 1e-6));
      int64_t different = 0;
      for (size_t j = 0; j < xs.size(); ++j) {
        const float n = float(xs[j]) * rstd;
        different +=
            y[j] != double(shift == 0 ? bf16(float(bf16(n)) * float(ws[j])) : bf16(n * (float(ws[j]) + shift)));
      }
      CHECK(different <= 2);  // where the last bit of rstd decides; rounding once instead of twice differs in some 70
    }
}

// size: rows, columns. The first row is below eps, where the norm's gradient vanishes.
const OpTest l2_normalize_test{
    .name = "l2_normalize",
    .sizes = {{7, 13}, {1, 5}, {5, 64}, {33, 129}, {5, 1025}, {0, 8}},
    .perf = {{8192, 384}, {8192, 1024}},
    .inputs =
        [](Inputs& in, const Size& s) {
          in.normal({s[0], s[1]});
          for (int64_t j = 0; s[0] > 0 && j < s[1]; ++j) in.list[0].array(0, j) *= 0.1 / double(s[1]);
        },
    .run = [](const std::vector<Var>& in, const Size&) -> std::vector<Var> { return {l2_normalize(in[0], 3.f, 0.5f)}; },
    .reference = [](const Arrays& in, const Size& s) -> Arrays {
      Array y(in[0].shape);
      for (int64_t i = 0; i < s[0]; ++i) {
        double sum = 0;
        for (int64_t j = 0; j < s[1]; ++j) sum += in[0](i, j) * in[0](i, j);
        for (int64_t j = 0; j < s[1]; ++j) y(i, j) = 3 * in[0](i, j) / std::max(std::sqrt(sum), 0.5);
      }
      return {y};
    },
    .f32 = 3e-7,  // a sum of squares, a root, a division, two products
    .bf16 = 3e-3,
    .work = kRowWork,
};
T2L_OP_TEST(l2_normalize_test);

}  // namespace
}  // namespace t2l::test
