#include <catch2/catch.hpp>
#include <cmath>
#include <numeric>

#include "tests/harness.h"

namespace t2l::test {
namespace {

// ---- cross-entropy
double cap(double x, double softcap) { return softcap > 0 ? softcap * std::tanh(x / softcap) : x; }

// size: rows, columns, vocabulary, rows of a chunk, smoothing in hundredths, softcap in tenths. Every third row has no
// weight, and an impossible target.
const OpTest cross_entropy_test{
    .name = "cross_entropy",
    .sizes = {{5, 4, 7, 0, 0, 0},
              {5, 4, 7, 2, 10, 0},
              {6, 3, 13, 4, 10, 15},
              {3, 2, 2, 1, 50, 0},
              {8, 9, 2300, 3, 10, 0},
              {40, 17, 300, 16, 0, 30},
              {1, 3, 5, 0, 0, 0},
              {0, 3, 5, 0, 10, 0}},
    .perf = {{256, 576, 49152, 0, 0, 0}},
    .inputs =
        [](Inputs& in, const Size& s) {
          in.normal({s[0], s[1]}).normal({s[2], s[1]}).ids({s[0]}, 0, s[2]).normal({s[0]}).f32().frozen();
          Array &targets = in.list[2].array, &weights = in.list[3].array;
          for (int64_t i = 0; i < s[0]; ++i) {
            weights[i] = 0.1 + std::abs(weights[i]);
            if (i % 3 == 0) weights[i] = 0, targets[i] = -100;
          }
        },
    .run = [](const std::vector<Var>& in, const Size& s) -> std::vector<Var> {
      return {
          cross_entropy(in[0], in[1], in[2].value, in[3].value, float(s[4]) / 100, float(s[5]) / 10, nullptr, s[3])};
    },
    .reference = [](const Arrays& in, const Size& s) -> Arrays {
      Array loss({1});
      for (int64_t i = 0; i < s[0]; ++i) {
        if (in[3][i] == 0) continue;
        std::vector<double> z(static_cast<size_t>(s[2]));
        double sum = 0, mean = 0;
        for (int64_t v = 0; v < s[2]; ++v) {
          double x = 0;
          for (int64_t j = 0; j < s[1]; ++j) x += in[0](i, j) * in[1](v, j);
          z[size_t(v)] = cap(x, double(s[5]) / 10);
          sum += std::exp(z[size_t(v)]);
          mean += z[size_t(v)] / double(s[2]);
        }
        const double smoothing = double(s[4]) / 100, lse = std::log(sum);
        loss[0] += in[3][i] * ((1 - smoothing) * (lse - z[size_t(in[2][i])]) + smoothing * (lse - mean));
      }
      return {loss};
    },
    // Logits and losses are f32 in both; where T is bf16, their gradient is rounded to it, and dx and dw again.
    .f32 = 1e-6,
    .bf16 = 1e-6,
    .grad_f32 = 2e-6,
    .grad_bf16 = 6e-3,
    .work =
        [](const Size& s, size_t bytes) {
          return Work{double(s[2] * s[1]) * double(bytes) + double(s[0] * s[2]) * 4, 2. * double(s[0] * s[1] * s[2])};
        },
};
T2L_OP_TEST(cross_entropy_test);

struct Losses {
  std::vector<double> sum, rows, dx, dw;
};
Losses losses(Device device, int64_t chunk) {
  Inputs in(5);
  in.normal({23, 8}).normal({50, 8}).ids({23}, 0, 50);
  const auto tensor = [&](size_t i) {
    const std::vector<float> f(in.list[i].array.v.begin(), in.list[i].array.v.end());
    return Tensor::from(std::span(f), in.list[i].array.shape, device);
  };
  const Var x = variable(tensor(0)), w = variable(tensor(1));
  const std::vector<int32_t> ids(in.list[2].array.v.begin(), in.list[2].array.v.end());
  Tensor rows;
  const Var loss =
      cross_entropy(x, w, Tensor::from(ids, device), Tensor::full({23}, 0.5f, device), 0.1f, 0, &rows, chunk);
  backward({{loss, Tensor::full({1}, 2, device)}});
  return {to_double(loss.value), to_double(rows), to_double(x.grad()), to_double(w.grad())};
}

TEST_CASE("cross-entropy in chunks is that of the whole") {
  for (const Device device : devices()) {
    const Losses whole = losses(device, 0);
    CHECK(whole.sum[0] == Approx(std::accumulate(whole.rows.begin(), whole.rows.end(), 0.)).epsilon(1e-6));
    for (const int64_t chunk : {1, 7, 22, 23, 1000}) {
      const Losses parts = losses(device, chunk);
      CHECK(parts.rows == whole.rows);  // bit for bit, as are gradients that are not summed over rows
      CHECK(parts.sum == whole.sum);
      CHECK(parts.dx == whole.dx);
      CHECK(relative_l2(parts.dw, whole.dw) < 1e-6);
    }
  }
}

// The operation itself on logits of either type, in place or not, where they are as large as they come.
TEST_CASE("cross-entropy of extreme logits") {
  for (const Device device : devices())
    for (const DType dtype : {DType::F32, DType::BF16}) {
      constexpr int64_t vocab = 1500;
      std::vector<float> x(3 * vocab, -3e38f);
      x[5] = 3e38f, x[6] = 3e38f;  // two share all
      for (size_t i = vocab; i < 2 * vocab; ++i) x[i] = -INFINITY;
      x[vocab + 1400] = -1e30f;  // one alone
      const Tensor logits = Tensor::from(std::span<const float>(x), {3, vocab}).to(dtype).to(device);
      const Tensor targets = Tensor::from(std::vector<int32_t>{6, 1400, 1 << 30}, device),
                   weights = Tensor::from(std::vector<float>{1, 2, 0}, device);
      Tensor loss = Tensor::empty({3}, DType::F32, device), d = Tensor::empty(logits.shape(), dtype, device);
      Tensor in_place = logits.clone();
      backend(device).cross_entropy(loss, &d, logits, targets, weights, 0, 0);
      CHECK(to_double(loss)[0] == Approx(std::log(2)));
      CHECK(to_double(loss)[1] == 0);
      CHECK(to_double(loss)[2] == 0);
      std::vector<double> want(x.size());
      want[5] = 0.5, want[6] = -0.5;
      CHECK(to_double(d) == want);
      backend(device).cross_entropy(loss, &in_place, in_place, targets, weights, 0, 0);
      CHECK(to_double(in_place) == want);
    }
}

// ---- sampling
struct Rules {
  double temperature, top_p;
  int64_t top_k;
};

// What is left of a row, as probabilities.
std::vector<double> kept(const double* x, int64_t vocab, const Rules& r) {
  std::vector<double> p(x, x + vocab);
  const double max = *std::max_element(p.begin(), p.end());
  for (double& v : p) v = std::exp((v - max) / r.temperature);
  const auto normalize = [&](double least) {
    double sum = 0;
    for (double& v : p) sum += v = v >= least ? v : 0;
    for (double& v : p) v /= sum;
  };
  normalize(0);
  std::vector<double> sorted = p;
  std::sort(sorted.rbegin(), sorted.rend());
  if (r.top_k > 0 && r.top_k < vocab) normalize(sorted[size_t(r.top_k - 1)]);
  if (r.top_p < 1) {
    sorted = p;
    std::sort(sorted.rbegin(), sorted.rend());
    size_t last = 0;
    for (double sum = sorted[0]; last + 1 < sorted.size() && sum < r.top_p; ++last) sum += sorted[last + 1];
    normalize(sorted[last]);
  }
  return p;
}

Rules rules_of(const Size& s) { return {double(s[2]) / 100, double(s[4]) / 1000, s[3]}; }

// size: rows, vocabulary, temperature in hundredths, top_k, top_p in thousandths. Logits are sixteenths, which bf16
// holds, with ties. A row's number is the middle of a random kept token's interval.
const OpTest sample_test{
    .name = "sample",
    .sizes = {{3, 7, 0, 0, 1000},
              {9, 11, 100, 0, 1000},
              {5, 1300, 100, 0, 1000},
              {5, 1300, 70, 40, 1000},
              {5, 1300, 130, 0, 900},
              {5, 1300, 90, 50, 600},
              {4, 600, 100, 1, 1000},
              {4, 600, 100, 0, 1},
              {4, 600, 300, 599, 999},
              {3, 2, 100, 5, 500},
              {2, 1, 100, 1, 100},
              {6, 4097, 0, 3, 500},
              {0, 5, 100, 0, 1000}},
    .perf = {{8, 49152, 0, 0, 1000}, {8, 49152, 100, 0, 950}, {8, 128256, 100, 50, 950}},
    .inputs =
        [](Inputs& in, const Size& s) {
          in.normal({s[0], s[1]}, 0, 2).normal({s[0]}).f32();
          Array &x = in.list[0].array, &uniform = in.list[1].array;
          for (double& v : x.v) v = std::clamp(std::round(v * 16) / 16, -7.9375, 7.9375);
          for (int64_t i = 0; i < s[0]; ++i) {
            uniform[i] = 0.7;
            if (s[2] == 0) continue;
            const auto p = kept(&x.v[size_t(i * s[1])], s[1], rules_of(s));
            const size_t token = std::discrete_distribution<size_t>(p.begin(), p.end())(in.rng());
            uniform[i] = std::accumulate(p.begin(), p.begin() + int64_t(token), p[token] / 2);
          }
        },
    .run =
        [](const std::vector<Var>& in, const Size& s) {
          const Rules r = rules_of(s);
          Tensor ids = Tensor::empty({s[0]}, DType::I32, in[0].value.device());
          backend(ids).sample(ids, in[0].value, in[1].value, float(r.temperature), r.top_k, float(r.top_p));
          return std::vector<Var>{ids};
        },
    .reference = [](const Arrays& in, const Size& s) -> Arrays {
      Array ids({s[0]});
      for (int64_t i = 0; i < s[0]; ++i) {
        const double* x = &in[0].v[size_t(i * s[1])];
        if (s[2] == 0) {
          ids[i] = double(std::max_element(x, x + s[1]) - x);
          continue;
        }
        double sum = 0;
        for (const double p : kept(x, s[1], rules_of(s))) {
          sum += p;
          if (sum > in[1][i]) break;
          ++ids[i];
        }
      }
      return {ids};
    },
    .f32 = 0,
    .bf16 = 0,
    .differentiable = false,
    .work =
        [](const Size& s, size_t bytes) {
          return Work{double(s[0] * s[1]) * double(bytes), 0};
        },
};
T2L_OP_TEST(sample_test);

int32_t draw(Device device, std::vector<float> x, float uniform, float temperature, int64_t top_k = 0,
             float top_p = 1) {
  Tensor id = Tensor::empty({1}, DType::I32, device);
  const Tensor logits = Tensor::from(std::span<const float>(x), {1, int64_t(x.size())}, device);
  backend(device).sample(id, logits, Tensor::from(std::vector<float>{uniform}, device), temperature, top_k, top_p);
  return id.to_vector<int32_t>()[0];
}

TEST_CASE("sampling from hostile logits") {
  const float nan = std::nanf(""), inf = INFINITY;
  for (const Device device : devices()) {
    const auto of = [device](std::vector<float> x, float u, float t, int64_t k = 0, float p = 1) {
      return draw(device, std::move(x), u, t, k, p);
    };
    for (const float t : {0.f, 1.f, 1e-38f, 1e38f}) {
      CHECK(of({nan, nan}, 0.5f, t) == 0);
      CHECK(of({-inf, -inf, -inf}, 0.9f, t, 2, 0.5f) == 0);
      CHECK(of({nan, -inf, -3, nan}, 0.99f, t, 3, 0.99f) == 2);
      CHECK(of({0, inf, nan, 3}, 0.5f, t) == 1);
    }
    CHECK(of({inf, 1, inf}, 0.25f, 1) == 0);
    CHECK(of({inf, 1, inf}, 0.75f, 1) == 2);
    CHECK(of({1, 1, 1}, 0.9f, 0) == 0);            // the first of the largest
    CHECK(of({-inf, 0, -inf}, 0, 1) == 1);         // never drawn, not even by 0
    CHECK(of({0, 0, -inf}, 0.99999994f, 1) == 1);  // nor by the number below 1
    CHECK(of({5, 4, 3}, 0.999f, 1e-38f) == 0);     // differences overflow
    CHECK(of({5, 4, 3}, 0.999f, 1, 0, 0) == 0);    // at least one token
    CHECK(of({-0.f, 0.f, -1}, 0.75f, 1, 1) == 1);  // equal
    CHECK(of({3, 1, 3, 2}, 0.75f, 1, 1) == 2);     // ties are kept
    CHECK(of({3, 1, 3, 2}, 0.75f, 1, 0, 0.1f) == 2);
    CHECK(of({-1e-40f, -2e-40f, -1}, 0.999f, 1, 2) == 1);  // subnormals are told apart
  }
}

// Devices agree on logits without ties, at sizes of several rounds.
TEST_CASE("devices draw the same tokens") {
  constexpr int64_t rows = 40, vocab = 2501;
  Tensor x = Tensor::empty({rows, vocab}), u = Tensor::empty({rows});
  backend(Device::CPU).random_normal(x, 0, 3, {7, 1});
  backend(Device::CPU).random_uniform(u, 0, 1, {7, 2});
  for (const Device device : devices())
    for (const auto& [k, p] : {std::pair<int64_t, float>{0, 1.f}, {0, 0.9f}, {50, 1.f}, {20, 0.5f}}) {
      const auto ids = [&, top_k = k, top_p = p](Device on) {
        Tensor y = Tensor::empty({rows}, DType::I32, on);
        backend(on).sample(y, x.to(on), u.to(on), 0.8f, top_k, top_p);
        return y.to_vector<int32_t>();
      };
      CHECK(ids(device) == ids(Device::CPU));
    }
}

}  // namespace
}  // namespace t2l::test
