// f32: every element is rounded once, so its relative error, and with it the L2 norm's, is at most 2^-24 = 6e-8 for a
// single operation; bf16 at most 2^-8 = 4e-3, whatever was computed before the rounding.
#include <catch2/catch.hpp>
#include <cstring>
#include <numeric>

#include "tests/harness.h"

namespace t2l::test {
namespace {

constexpr double kOneRounding = 6e-8, kOneRoundingBf16 = 4e-3;

Shape shape_of(const Size& s) { return Shape(std::span<const int64_t>(s)); }
double elements(const Size& s) { return double(shape_of(s).elements()); }

// Small ones with their whole gradient, one of several blocks and a remainder, an empty one.
const std::vector<Size> kSizes{{1}, {3, 5}, {2, 7, 13}, {4, 1031}, {11, 1024}, {0, 5}};
const std::vector<Size> kPerf{{4096, 4096}};

// y[i] = f(x0[i], x1[i], ..)
template <class F>
Arrays map(const Arrays& in, F f) {
  Array y(in[0].shape);
  for (size_t i = 0; i < y.v.size(); ++i) y.v[i] = f(i);
  return {y};
}

double act(double x, Activation kind) {
  switch (kind) {
    case Activation::None: return x;
    case Activation::SiLU: return x / (1 + std::exp(-x));
    case Activation::GELU: return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::GELUTanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  }
  return 0;
}
const std::vector<std::pair<std::string, Activation>> kActivations{{"none", Activation::None},
                                                                   {"silu", Activation::SiLU},
                                                                   {"gelu", Activation::GELU},
                                                                   {"gelu_tanh", Activation::GELUTanh}};

// Moves `tensors` tensors of the inputs' size.
auto moves(double tensors) {
  return [tensors](const Size& s, size_t bytes) { return Work{tensors * elements(s) * double(bytes), 0}; };
}

const OpTest addition{
    .name = "add",
    .sizes = kSizes,
    .perf = kPerf,
    .inputs = [](Inputs& in, const Size& s) { in.normal(shape_of(s)).normal(shape_of(s)); },
    .run = [](const std::vector<Var>& in, const Size&) { return std::vector{add(in[0], in[1])}; },
    .reference = [](const Arrays& in,
                    const Size&) { return map(in, [&](size_t i) { return in[0].v[i] + in[1].v[i]; }); },
    .f32 = kOneRounding,
    .bf16 = kOneRoundingBf16,
    .work = moves(3)};
T2L_OP_TEST(addition);

const OpTest scaling{
    .name = "scale",
    .sizes = kSizes,
    .perf = kPerf,
    .inputs = [](Inputs& in, const Size& s) { in.normal(shape_of(s)); },
    .run = [](const std::vector<Var>& in, const Size&) { return std::vector{scale(in[0], -0.7f)}; },
    .reference = [](const Arrays& in,
                    const Size&) { return map(in, [&](size_t i) { return double(-0.7f) * in[0].v[i]; }); },
    .f32 = kOneRounding,
    .bf16 = kOneRoundingBf16,
    .work = moves(2)};
T2L_OP_TEST(scaling);

// exp, tanh and erf are good to a few units in the last place, 6e-8 each; 1 + erf and 1 + tanh cancel where the result
// is small, which an L2 norm over normal inputs does not see.
constexpr double kActivation = 4e-7;

const OpTest softcap_test{
    .name = "softcap",
    .sizes = kSizes,
    .perf = kPerf,
    .inputs = [](Inputs& in, const Size& s) { in.normal(shape_of(s), 0, 2); },
    .run = [](const std::vector<Var>& in, const Size&) { return std::vector{softcap(in[0], 3)}; },
    .reference = [](const Arrays& in,
                    const Size&) { return map(in, [&](size_t i) { return 3 * std::tanh(in[0].v[i] / 3); }); },
    .f32 = 2e-7,
    .bf16 = kOneRoundingBf16,
    // 1 - (y / cap)^2 of a y that was rounded: twice its error, where the slope is small
    .grad_f32 = 5e-7,
    .grad_bf16 = 8e-3,
    .work = moves(2)};
T2L_OP_TEST(softcap_test);

const bool activations = [] {
  for (const auto& [name, kind] : kActivations) {
    const auto f = [kind = kind](double x) { return act(x, kind); };
    const Activation a = kind;
    Register(
        {.name = "activation " + name,
         .sizes = kSizes,
         .perf = kPerf,
         .inputs = [](Inputs& in, const Size& s) { in.normal(shape_of(s), 0, 2); },
         .run = [a](const std::vector<Var>& in, const Size&) { return std::vector{activation(in[0], a)}; },
         .reference = [f](const Arrays& in, const Size&) { return map(in, [&](size_t i) { return f(in[0].v[i]); }); },
         .f32 = kActivation,
         .bf16 = kOneRoundingBf16,
         .work = moves(2)});
    Register({.name = "gated " + name,
              .sizes = kSizes,
              .perf = kPerf,
              .inputs = [](Inputs& in, const Size& s) { in.normal(shape_of(s), 0, 2).normal(shape_of(s)); },
              .run = [a](const std::vector<Var>& in, const Size&) { return std::vector{gated(in[0], in[1], a)}; },
              .reference = [f](const Arrays& in,
                               const Size&) { return map(in, [&](size_t i) { return f(in[0].v[i]) * in[1].v[i]; }); },
              .f32 = kActivation,
              .bf16 = kOneRoundingBf16,
              .work = moves(3)});
  }
  return true;
}();

constexpr RandomKey kKey{0x123456789abcdefULL, 77};
const OpTest dropping{
    .name = "dropout",
    .sizes = kSizes,
    .perf = kPerf,
    .inputs = [](Inputs& in, const Size& s) { in.normal(shape_of(s)); },
    .run = [](const std::vector<Var>& in, const Size&) { return std::vector{dropout(in[0], 0.3f, kKey)}; },
    .reference =
        [](const Arrays& in, const Size&) {
          return map(in, [&](size_t i) {
            const bool keep = (random_bits(kKey, i) >> 8) * 0x1p-24 >= double(0.3f);
            return keep ? in[0].v[i] / (1 - double(0.3f)) : 0.0;
          });
        },
    .f32 = 3 * kOneRounding,  // 1 - p, its reciprocal and the product are rounded
    .bf16 = kOneRoundingBf16,
    .work = moves(2)};
T2L_OP_TEST(dropping);

const OpTest casting{
    .name = "cast",
    .sizes = kSizes,
    .perf = kPerf,
    .inputs = [](Inputs& in, const Size& s) { in.normal(shape_of(s)).normal(shape_of(s)).f32(); },
    .run =
        [](const std::vector<Var>& in, const Size&) {
          return std::vector{cast(in[0], DType::F32), cast(in[1], DType::BF16)};
        },
    // The gradient of the cast to bf16 is one to the gradient, which is bf16 then: not the derivative of rounding.
    .reference =
        [](const Arrays& in, const Size&) {
          return Arrays{in[0], in[1]};
        },
    .f32 = kOneRoundingBf16,
    .bf16 = kOneRoundingBf16,
    .work =
        [](const Size& s, size_t bytes) {
          return Work{elements(s) * double(bytes == 2 ? 12 : 6), 0};
        }};
T2L_OP_TEST(casting);

// f32 sums in blocks: each product and sum is rounded, and the errors of a column add up like a random walk.
constexpr double kColumnSums = 6e-7;

const bool affines = [] {
  for (const auto& [name, has_factor, has_shift] :
       {std::tuple{"affine", true, true}, {"affine factor", true, false}, {"affine shift", false, true}}) {
    const bool factor = has_factor, shift = has_shift;
    Register({.name = name,
              .sizes = {{1, 1}, {5, 7}, {0, 4}, {70, 9}, {301, 33}, {9, 600}, {3, 5, 72}},
              .perf = kPerf,
              .inputs =
                  [=](Inputs& in, const Size& s) {
                    in.normal(shape_of(s));
                    if (factor) in.normal({s.back()});
                    if (shift) in.normal({s.back()});
                  },
              .run =
                  [=](const std::vector<Var>& in, const Size&) {
                    return std::vector{affine(in[0], factor ? in[1] : Var{}, shift ? in[1 + factor] : Var{})};
                  },
              .reference =
                  [=](const Arrays& in, const Size& s) {
                    const size_t cols = size_t(s.back());
                    return map(in, [&](size_t i) {
                      return in[0].v[i] * (factor ? in[1].v[i % cols] : 1) +
                             (shift ? in[1 + size_t(factor)].v[i % cols] : 0);
                    });
                  },
              .f32 = 2 * kOneRounding,
              .bf16 = kOneRoundingBf16,
              .grad_f32 = kColumnSums,
              .work = moves(2)});
  }
  return true;
}();

const OpTest summing_rows{.name = "sum_rows",
                          .sizes = {{1, 1}, {0, 7}, {3, 5}, {63, 33}, {300, 40}, {1100, 17}, {5, 1100}, {257, 136}},
                          .perf = kPerf,
                          .inputs = [](Inputs& in, const Size& s) { in.normal(shape_of(s)); },
                          .run =
                              [](const std::vector<Var>& in, const Size& s) {
                                const Tensor& x = in[0].value;
                                Tensor y = Tensor::empty({s[1]}, x.dtype(), x.device()),
                                       z = Tensor::zeros({s[1]}, x.dtype(), x.device());
                                backend(x).sum_rows(y, x, false);
                                for (int i = 0; i < 2; ++i) backend(x).sum_rows(z, x, true);
                                return std::vector<Var>{y, z};
                              },
                          .reference =
                              [](const Arrays& in, const Size& s) {
                                Array y({s[1]}), z({s[1]});
                                for (int64_t i = 0; i < s[0]; ++i)
                                  for (int64_t j = 0; j < s[1]; ++j) y[j] += in[0](i, j);
                                for (int64_t j = 0; j < s[1]; ++j) z[j] = 2 * y[j];
                                return Arrays{y, z};
                              },
                          .f32 = kColumnSums,
                          .bf16 = 2 * kOneRoundingBf16,  // z is rounded twice
                          .differentiable = false,
                          .work = moves(3)};
T2L_OP_TEST(summing_rows);

// Every operation above on views that begin at any element.
TEST_CASE("unaligned views give the same bits") {
  const int64_t rows = 5, cols = 531, n = rows * cols;
  std::mt19937 rng(5);
  std::normal_distribution<float> normal;
  for (const Device device : devices())
    for (const DType t : {DType::F32, DType::BF16}) {
      const auto fresh = [&](int64_t size) {
        std::vector<float> v(static_cast<size_t>(size));
        for (float& x : v) x = normal(rng);
        return Tensor::from(v, device).to(t);
      };
      const Tensor a = fresh(n), b = fresh(n), c = fresh(n), f = fresh(cols), s = fresh(cols);
      // x at an address `offset` elements off
      const auto moved = [&](const Tensor& x, int64_t offset) {
        const Tensor view = Tensor::zeros({x.size() + 8}, x.dtype(), device).slice(offset, offset + x.size());
        view.copy_from(x.reshape({x.size()}));
        return view;
      };
      const auto run_all = [&](int64_t offset) {
        const auto at = [&](const Tensor& x, int64_t more) { return moved(x, offset ? (offset + more) % 8 : 0); };
        const auto matrix = [&](const Tensor& x) { return x.reshape({rows, cols}); };
        std::vector<std::vector<float>> results;
        const auto keep = [&](const Tensor& y) { results.push_back(y.to(DType::F32).template to_vector<float>()); };
        Backend& on = backend(device);
        const Tensor x = at(a, 0), y = at(b, 1), z = at(c, 2);
        Tensor out = at(a, 3), out2 = at(b, 0), column = at(f, 1);
        const Tensor factor = at(f, 2), shift = at(s, 5);
        on.add(out, x, y), keep(out);
        on.scale(out, x, 0.3f, true), keep(out);
        on.activation_forward(out, x, Activation::GELU), keep(out);
        on.activation_backward(out, y, x, Activation::SiLU, true), keep(out);
        on.gated_forward(out, x, y, Activation::GELUTanh), keep(out);
        on.gated_backward(&out, true, &out2, false, x, y, z, Activation::SiLU), keep(out), keep(out2);
        on.dropout(out, x, 0.5f, kKey, true), keep(out);
        out = matrix(out);
        on.affine_forward(out, matrix(x), &factor, &shift), keep(out);
        on.affine_backward(out, matrix(x), &factor, true), keep(out);
        on.affine_backward_factor(column, matrix(x), matrix(y), true), keep(column);
        on.sum_rows(column, matrix(x), false), keep(column);
        for (const DType to : {DType::F32, DType::BF16}) {
          Tensor other = moved(a.to(to), offset);
          on.cast(other, x, true), keep(other);
        }
        Tensor square = Tensor::empty({1}, DType::F32, device);
        on.sum_squares(square, x), keep(square);
        return results;
      };
      const auto want = run_all(0);
      for (const int64_t offset : {1, 2, 3, 5, 7}) {
        INFO(name_of(device) << " " << name_of(t) << ", " << offset << " elements off");
        const auto got = run_all(offset);
        for (size_t i = 0; i < want.size(); ++i) {
          INFO("result " << i);
          CHECK(got[i] == want[i]);
        }
      }
    }
}

// Far out an activation is 0 or x, and nothing overflows on the way there.
TEST_CASE("activations keep to their limits") {
  const std::vector<float> x{-1e4f, -200, -20, -0.0f, 0, 20, 200, 1e4f};
  for (const Device device : devices())
    for (const auto& [name, kind] : kActivations) {
      if (kind == Activation::None) continue;
      const Tensor t = Tensor::from(x, device), dy = Tensor::from(std::vector<float>(x.size(), 1), device);
      Tensor y = Tensor::empty(t.shape(), DType::F32, device), dx = Tensor::empty(t.shape(), DType::F32, device);
      backend(device).activation_forward(y, t, kind);
      backend(device).activation_backward(dx, dy, t, kind, false);
      const auto got = y.to_vector<float>(), slope = dx.to_vector<float>();
      INFO(name_of(device) << " " << name << ": " << fmt::format("{} {}", fmt::join(got, " "), fmt::join(slope, " ")));
      for (size_t i = 0; i < x.size(); ++i) {
        CHECK(std::abs(got[i] - std::max(x[i], 0.0f)) <= (std::abs(x[i]) >= 200 ? 0 : 1e-7));
        CHECK(std::abs(slope[i] - (x[i] > 0 ? 1 : x[i] < 0 ? 0 : 0.5)) <= 2e-7);
      }
    }
}

TEST_CASE("wrong tensors are refused") {
  for (const Device device : devices()) {
    Tensor three = Tensor::zeros({3}, DType::F32, device);
    const Tensor four = Tensor::zeros({4}, DType::F32, device), half = Tensor::zeros({3}, DType::BF16, device),
                 whole = Tensor::zeros({3}, DType::I32, device);
    Backend& on = backend(device);
    CHECK_THROWS_AS(on.add(three, three, four), std::logic_error);
    CHECK_THROWS_AS(on.scale(three, half, 1, false), std::logic_error);
    CHECK_THROWS_AS(on.cast(three, four, false), std::logic_error);
    CHECK_THROWS_AS(on.cast(three, whole, false), std::logic_error);
    CHECK_THROWS_AS(on.affine_backward(three, three, &four, false), std::logic_error);
    CHECK_THROWS_AS(on.sum_rows(three, four, false), std::logic_error);
    CHECK_THROWS_AS(on.sum_squares(three, four), std::logic_error);
    CHECK_THROWS_AS(on.random_uniform(three, 1, 0, {}), std::logic_error);
  }
}

}  // namespace
}  // namespace t2l::test
