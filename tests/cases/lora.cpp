#include <catch2/catch.hpp>

#include "tensor/allocator.h"
#include "tests/harness.h"

namespace t2l::test {
namespace {

std::vector<int32_t> offsets_of(const Size& s, size_t first) {
  std::vector<int32_t> offsets{0};
  for (size_t i = first; i < s.size(); ++i) offsets.push_back(offsets.back() + int32_t(s[i]));
  return offsets;
}

// y(t, j) += alpha sum over i of x(t, i) w[s](j, i)
void add_products(Array& y, const Array& x, const Array& w, const Array& offsets, double alpha) {
  const int64_t n = w.dim(1), k = w.dim(2);
  for (int64_t s = 0; s < w.dim(0); ++s)
    for (int64_t t = int64_t(offsets[s]); t < int64_t(offsets[s + 1]); ++t)
      for (int64_t j = 0; j < n; ++j)
        for (int64_t i = 0; i < k; ++i) y(t, j) += alpha * x(t, i) * w(s * n + j, i);
}

double tokens_of(const Size& s, size_t first) { return double(offsets_of(s, first).back()); }

// size: k, n, the samples' tokens. Empty samples, many of one token, k and n that 128 bits do not divide, a k of
// several pieces, several blocks of rows.
const OpTest segment_matmul_test{
    .name = "segment_matmul",
    .sizes = {{13, 3, 2, 0, 3},
              {16, 8, 1, 1, 1, 1},
              {8, 24, 0, 5, 1, 0},
              {3, 17, 4, 4},
              {2056, 6, 1, 0, 1, 1},
              {1031, 5, 9, 3, 0, 21},
              {9, 1090, 17, 1, 0},
              {64, 520, 1, 1, 1},
              {512, 40, 150, 2},
              {4, 5, 0, 0},
              {5, 7}},
    .perf = {{4096, 16, 1, 1, 1, 1, 1, 1, 1, 1},
             {16, 4096, 1, 1, 1, 1, 1, 1, 1, 1},
             {576, 8, 1, 1, 1, 1, 1, 1, 1, 1},
             {8, 576, 1, 1, 1, 1, 1, 1, 1, 1},
             {4096, 16, 512},
             {16, 4096, 512},
             {4096, 16, 256, 256, 256, 256, 256, 256, 256, 256},
             {16, 4096, 256, 256, 256, 256, 256, 256, 256, 256}},
    .inputs =
        [](Inputs& in, const Size& s) {
          const auto offsets = offsets_of(s, 2);
          const int64_t samples = int64_t(offsets.size()) - 1;
          in.normal({offsets.back(), s[0]}).normal({samples, s[1], s[0]}).integers(offsets);
        },
    .run = [](const std::vector<Var>& in, const Size&) -> std::vector<Var> {
      return {segment_matmul(in[0], in[1], in[2].value, 0.75f)};
    },
    .reference = [](const Arrays& in, const Size& s) -> Arrays {
      Array y({in[0].dim(0), s[1]});
      add_products(y, in[0], in[1], in[2], 0.75);
      return {y};
    },
    // sums of up to 2056 products in f32; one rounding to T
    .f32 = 1e-6,
    .bf16 = 3e-3,
    .work =
        [](const Size& s, size_t bytes) {
          const double tokens = tokens_of(s, 2), k = double(s[0]), n = double(s[1]);
          return Work{(tokens * (k + n) + double(s.size() - 2) * k * n) * double(bytes), 2 * tokens * k * n};
        },
};
T2L_OP_TEST(segment_matmul_test);

// size: columns in, rank, columns out, the samples' tokens
const OpTest lora_test{
    .name = "lora",
    .sizes = {{7, 2, 5, 3, 0, 2}, {72, 16, 40, 1, 1, 1}, {130, 4, 67, 30, 1, 0, 5}, {1040, 3, 33, 2, 11}, {5, 2, 3, 0}},
    .perf = {{576, 8, 576, 1, 1, 1, 1, 1, 1, 1, 1},
             {4096, 16, 4096, 1, 1, 1, 1, 1, 1, 1, 1},
             {4096, 16, 4096, 512, 512}},
    .inputs =
        [](Inputs& in, const Size& s) {
          const auto offsets = offsets_of(s, 3);
          const int64_t samples = int64_t(offsets.size()) - 1, tokens = offsets.back();
          in.normal({tokens, s[2]}).normal({tokens, s[0]}).normal({samples, s[1], s[0]}).normal({samples, s[2], s[1]});
          in.integers(offsets);
        },
    .run = [](const std::vector<Var>& in, const Size&) -> std::vector<Var> {
      return {lora(in[0], in[1], in[2], in[3], in[4].value, 0.5f)};
    },
    .reference = [](const Arrays& in, const Size& s) -> Arrays {
      Array t({in[0].dim(0), s[1]}), y = in[0];
      add_products(t, in[1], in[2], in[4], 1);
      add_products(y, t, in[3], in[4], 0.5);
      return {y};
    },
    .f32 = 1e-6,
    .bf16 = 5e-3,  // what lies between A and B is rounded too
    .work =
        [](const Size& s, size_t bytes) {
          const double tokens = tokens_of(s, 3), in = double(s[0]), r = double(s[1]), out = double(s[2]);
          return Work{(tokens * (in + 2 * out + 2 * r) + double(s.size() - 3) * r * (in + out)) * double(bytes),
                      2 * tokens * r * (in + out)};
        },
};
T2L_OP_TEST(lora_test);

// What is kept for backward is what the wanted gradients need, and no more.
TEST_CASE("lora keeps only what gradients need") {
  constexpr int64_t tokens = 50, in = 30, r = 4, out = 20;
  const Tensor offsets = Tensor::from(std::vector<int32_t>{0, 20, 50});
  const auto kept = [&](bool base, bool x, bool a, bool b) {
    const auto make = [](bool wanted, Shape shape) {
      const Tensor t = Tensor::full(shape, 1);
      return wanted ? variable(t) : Var(t);
    };
    Var vx = make(x, {tokens, in}), va = make(a, {2, r, in}), vb = make(b, {2, out, r});
    const Var vbase = make(base, {tokens, out});
    const size_t before = memory_stats(Device::CPU).live;
    const Var y = lora(vbase, vx, va, vb, offsets, 1);
    size_t freed = memory_stats(Device::CPU).live;
    const size_t added = freed - before - y.value.bytes();
    vx = {}, va = {}, vb = {};
    freed -= memory_stats(Device::CPU).live;
    Tape::clear();
    return std::pair{added, freed};  // of its own; of the inputs, which are freed if it does not hold them
  };
  const size_t x = tokens * in * 4, a = 2 * r * in * 4, b = 2 * out * r * 4, t = tokens * r * 4;
  CHECK(kept(false, false, false, false) == std::pair{size_t(0), x + a + b});
  CHECK(kept(true, false, false, false) == std::pair{size_t(0), x + a + b});
  CHECK(kept(false, true, false, false) == std::pair{size_t(0), x});
  CHECK(kept(false, false, true, false) == std::pair{size_t(0), a});
  CHECK(kept(false, false, false, true) == std::pair{t, x + a + b});
}

TEST_CASE("lora leaves its base alone") {
  for (const Device device : devices()) {
    const Tensor base = Tensor::full({2, 8}, 1, device), x = base, a = Tensor::full({1, 4, 8}, 1, device),
                 b = Tensor::full({1, 8, 4}, 1, device);
    CHECK(to_double(lora(base, x, a, b, Tensor::from(std::vector<int32_t>{0, 2}, device), 0.5f).value) ==
          std::vector<double>(16, 1 + 0.5 * 32));
    CHECK(to_double(base) == std::vector<double>(16, 1));
  }
}

// A token's result has the same bits alone and in any batch.
TEST_CASE("per-sample products do not depend on the batch") {
  for (const Device device : devices())
    for (const DType dtype : {DType::F32, DType::BF16})
      for (const auto& [k, n] : {std::pair<int64_t, int64_t>{2056, 9}, {9, 2056}, {64, 48}, {13, 7}}) {
        const auto draw = [dtype, device](Shape shape, uint64_t seed) {
          Tensor t = Tensor::empty(shape);
          backend(Device::CPU).random_normal(t, 0, 1, {seed, 0});
          return t.to(dtype).to(device);
        };
        const auto bits = [](const Tensor& t) { return to_double(t); };
        const auto offsets = [device](std::vector<int32_t> v) { return Tensor::from(v, device); };
        const Tensor x = draw({37, k}, 1), w = draw({2, n, k}, 2), wt = draw({2, k, n}, 3);
        const auto product = [](const Tensor& xs, const Tensor& ws, const Tensor& o, bool transposed, int64_t cols) {
          Tensor y = Tensor::empty({xs.dim(0), cols}, xs.dtype(), xs.device());
          backend(y).segment_matmul(y, xs, ws, o, transposed, 0.3f, false);
          return y;
        };
        for (const bool transposed : {true, false}) {
          const Tensor& all = transposed ? w : wt;
          // alone, in a batch of 8 (up to which the CPU computes all rows alike), and many beside many
          const Tensor few = product(x.slice(0, 8), all, offsets({0, 5, 8}), transposed, n);
          for (const int64_t t : {0, 4, 5, 7}) {
            const int64_t s = t >= 5;
            const Tensor one = product(x.slice(t, t + 1), all.slice(s, s + 1), offsets({0, 1}), transposed, n);
            CHECK(bits(one) == bits(few.slice(t, t + 1)));
          }
          const Tensor many = product(x, all, offsets({0, 21, 37}), transposed, n);
          const Tensor some = product(x.slice(0, 10), all, offsets({0, 10, 10}), transposed, n);
          CHECK(bits(some) == bits(many.slice(0, 10)));
          if (device == Device::CUDA) CHECK(bits(few.slice(0, 5)) == bits(many.slice(0, 5)));
        }
      }
}

TEST_CASE("gradients of per-sample weights may be f32") {
  for (const Device device : devices()) {
    const Tensor x = Tensor::full({3, 16}, 1).to(DType::BF16).to(device), dy = x;
    Tensor dw = Tensor::full({2, 16, 16}, 1, device);
    const Tensor offsets = Tensor::from(std::vector<int32_t>{0, 0, 3}, device);
    backend(device).segment_matmul_weight(dw, dy, x, offsets, 1 / 1024.f, true);
    CHECK(to_double(dw.slice(0, 1)) == std::vector<double>(256, 1));
    CHECK(to_double(dw.slice(1, 2)) == std::vector<double>(256, 1 + 3 / 1024.));  // which bf16 cannot hold
    backend(device).segment_matmul_weight(dw, dy, x, offsets, 1, false);
    CHECK(to_double(dw.slice(0, 1)) == std::vector<double>(256, 0));
  }
}

}  // namespace
}  // namespace t2l::test
