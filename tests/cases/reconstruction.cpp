#include <catch2/catch.hpp>
#include <cmath>

#include "tests/harness.h"

namespace t2l::test {
namespace {

double z_of(double target, double mean, double std) { return (target - mean) / (std + 1e-10); }

// size: rows, rows of the targets, columns, z-scores? No prediction is so close to its target that a central
// difference would meet the kink.
const OpTest l1_test{
    .name = "l1_loss",
    .sizes = {{3, 2, 5, 0}, {4, 6, 7, 1}, {1, 1, 1, 1}, {2, 3, 9001, 0}, {5, 2, 8300, 1}, {3, 3, 516, 1}},
    .perf = {{4, 4, 2 << 20, 1}},
    .inputs =
        [](Inputs& in, const Size& s) {
          in.normal({s[0], s[2]}).normal({s[1], s[2]}).frozen().ids({s[0]}, 0, s[1]);
          in.normal({s[2]}).frozen().normal({s[2]}).frozen();
          auto& list = in.list;
          for (double& x : list[4].array.v) x = 0.5 + std::abs(x);
          for (int64_t i = 0; i < s[0]; ++i)
            for (int64_t j = 0; j < s[2]; ++j) {
              const double t = list[1].array(int64_t(list[2].array[i]), j);
              const double z = s[3] ? z_of(t, list[3].array[j], list[4].array[j]) : t;
              double& p = list[0].array(i, j);
              if (std::abs(p - z) < 0.1) p = z + (p < z ? -0.1 : 0.1);
            }
        },
    .run = [](const std::vector<Var>& in, const Size& s) -> std::vector<Var> {
      return {s[3] ? l1_loss(in[0], in[1].value, in[2].value, in[3].value, in[4].value)
                   : l1_loss(in[0], in[1].value, in[2].value)};
    },
    .reference = [](const Arrays& in, const Size& s) -> Arrays {
      Array loss({1});
      for (int64_t i = 0; i < s[0]; ++i)
        for (int64_t j = 0; j < s[2]; ++j) {
          const double t = in[1](int64_t(in[2][i]), j), z = s[3] ? z_of(t, in[3][j], in[4][j]) : t;
          loss[0] += std::abs(in[0](i, j) - z) / double(s[0] * s[2]);
        }
      return {loss};
    },
    .f32 = 1.5e-7,  // a few roundings of each term, a sum of short sums, and the rounding of the result
    .in_bf16 = false,
    .work =
        [](const Size& s, size_t) {
          return Work{double((2 * s[0] + 2) * s[2]) * 4, 0};
        },
};
T2L_OP_TEST(l1_test);

// size: rows, rows of the targets, layers, rank, in, out
void add_pairs(Inputs& in, const Size& s, double std) {
  in.normal({s[0], s[2], s[3], s[4]}, 0, std).normal({s[0], s[2], s[5], s[3]}, 0, std);
  in.normal({s[1], s[2], s[3], s[4]}, 0, std).frozen().normal({s[1], s[2], s[5], s[3]}, 0, std).frozen();
  in.ids({s[0]}, 0, s[1]);
}

// f(matrix g, row i, column j, D) for D = b a - scale b* a*
template <class F>
void for_dense(const Arrays& in, const Size& s, double scale, F f) {
  const int64_t layers = s[2], r = s[3], cols = s[4], rows = s[5];
  for (int64_t g = 0; g < s[0] * layers; ++g) {
    const int64_t t = int64_t(in[4][g / layers]) * layers + g % layers;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < cols; ++j) {
        double d = 0;
        for (int64_t k = 0; k < r; ++k)
          d += in[1](g * rows + i, k) * in[0](g * r + k, j) - scale * in[3](t * rows + i, k) * in[2](t * r + k, j);
        f(g, i, j, d);
      }
  }
}

// The target's product is about 15 in size and the prediction's a fraction of it: no central difference meets the kink.
const OpTest dense_test{
    .name = "dense_l1_loss",
    .sizes = {{2, 3, 2, 2, 7, 5},
              {1, 1, 1, 1, 1, 1},
              {3, 2, 1, 8, 33, 6},
              {2, 2, 1, 9, 270, 131},
              {1, 2, 2, 17, 40, 130},
              {1, 2, 1, 33, 131, 35}},
    .perf = {{4, 4, 1, 8, 4096, 4096}, {4, 4, 1, 8, 4096, 1024}},
    .inputs =
        [](Inputs& in, const Size& s) {
          add_pairs(in, s, 0.5 / std::sqrt(std::sqrt(double(s[3]))));
          Array &a = in.list[2].array, &b = in.list[3].array;
          for (int64_t i = 0; i < a.rows(); i += s[3])
            for (int64_t j = 0; j < s[4]; ++j) a(i, j) = std::copysign(3, a(i, j));
          for (int64_t i = 0; i < b.rows(); ++i) b(i, 0) = std::copysign(3, b(i, 0));
        },
    .run = [](const std::vector<Var>& in, const Size&) -> std::vector<Var> {
      return {dense_l1_loss(in[0], in[1], in[2].value, in[3].value, in[4].value, 1.75f)};
    },
    .reference = [](const Arrays& in, const Size& s) -> Arrays {
      Array loss({1});
      for_dense(in, s, 1.75, [&](int64_t, int64_t, int64_t, double d) { loss[0] += std::abs(d); });
      loss[0] /= double(s[0] * s[2] * s[4] * s[5]);
      return {loss};
    },
    .f32 = 2e-7,
    .grad_f32 = 1e-6,
    .in_bf16 = false,
    .work =
        [](const Size& s, size_t) {
          return Work{0, 4. * double(s[0] * s[2] * s[3]) * double(s[4] * s[5])};
        },
};
T2L_OP_TEST(dense_test);

std::vector<Tensor> tensors(const Inputs& in, Device device) {
  std::vector<Tensor> out;
  for (auto& i : in.list) {
    if (i.integer) {
      const std::vector<int32_t> ids(i.array.v.begin(), i.array.v.end());
      out.push_back(Tensor::from(std::span(ids), i.array.shape, device));
    } else {
      const std::vector<float> f(i.array.v.begin(), i.array.v.end());
      out.push_back(Tensor::from(std::span(f), i.array.shape, device));
    }
  }
  return out;
}
Arrays rounded(const Inputs& in) {
  Arrays out;
  for (auto& i : in.list) {
    out.push_back(i.array);
    for (double& x : out.back().v) x = double(float(x));
  }
  return out;
}

TEST_CASE("dense loss of any signs is that of the materialised products") {
  for (const Device device : devices())
    for (const Size& s : {Size{2, 3, 2, 3, 37, 29}, Size{1, 1, 3, 8, 150, 141}, Size{3, 2, 1, 35, 20, 66}}) {
      Inputs in(11);
      add_pairs(in, s, 1);
      const Arrays exact = rounded(in);
      const double n = double(s[0] * s[2] * s[4] * s[5]);
      double loss = 0;
      Array da(exact[0].shape), db(exact[1].shape);
      for_dense(exact, s, 1, [&](int64_t g, int64_t i, int64_t j, double d) {
        loss += std::abs(d) / n;
        for (int64_t k = 0; k < s[3]; ++k) {
          da(g * s[3] + k, j) += std::copysign(1 / n, d) * exact[1](g * s[5] + i, k);
          db(g * s[5] + i, k) += std::copysign(1 / n, d) * exact[0](g * s[3] + k, j);
        }
      });
      const auto t = tensors(in, device);
      const Var a = variable(t[0]), b = variable(t[1]);
      const Var got = dense_l1_loss(a, b, t[2], t[3], t[4], 1);
      backward(got);
      CHECK(relative_l2(to_double(got.value), {loss}) < 2e-7);
      CHECK(relative_l2(to_double(a.grad()), da.v) < 1e-6);
      CHECK(relative_l2(to_double(b.grad()), db.v) < 1e-6);
    }
}

// Where both products are zero, as of adapters that were never trained; and where A or B is met exactly.
TEST_CASE("no gradient where there is no error") {
  for (const Device device : devices()) {
    Inputs in(3);
    add_pairs(in, {2, 2, 2, 3, 20, 9}, 1);
    const auto t = tensors(in, device);
    const Tensor ids = Tensor::from(std::vector<int32_t>{0, 1}, device);
    const auto none = [&](const Var& loss, const std::vector<Var>& of) {
      backward(loss);
      CHECK(to_double(loss.value)[0] == 0);
      for (const Var& v : of) CHECK(to_double(v.grad()) == std::vector<double>(size_t(v.value.size())));
    };
    const Var a = variable(t[0]), b = variable(Tensor::zeros(t[1].shape(), DType::F32, device)), p = variable(t[0]);
    none(dense_l1_loss(a, b, t[2], b.value, ids, 1), {a, b});
    none(l1_loss(p, t[0], ids), {p});
  }
}

// The error is in the targets' unit, also where a deviation is zero.
TEST_CASE("the error of z-scores") {
  for (const Device device : devices()) {
    const auto row = [&](std::vector<float> v) { return Tensor::from(std::span<const float>(v), {1, 4}, device); };
    const Tensor ids = Tensor::from(std::vector<int32_t>{0}, device);
    Tensor error;
    const Var loss =
        l1_loss(row({1, -2, 0.5f, 3}), row({3, 1, 7, 2}), ids, row({1, 1, 3, 2}), row({2, 4, 8, 0}), &error);
    CHECK(to_double(loss.value)[0] == Approx((0 + 2 + 0 + 3) / 4.));
    CHECK(to_double(error)[0] == Approx((0 + 8 + 0 + 3e-10) / 4));
    const Var plain = l1_loss(row({1, -2, 0.5f, 3}), row({3, 1, 7, 2}), ids, {}, {}, &error);
    CHECK(to_double(plain.value)[0] == Approx((2 + 3 + 6.5 + 1) / 4));
    CHECK(to_double(error) == to_double(plain.value));
  }
}

}  // namespace
}  // namespace t2l::test
