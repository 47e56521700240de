#include <catch2/catch.hpp>
#include <cmath>

#include "tests/harness.h"

namespace t2l::test {
namespace {

const OpTest squares{
    .name = "sum_squares",
    .sizes = {{0}, {1}, {33}, {4097}, {40009}},
    .perf = {{16 << 20}},
    .inputs = [](Inputs& in, const Size& s) { in.normal({s[0]}); },
    .run =
        [](const std::vector<Var>& in, const Size&) {
          Tensor y = Tensor::empty({1}, DType::F32, in[0].value.device());
          backend(y).sum_squares(y, in[0].value);
          return std::vector<Var>{y};
        },
    .reference =
        [](const Arrays& in, const Size&) {
          Array y({1});
          for (const double x : in[0].v) y[0] += x * x;
          return Arrays{y};
        },
    // f32 sums of at most a few hundred positive terms, then of those sums; bf16 inputs are exact in f32.
    .f32 = 1e-6,
    .bf16 = 1e-6,
    .differentiable = false,
    .work =
        [](const Size& s, size_t bytes) {
          return Work{double(s[0]) * double(bytes), 2.0 * double(s[0])};
        }};
T2L_OP_TEST(squares);

// Five steps as in Algorithm 2 of the paper, with the gradients of three inputs in turn. Size: elements, clipping?
AdamW hyper(const Size& s, int64_t step) {
  return {.lr = 0.01,
          .beta1 = 0.9,
          .beta2 = 0.99,
          .eps = 1e-6,
          .weight_decay = 0.1,
          .max_norm = s[1] ? 0.5 * std::sqrt(double(s[0])) : 0.0,
          .step = step};
}
const OpTest adamw{
    .name = "adamw",
    .sizes = {{1, 0}, {37, 1}, {4099, 1}, {9000, 0}, {0, 0}},
    .perf = {{8 << 20, 1}},
    .inputs =
        [](Inputs& in, const Size& s) {
          for (int i = 0; i < 4; ++i)
            in.normal({s[0]}, 0, i == 3 ? 0.1 : 1);  // p and three gradients, one of them small
        },
    .run =
        [](const std::vector<Var>& in, const Size& s) {
          const Device device = in[0].value.device();
          Tensor p = in[0].value.clone(), m = Tensor::zeros({s[0]}, DType::F32, device),
                 v = Tensor::zeros({s[0]}, DType::F32, device), norm = Tensor::empty({1}, DType::F32, device);
          for (int64_t step = 1; step <= 5; ++step) {
            const Tensor& g = in[size_t(1 + step % 3)].value;
            backend(device).sum_squares(norm, g);
            backend(device).adamw(p, m, v, g, s[1] ? &norm : nullptr, hyper(s, step));
          }
          return std::vector<Var>{p, m, v};
        },
    .reference =
        [](const Arrays& in, const Size& s) {
          Array p = in[0], m({s[0]}), v({s[0]});
          for (int64_t step = 1; step <= 5; ++step) {
            const AdamW h = hyper(s, step);
            const double lr = h.lr, b1 = h.beta1, b2 = h.beta2, limit = h.max_norm;
            std::vector<double> g = in[size_t(1 + step % 3)].v;
            if (s[1]) {
              double norm = 0;
              for (const double x : g) norm += x * x;
              for (double& x : g) x *= std::min(1.0, limit / (std::sqrt(norm) + 1e-6));
            }
            for (size_t i = 0; i < g.size(); ++i) {
              m.v[i] = b1 * m.v[i] + (1 - b1) * g[i];
              v.v[i] = b2 * v.v[i] + (1 - b2) * g[i] * g[i];
              const double mean = m.v[i] / (1 - std::pow(b1, double(step))),
                           variance = v.v[i] / (1 - std::pow(b2, double(step)));
              p.v[i] -= lr * double(h.weight_decay) * p.v[i] + lr * mean / (std::sqrt(variance) + double(h.eps));
            }
          }
          return Arrays{p, m, v};
        },
    .f32 = 5e-7,  // five steps of about three roundings each
    .differentiable = false,
    .in_bf16 = false,
    .work =
        [](const Size& s, size_t) {
          return Work{5 * 32.0 * double(s[0]), 0};
        }};
T2L_OP_TEST(adamw);

// ---- random numbers
// The input says only where to run.
constexpr RandomKey kKey{42, uint64_t(7) << 40};
const OpTest uniform{.name = "random_uniform",
                     .sizes = {{1}, {4099}, {0}},
                     .perf = {{16 << 20}},
                     .inputs = [](Inputs& in, const Size&) { in.normal({1}); },
                     .run =
                         [](const std::vector<Var>& in, const Size& s) {
                           Tensor y = Tensor::empty({s[0]}, DType::F32, in[0].value.device());
                           backend(y).random_uniform(y, -0.5f, 2, kKey);
                           return std::vector<Var>{y};
                         },
                     .reference =
                         [](const Arrays&, const Size& s) {
                           Array y({s[0]});
                           for (int64_t i = 0; i < s[0]; ++i)
                             y[i] = -0.5 + 2.5 * double(random_bits(kKey, uint64_t(i)) >> 8) * 0x1p-24;
                           return Arrays{y};
                         },
                     .f32 = 6e-8,  // one rounding
                     .differentiable = false,
                     .in_bf16 = false,
                     .work =
                         [](const Size& s, size_t bytes) {
                           return Work{double(s[0]) * double(bytes), 0};
                         }};
T2L_OP_TEST(uniform);

const OpTest gaussian{
    .name = "random_normal",
    .sizes = {{1}, {4099}, {0}},
    .perf = {{16 << 20}},
    .inputs = [](Inputs& in, const Size&) { in.normal({1}); },
    .run =
        [](const std::vector<Var>& in, const Size& s) {
          Tensor y = Tensor::empty({s[0]}, DType::F32, in[0].value.device());
          backend(y).random_normal(y, 0.25f, 2, kKey);
          return std::vector<Var>{y};
        },
    .reference =
        [](const Arrays&, const Size& s) {
          Array y({s[0]});
          for (int64_t i = 0; i < s[0]; ++i) {
            const auto unit = [&](int64_t j) { return double(random_bits(kKey, uint64_t(j)) >> 8) * 0x1p-24; };
            const double r = std::sqrt(-2 * std::log(1 - unit(i / 2 * 2))), angle = 2 * M_PI * unit(i / 2 * 2 + 1);
            y[i] = 0.25 + 2 * r * (i % 2 ? std::sin(angle) : std::cos(angle));
          }
          return Arrays{y};
        },
    .f32 = 3e-7,  // the angle is rounded to half an ulp of up to 2 pi, 2.4e-7
    .differentiable = false,
    .in_bf16 = false,
    .work =
        [](const Size& s, size_t bytes) {
          return Work{double(s[0]) * double(bytes), 0};
        }};
T2L_OP_TEST(gaussian);

TEST_CASE("philox has the published bits") {
  // kat_vectors of the authors' Random123: counter, key and result of philox4x32, 10 rounds
  const auto bits = [](uint64_t counter, uint64_t stream, uint64_t seed) {
    const Random4 r = philox({seed, stream}, counter);
    return std::vector<uint32_t>(r.v, r.v + 4);
  };
  CHECK(bits(0, 0, 0) == std::vector<uint32_t>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(bits(~0ull, ~0ull, ~0ull) == std::vector<uint32_t>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(bits(0x85a308d3243f6a88, 0x0370734413198a2e, 0x299f31d0a4093822) ==
        std::vector<uint32_t>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

std::vector<float> uniforms(Device device, int64_t n, RandomKey key, float low = 0, float high = 1) {
  Tensor y = Tensor::empty({n}, DType::F32, device);
  backend(device).random_uniform(y, low, high, key);
  return y.to_vector<float>();
}
std::vector<float> normals(Device device, int64_t n, RandomKey key) {
  Tensor y = Tensor::empty({n}, DType::F32, device);
  backend(device).random_normal(y, 0, 1, key);
  return y.to_vector<float>();
}

TEST_CASE("every device draws the same") {
  for (const Device device : devices()) {
    CHECK(uniforms(device, 5003, kKey) == uniforms(Device::CPU, 5003, kKey));
    CHECK(uniforms(device, 777, kKey, 1, 1.0000004f) == uniforms(Device::CPU, 777, kKey, 1, 1.0000004f));
    // An element does not depend on how many there are.
    const auto many = uniforms(device, 5003, kKey), few = uniforms(device, 1234, kKey);
    CHECK(std::equal(few.begin(), few.end(), many.begin()));
    const Tensor x = Tensor::from(normals(Device::CPU, 5003, kKey));
    for (const DType t : {DType::F32, DType::BF16}) {
      const auto dropped = [&](Device on) {
        const Tensor in = x.to(t).to(on);
        Tensor y = Tensor::empty(in.shape(), t, on);
        backend(on).dropout(y, in, 0.1f, kKey, false);
        return y.to(DType::F32).to_vector<float>();
      };
      CHECK(dropped(device) == dropped(Device::CPU));
    }
  }
}

TEST_CASE("random numbers are in range") {
  for (const Device device : devices())
    for (const auto& [low, high] :
         {std::pair{0.0f, 1.0f}, {1.0f, 2.0f}, {1.0f, 1.0000002f}, {-3.0f, -1.0f}, {2.0f, 2.0f}})
      for (const float x : uniforms(device, 20000, kKey, low, high))
        if (!(x >= low && (x < high || low == high))) FAIL(x << " is outside [" << low << ", " << high << ")");
}

// Sample statistics within five standard deviations of theirs.
TEST_CASE("random numbers are distributed as they should be") {
  constexpr int64_t n = 1 << 18;
  const double sigma = 5 / std::sqrt(double(n));
  const auto mean_of = [](const std::vector<float>& v, auto f) {
    double sum = 0;
    for (size_t i = 0; i < v.size(); ++i) sum += f(i);
    return sum / double(v.size());
  };
  const auto u = uniforms(Device::CPU, n, kKey), z = normals(Device::CPU, n, kKey);
  const auto moment = [&](const std::vector<float>& v, double shift, int power) {
    return mean_of(v, [&](size_t i) { return std::pow(double(v[i]) - shift, power); });
  };
  CHECK(std::abs(moment(u, 0, 1) - 0.5) < sigma * std::sqrt(1 / 12.0));
  CHECK(std::abs(moment(u, 0.5, 2) - 1 / 12.0) < sigma * std::sqrt(1 / 180.0));
  CHECK(std::abs(moment(z, 0, 1)) < sigma);
  CHECK(std::abs(moment(z, 0, 2) - 1) < sigma * std::sqrt(2.0));
  CHECK(std::abs(moment(z, 0, 3)) < sigma * std::sqrt(15.0));
  CHECK(std::abs(moment(z, 0, 4) - 3) < sigma * std::sqrt(96.0));
  const auto correlation = [&](const std::vector<float>& a, const std::vector<float>& b, size_t lag) {
    return mean_of(a, [&](size_t i) { return double(a[i]) * double(b[(i + lag) % b.size()]); });
  };
  for (const size_t lag : {1, 2, 3, 4, 5, 8}) CHECK(std::abs(correlation(z, z, lag)) < sigma);
  for (const RandomKey other : {RandomKey{43, kKey.stream}, RandomKey{42, kKey.stream + 1}, RandomKey{kKey.stream, 42},
                                RandomKey{42, kKey.stream << 1}})
    for (const size_t lag : {0, 1, 4}) CHECK(std::abs(correlation(z, normals(Device::CPU, n, other), lag)) < sigma);
  // 64 equal cells: chi squared of 63 degrees of freedom has mean 63 and variance 126
  std::vector<double> cells(64);
  for (const float x : u) ++cells[size_t(x * 64)];
  double chi = 0;
  for (const double c : cells) chi += (c - n / 64.0) * (c - n / 64.0) / (n / 64.0);
  CHECK(std::abs(chi - 63) < 5 * std::sqrt(126.0));
}

TEST_CASE("adamw without a finite norm") {
  for (const Device device : devices()) {
    const auto step = [&](float squared_norm) {
      Tensor p = Tensor::from(std::vector<float>{1}, device), m = Tensor::zeros({1}, DType::F32, device), v = m.clone();
      const Tensor g = p.clone(), norm = Tensor::from(std::vector<float>{squared_norm}, device);
      backend(device).adamw(p, m, v, g, &norm, {.lr = 0.1f, .weight_decay = 0, .max_norm = 1});
      return p.to_vector<float>()[0];
    };
    CHECK(std::abs(step(1) - 0.9f) < 1e-6f);  // the first step is lr in size
    CHECK(step(INFINITY) == 1);               // scaled to nothing
    CHECK(std::isnan(step(std::nanf(""))));   // as torch.nn.utils.clip_grad_norm_: not hidden
  }
}

}  // namespace
}  // namespace t2l::test
