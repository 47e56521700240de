#include <cmath>

#include "tests/harness.h"

namespace t2l::test {
namespace {

// size: tokens, heads, dim, positions
const OpTest rope_test{
    .name = "rope",
    .sizes = {{5, 3, 10, 9}, {33, 2, 2, 50}, {17, 5, 64, 40}, {3, 1, 256, 7}, {19, 2, 34, 12}, {0, 2, 8, 4}},
    .perf = {{4096, 32, 64, 4096}, {4096, 8, 128, 4096}},
    .inputs =
        [](Inputs& in, const Size& s) {
          std::vector<double> cos, sin;
          for (int64_t i = 0; i < s[3] * s[2] / 2; ++i) {
            const double angle = double(i / (s[2] / 2)) * std::pow(100., -double(i % (s[2] / 2)) / double(s[2] / 2));
            cos.push_back(std::cos(angle)), sin.push_back(std::sin(angle));
          }
          in.normal({s[0], s[1], s[2]});
          in.values({s[3], s[2] / 2}, cos).frozen().f32().values({s[3], s[2] / 2}, sin).frozen().f32();
          in.ids({s[0]}, 0, s[3]);
        },
    .run = [](const std::vector<Var>& in, const Size&) -> std::vector<Var> {
      return {rope(in[0], in[1].value, in[2].value, in[3].value)};
    },
    .reference = [](const Arrays& in, const Size& s) -> Arrays {
      Array y(in[0].shape);
      const int64_t half = s[2] / 2;
      for (int64_t row = 0; row < s[0] * s[1]; ++row)
        for (int64_t j = 0; j < half; ++j) {
          const int64_t position = int64_t(in[3][row / s[1]]);
          const double a = in[0](row, j), b = in[0](row, j + half), c = in[1](position, j), d = in[2](position, j);
          y(row, j) = a * c - b * d;
          y(row, j + half) = b * c + a * d;
        }
      return {y};
    },
    .f32 = 2e-7,  // two products and a sum
    .bf16 = 3e-3,
    .work =
        [](const Size& s, size_t bytes) {
          return Work{2. * double(s[0] * s[1] * s[2]) * double(bytes), 0};
        },
};
T2L_OP_TEST(rope_test);

// In place, as in generation.
const OpTest rope_in_place{
    .name = "rope in place",
    .sizes = {{9, 3, 10, 9}, {17, 2, 64, 40}},
    .inputs = rope_test.inputs,
    .run = [](const std::vector<Var>& in, const Size&) -> std::vector<Var> {
      Tensor y = in[0].value.clone();
      backend(y).rope(y, y, in[1].value, in[2].value, in[3].value, false, false);
      return {y};
    },
    .reference = rope_test.reference,
    .f32 = 2e-7,
    .bf16 = 3e-3,
    .differentiable = false,
};
T2L_OP_TEST(rope_in_place);

}  // namespace
}  // namespace t2l::test
