// Sums over k of rounded products, in f32: the error of an element is a few units of 6e-8 of the terms' L2 norm, which
// is also the size of the sum; sqrt(k) times more for k terms in a row, less as blocks are summed first. bf16 products
// are exact in f32, and the result is rounded once.
#include <catch2/catch.hpp>

#include "tests/harness.h"

namespace t2l::test {
namespace {

constexpr double kF32 = 6e-7, kBF16 = 4e-3;

double at(const Array& a, int64_t g, int64_t i, int64_t j, bool transposed) {
  const int64_t rows = a.dim(-2), cols = a.dim(-1);
  return a[g * rows * cols + (transposed ? j * cols + i : i * cols + j)];
}

// ---- batches of matrices.  Size: batch, m, n, k
const bool products = [] {
  for (const bool ta : {false, true})
    for (const bool tb : {false, true})
      Register(
          {.name = fmt::format("matmul {}{}", ta ? "t" : "n", tb ? "t" : "n"),
           .sizes = {{1, 1, 1, 1},
                     {2, 3, 5, 7},
                     {1, 17, 9, 13},
                     {3, 33, 40, 70},
                     {1, 72, 136, 96},
                     {2, 5, 7, 0},
                     {1, 0, 3, 4}},
           .perf = {{1, 1024, 1024, 1024}, {64, 128, 128, 64}},
           .inputs =
               [=](Inputs& in, const Size& s) {
                 in.normal(ta ? Shape{s[0], s[3], s[1]} : Shape{s[0], s[1], s[3]});
                 in.normal(tb ? Shape{s[0], s[2], s[3]} : Shape{s[0], s[3], s[2]});
               },
           .run = [=](const std::vector<Var>& in, const Size&) { return std::vector{matmul(in[0], in[1], ta, tb)}; },
           .reference =
               [=](const Arrays& in, const Size& s) {
                 Array c({s[0], s[1], s[2]});
                 for (int64_t g = 0; g < s[0]; ++g)
                   for (int64_t i = 0; i < s[1]; ++i)
                     for (int64_t j = 0; j < s[2]; ++j)
                       for (int64_t k = 0; k < s[3]; ++k)
                         c[(g * s[1] + i) * s[2] + j] += at(in[0], g, i, k, ta) * at(in[1], g, k, j, tb);
                 return Arrays{c};
               },
           .f32 = kF32,
           .bf16 = kBF16,
           .work =
               [](const Size& s, size_t bytes) {
                 const double b = double(s[0]), m = double(s[1]), n = double(s[2]), k = double(s[3]);
                 return Work{b * (m * k + k * n + m * n) * double(bytes), 2 * b * m * n * k};
               }});
  return true;
}();

// ---- linear layers.  Size: rows, in, out
double act(double x, Activation kind) {
  switch (kind) {
    case Activation::None: return x;
    case Activation::SiLU: return x / (1 + std::exp(-x));
    case Activation::GELU: return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::GELUTanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  }
  return 0;
}

Arrays linear_reference(const Arrays& in, Activation kind) {
  const Array &x = in[0], &w = in[1];
  Array y({x.rows(), w.dim(0)});
  for (int64_t i = 0; i < x.rows(); ++i)
    for (int64_t j = 0; j < w.dim(0); ++j) {
      double sum = in.size() > 2 ? in[2][j] : 0;
      for (int64_t k = 0; k < w.dim(1); ++k) sum += x(i, k) * w(j, k);
      y(i, j) = act(sum, kind);
    }
  return {y};
}

Work linear_work(const Size& s, size_t bytes) {
  const double m = double(s[0]), k = double(s[1]), n = double(s[2]);
  return {(m * k + k * n + m * n) * double(bytes), 2 * m * n * k};
}

const bool linears = [] {
  for (const auto& [kind_name, kind_] : {std::pair{"none", Activation::None},
                                         {"silu", Activation::SiLU},
                                         {"gelu", Activation::GELU},
                                         {"gelu_tanh", Activation::GELUTanh}})
    for (const bool has_bias : {false, true})
      // frozen: the activation is part of the product; else an operation of its own
      for (const bool frozen : {false, true}) {
        const Activation kind = kind_;
        if (frozen && kind == Activation::None) continue;
        Register({.name = fmt::format("linear {}{}{}", kind_name, has_bias ? " bias" : "", frozen ? " fused" : ""),
                  .sizes = frozen ? std::vector<Size>{{1, 3, 2}, {37, 70, 41}, {72, 96, 136}}
                                  : std::vector<Size>{{1, 1, 1}, {5, 7, 3}, {0, 5, 4}, {37, 70, 41}, {72, 96, 136}},
                  .perf = {{2048, 1024, 4096}, {1, 1024, 4096}},
                  .inputs =
                      [=](Inputs& in, const Size& s) {
                        in.normal({s[0], s[1]});
                        if (frozen) in.frozen();
                        in.normal({s[2], s[1]}, 0, 1 / std::sqrt(double(s[1])));
                        if (frozen) in.frozen();
                        if (has_bias) in.normal({s[2]});
                        if (has_bias && frozen) in.frozen();
                      },
                  .run = [=](const std::vector<Var>& in,
                             const Size&) { return std::vector{linear(in[0], in[1], has_bias ? in[2] : Var{}, kind)}; },
                  .reference = [=](const Arrays& in, const Size&) { return linear_reference(in, kind); },
                  .f32 = kF32,
                  // where the activation stands alone, its input was rounded to bf16 before
                  .bf16 = frozen || kind == Activation::None ? kBF16 : 2 * kBF16,
                  .work = linear_work});
      }
  return true;
}();

// ---- some rows of a weight.  Size: rows, in, begin, blocks, stride, used, rows of the weight
const OpTest some_rows{
    .name = "linear_rows",
    .sizes = {{3, 5, 1, 2, 4, 3, 9},
              {5, 3, 0, 3, 2, 2, 6},
              {4, 3, 2, 1, 0, 3, 8},
              {0, 3, 1, 2, 4, 1, 7},
              {33, 40, 5, 3, 24, 17, 70},
              {40, 64, 8, 2, 72, 64, 144}},
    .inputs =
        [](Inputs& in, const Size& s) {
          in.normal({s[0], s[1]}).normal({s[6], s[1]}, 0, 1 / std::sqrt(double(s[1]))).normal({s[6]});
        },
    .run =
        [](const std::vector<Var>& in, const Size& s) {
          return std::vector{
              linear_rows(in[0], in[1], in[2], {.begin = s[2], .blocks = s[3], .stride = s[4], .used = s[5]})};
        },
    .reference =
        [](const Arrays& in, const Size& s) {
          const Array whole = linear_reference(in, Activation::None)[0];
          Array y({s[0], s[3] * s[5]});
          for (int64_t i = 0; i < s[0]; ++i)
            for (int64_t j = 0; j < s[3] * s[5]; ++j) y(i, j) = whole(i, s[2] + j / s[5] * s[4] + j % s[5]);
          return Arrays{y};
        },
    .f32 = kF32,
    .bf16 = kBF16,
    .grad_bf16 = 2 * kBF16};  // the blocks' parts of dx add up, each rounded
T2L_OP_TEST(some_rows);

// ---- groups of blocks within larger matrices, f32 results of bf16 inputs, accumulation.
// Size: groups, m, n, k, gap after each row
const OpTest strided{
    .name = "matmul strided",
    .sizes = {{1, 3, 4, 5, 2}, {3, 17, 9, 21, 3}, {2, 40, 72, 64, 8}},
    .inputs =
        [](Inputs& in, const Size& s) {
          // the groups stand side by side: rows of groups * (cols + gap)
          in.normal({s[1], s[0] * (s[3] + s[4])}).normal({s[3], s[0] * (s[2] + s[4])}).normal({s[0] * s[2]});
          in.normal({s[1], s[0] * (s[2] + s[4])}).f32();
        },
    .run =
        [](const std::vector<Var>& in, const Size& s) {
          const Tensor &a = in[0].value, &b = in[1].value, &bias = in[2].value;
          Matmul spec{.m = s[1],
                      .n = s[2],
                      .k = s[3],
                      .lda = a.cols(),
                      .ldb = b.cols(),
                      .ldc = b.cols(),
                      .groups = s[0],
                      .stride_a = s[3] + s[4],
                      .stride_b = s[2] + s[4],
                      .stride_c = s[2] + s[4],
                      .stride_bias = s[2]};
          Tensor plain = in[3].value.clone(), sum = plain.clone();  // what is not a group's stays as it was
          spec.activation = Activation::SiLU;
          backend(a).matmul(plain, a, b, &bias, spec);
          spec.activation = Activation::None;
          spec.accumulate = true;
          backend(a).matmul(sum, a, b, nullptr, spec);
          return std::vector<Var>{plain, sum};
        },
    .reference =
        [](const Arrays& in, const Size& s) {
          Array plain = in[3], sum = in[3];
          for (int64_t g = 0; g < s[0]; ++g)
            for (int64_t i = 0; i < s[1]; ++i)
              for (int64_t j = 0; j < s[2]; ++j) {
                double c = 0;
                for (int64_t k = 0; k < s[3]; ++k)
                  c += in[0](i, g * (s[3] + s[4]) + k) * in[1](k, g * (s[2] + s[4]) + j);
                plain(i, g * (s[2] + s[4]) + j) = act(c + in[2][g * s[2] + j], Activation::SiLU);
                sum(i, g * (s[2] + s[4]) + j) += c;
              }
          return Arrays{plain, sum};
        },
    .f32 = kF32,
    .bf16 = kF32,  // the result is f32
    .differentiable = false};
T2L_OP_TEST(strided);

TEST_CASE("products that reach outside are refused") {
  for (const Device device : devices()) {
    const Tensor a = Tensor::zeros({4, 6}, DType::F32, device), half = Tensor::zeros({4, 6}, DType::BF16, device),
                 bias = Tensor::zeros({4}, DType::F32, device);
    Tensor c = Tensor::zeros({4, 4}, DType::F32, device);
    const Matmul good{.m = 4, .n = 4, .k = 6, .transpose_b = true, .lda = 6, .ldb = 6, .ldc = 4};
    CHECK_NOTHROW(backend(device).matmul(c, a, a, &bias, good));
    const auto refused = [&](auto change, const Tensor& b, const Tensor* add = nullptr) {
      Matmul spec = good;
      change(spec);
      CHECK_THROWS_AS(backend(device).matmul(c, a, b, add, spec), std::logic_error);
    };
    refused([](Matmul& s) { s.k = 7; }, a);
    refused([](Matmul& s) { s.ldc = 5; }, a);
    refused([](Matmul& s) { s.groups = 2, s.stride_b = 1; }, a);
    refused([](Matmul& s) { s.n = -1; }, a);
    refused([](Matmul& s) { s.accumulate = true; }, a, &bias);
    refused([](Matmul& s) { s.groups = 2, s.stride_bias = 1; }, a, &bias);
    refused([](Matmul&) {}, half);
  }
}

}  // namespace
}  // namespace t2l::test
