#include <algorithm>

#include "tests/harness.h"

namespace t2l::test {
namespace {

// y = [x0[ids0], x1[ids1]]: two sources of different widths, so that columns and strides differ.
// size: rows out, rows of x0, columns of x0, rows of x1, columns of x1. Few rows in x0: each is gathered often, in x1:
// some are never gathered.
const OpTest gather{
    .name = "gather_rows",
    .sizes = {{37, 3, 5, 90, 19}, {70, 2, 128, 150, 67}, {300, 5, 264, 40, 8}, {1, 1, 1, 1, 1}, {0, 3, 4, 2, 4}},
    .perf = {{4096, 512, 1024, 512, 1024}, {8192, 32000, 2048, 32, 64}},
    .inputs =
        [](Inputs& in, const Size& s) {
          in.normal({s[1], s[2]}).normal({s[3], s[4]}).ids({s[0]}, 0, s[1]).ids({s[0]}, 0, s[3]);
        },
    .run = [](const std::vector<Var>& in, const Size&) -> std::vector<Var> {
      return {gather_columns({{in[0], in[2].value}, {in[1], in[3].value}})};
    },
    .reference = [](const Arrays& in, const Size& s) -> Arrays {
      Array y({s[0], s[2] + s[4]});
      for (int64_t i = 0; i < s[0]; ++i) {
        for (int64_t j = 0; j < s[2]; ++j) y(i, j) = in[0](int64_t(in[2][i]), j);
        for (int64_t j = 0; j < s[4]; ++j) y(i, s[2] + j) = in[1](int64_t(in[3][i]), j);
      }
      return {y};
    },
    // Forward copies, exactly. A gradient is a sum in f32 of up to 100 values, then rounded to T once.
    .f32 = 0,
    .bf16 = 0,
    .grad_f32 = 1e-6,
    .grad_bf16 = 3e-3,
    .work =
        [](const Size& s, size_t bytes) {
          return Work{2. * double(s[0] * (s[2] + s[4])) * double(bytes), 0};
        },
};
T2L_OP_TEST(gather);

// Two ranges of columns that overlap, so that gradients add up; some columns are in neither.  size: rows, columns
const OpTest slice_columns_test{
    .name = "slice_columns",
    .sizes = {{33, 7}, {65, 72}, {2, 257}, {0, 5}},
    .inputs =
        [](Inputs& in, const Size& s) {
          in.normal({s[0], s[1]});
        },
    .run = [](const std::vector<Var>& in, const Size& s) -> std::vector<Var> {
      return {slice_columns(in[0], 1, s[1] - 1), slice_columns(in[0], s[1] / 2, s[1] - 1)};
    },
    .reference = [](const Arrays& in, const Size& s) -> Arrays {
      Array a({s[0], s[1] - 2}), b({s[0], s[1] - 1 - s[1] / 2});
      for (int64_t i = 0; i < s[0]; ++i) {
        for (int64_t j = 0; j < s[1] - 2; ++j) a(i, j) = in[0](i, 1 + j);
        for (int64_t j = 0; j < s[1] - 1 - s[1] / 2; ++j) b(i, j) = in[0](i, s[1] / 2 + j);
      }
      return {a, b};
    },
    .f32 = 0,
    .bf16 = 0,
    .grad_f32 = 1e-7,
    .grad_bf16 = 3e-3,
};
T2L_OP_TEST(slice_columns_test);

// base + x[ids].  size: rows out, rows of x, columns
const OpTest add_rows_test{
    .name = "add_rows",
    .sizes = {{33, 4, 7}, {65, 300, 72}, {130, 3, 257}, {0, 2, 3}},
    .inputs =
        [](Inputs& in, const Size& s) {
          in.normal({s[0], s[2]}).normal({s[1], s[2]}).ids({s[0]}, 0, s[1]);
        },
    .run = [](const std::vector<Var>& in, const Size&) -> std::vector<Var> {
      return {add_rows(in[0], in[1], in[2].value)};
    },
    .reference = [](const Arrays& in, const Size& s) -> Arrays {
      Array y = in[0];
      for (int64_t i = 0; i < s[0]; ++i)
        for (int64_t j = 0; j < s[2]; ++j) y(i, j) += in[1](int64_t(in[2][i]), j);
      return {y};
    },
    .f32 = 1e-7,   // one rounding
    .bf16 = 3e-3,  // one rounding
    .grad_f32 = 1e-6,
    .grad_bf16 = 3e-3,
};
T2L_OP_TEST(add_rows_test);

// size: rows out, rows in, columns. Into rows that hold something, and into memory never written, read back by name.
const OpTest put_rows_test{
    .name = "put_rows",
    .sizes = {{7, 3, 5}, {300, 70, 33}, {40, 40, 264}, {5, 0, 4}},
    .perf = {{65536, 8, 1024}, {65536, 4096, 1024}},
    .inputs =
        [](Inputs& in, const Size& s) {
          std::vector<int32_t> ids(static_cast<size_t>(s[0]));
          for (size_t i = 0; i < ids.size(); ++i) ids[i] = int32_t(i);
          std::shuffle(ids.begin(), ids.end(), in.rng());
          ids.resize(size_t(s[1]));
          in.normal({s[0], s[2]}).normal({s[1], s[2]}).integers(ids);
        },
    .run =
        [](const std::vector<Var>& in, const Size&) {
          Tensor y = in[0].value.clone(), fresh = Tensor::empty(y.shape(), y.dtype(), y.device());
          for (Tensor* to : {&y, &fresh}) backend(y).put_rows(*to, in[1].value, in[2].value);
          return std::vector<Var>{y, gather_rows(fresh, in[2].value)};
        },
    .reference = [](const Arrays& in, const Size& s) -> Arrays {
      Array y = in[0];
      for (int64_t i = 0; i < s[1]; ++i)
        for (int64_t j = 0; j < s[2]; ++j) y(int64_t(in[2][i]), j) = in[1](i, j);
      return {y, in[1]};
    },
    .f32 = 0,  // copies
    .bf16 = 0,
    .differentiable = false,
    .work =
        [](const Size& s, size_t bytes) {
          return Work{(2. * double(s[0]) + 6. * double(s[1])) * double(s[2]) * double(bytes), 0};
        },
};
T2L_OP_TEST(put_rows_test);

// size: batch, rows, columns; batch 0 stands for a matrix without one
const OpTest transpose_test{
    .name = "transpose",
    .sizes = {{0, 3, 5}, {0, 33, 70}, {2, 64, 32}, {3, 31, 65}, {1, 1, 130}, {2, 97, 1}, {2, 0, 5}},
    .perf = {{0, 4096, 4096}, {12, 512, 64}},
    .inputs =
        [](Inputs& in, const Size& s) {
          in.normal(s[0] ? Shape{s[0], s[1], s[2]} : Shape{s[1], s[2]});
        },
    .run = [](const std::vector<Var>& in, const Size&) -> std::vector<Var> { return {transpose(in[0])}; },
    .reference = [](const Arrays& in, const Size& s) -> Arrays {
      Array y(s[0] ? Shape{s[0], s[2], s[1]} : Shape{s[2], s[1]});
      for (int64_t b = 0; b < std::max<int64_t>(s[0], 1); ++b)
        for (int64_t i = 0; i < s[1]; ++i)
          for (int64_t j = 0; j < s[2]; ++j) y(b * s[2] + j, i) = in[0](b * s[1] + i, j);
      return {y};
    },
    .f32 = 0,  // copies
    .bf16 = 0,
    .grad_f32 = 1e-8,  // central differences are exact to about 1e-11
    .grad_bf16 = 1e-8,
    .work =
        [](const Size& s, size_t bytes) {
          return Work{2. * double(std::max<int64_t>(s[0], 1) * s[1] * s[2]) * double(bytes), 0};
        },
};
T2L_OP_TEST(transpose_test);

// size: columns, then the lengths of the segments
const OpTest segment_mean_test{
    .name = "segment_mean",
    .sizes = {{5, 1, 7, 0, 3}, {130, 33, 1, 70}, {64, 2, 0, 0}, {257, 9}, {3}},
    .perf = {{384, 64, 64, 64, 64, 64, 64, 64, 64}, {1024, 512, 512, 512, 512}},
    .inputs =
        [](Inputs& in, const Size& s) {
          std::vector<int32_t> offsets{0};
          for (size_t i = 1; i < s.size(); ++i) offsets.push_back(offsets.back() + int32_t(s[i]));
          in.normal({offsets.back(), s[0]}, 0.5).integers(offsets);
        },
    .run = [](const std::vector<Var>& in, const Size&) -> std::vector<Var> {
      return {segment_mean(in[0], in[1].value)};
    },
    .reference = [](const Arrays& in, const Size& s) -> Arrays {
      Array y({int64_t(s.size()) - 1, s[0]});
      for (int64_t k = 0; k + 1 < int64_t(s.size()); ++k)
        for (int64_t i = int64_t(in[1][k]); i < int64_t(in[1][k + 1]); ++i)
          for (int64_t j = 0; j < s[0]; ++j) y(k, j) += in[0](i, j) / double(s[size_t(k) + 1]);
      return {y};
    },
    // sums of up to 70 values in f32; one rounding to T
    .f32 = 5e-7,
    .bf16 = 3e-3,
    .work =
        [](const Size& s, size_t bytes) {
          double rows = 0;
          for (size_t i = 1; i < s.size(); ++i) rows += double(s[i]);
          return Work{(rows + double(s.size()) - 1) * double(s[0]) * double(bytes), 0};
        },
};
T2L_OP_TEST(segment_mean_test);

}  // namespace
}  // namespace t2l::test
