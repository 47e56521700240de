// tensor/cpu/gemm: every instruction set this machine has, and AMX as a model of its tile instructions, against a
// product in double precision; the promise that an element's bits depend on its row, its column and k alone; vmath.
#include "tensor/cpu/gemm.h"

#include <omp.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "tensor/cpu/gemm_amx.h"
#include "tensor/cpu/vmath.h"

using namespace t2l;

namespace {

// The tile registers and what the instructions do to them. Between end() and begin() they hold NaN.
struct TileModel {
  static inline thread_local std::byte tiles[8][16][64];

  static void begin() { std::memset(tiles, 0xff, sizeof tiles); }
  static void end() { std::memset(tiles, 0xff, sizeof tiles); }
  template <int T>
  static void zero() {
    std::memset(tiles[T], 0, sizeof tiles[T]);
  }
  template <int T>
  static void load(const void* p, int64_t stride) {
    for (int r = 0; r < 16; ++r) std::memcpy(tiles[T][r], static_cast<const std::byte*>(p) + r * stride, 64);
  }
  template <int T>
  static void store(void* p, int64_t stride) {
    for (int r = 0; r < 16; ++r) std::memcpy(static_cast<std::byte*>(p) + r * stride, tiles[T][r], 64);
  }
  template <int C, int A, int B>
  static void multiply_add() {
    float c[16][16];
    bf16 a[16][16][2], b[16][16][2];  // [row][pair], [pair][column]
    std::memcpy(c, tiles[C], sizeof c);
    std::memcpy(static_cast<void*>(a), tiles[A], sizeof a);
    std::memcpy(static_cast<void*>(b), tiles[B], sizeof b);
    for (int m = 0; m < 16; ++m)
      for (int k = 0; k < 16; ++k)
        for (int n = 0; n < 16; ++n)
          for (int i = 0; i < 2; ++i) c[m][n] += float(a[m][k][i]) * float(b[k][n][i]);
    std::memcpy(tiles[C], c, sizeof c);
  }
};

struct Named {
  std::string name;
  DType input;
  cpu::GemmKernel kernel;
};

std::vector<Named> kernels() {
  std::vector<Named> all;
  for (int i = 0; i <= int(cpu::isa()); ++i)
    for (DType input : {DType::F32, DType::BF16})
      all.push_back({fmt::format("{} {}", cpu::name_of(cpu::Isa(i)), name_of(input)), input,
                     cpu::gemm_kernel(cpu::Isa(i), input)});
  all.push_back({"amx model", DType::BF16, cpu::amx_kernel<TileModel>()});
  return all;
}

// A matrix in memory: rows of `ld` elements, each exactly as wide as it must be, poison between them and none after.
struct Stored {
  DType dtype;
  int64_t rows, cols, ld;
  std::vector<float> f;
  std::vector<bf16> h;

  static float poison() { return std::numeric_limits<float>::quiet_NaN(); }
  Stored(DType t, int64_t r, int64_t c, int64_t padding) : dtype(t), rows(r), cols(c), ld(c + padding) {
    const size_t n = rows && cols ? size_t((rows - 1) * ld + cols) : 0;
    t == DType::F32 ? f.assign(n, poison()) : h.assign(n, bf16(poison()));
  }
  void set(int64_t r, int64_t c, float x) { dtype == DType::F32 ? void(f[r * ld + c] = x) : void(h[r * ld + c] = x); }
  float get(int64_t r, int64_t c) const { return dtype == DType::F32 ? f[r * ld + c] : float(h[r * ld + c]); }
  void* data() { return dtype == DType::F32 ? static_cast<void*>(f.data()) : h.data(); }
  const void* data() const { return dtype == DType::F32 ? static_cast<const void*>(f.data()) : h.data(); }
  bool padding_untouched() const {
    for (int64_t r = 0; r + 1 < rows; ++r)
      for (int64_t c = cols; c < ld; ++c)
        if (!std::isnan(get(r, c))) return false;
    return true;
  }
  bool operator==(const Stored& o) const {  // in bits
    const size_t bytes = size_t((rows - 1) * ld + cols) * size_of(dtype);
    return std::memcmp(data(), o.data(), bytes) == 0;
  }
};

struct Random {
  std::mt19937 engine{1};
  float value(DType t) {
    const float x = std::uniform_real_distribution<float>(-1, 1)(engine);
    return t == DType::F32 ? x : float(bf16(x));
  }
  int64_t pick(std::initializer_list<int64_t> from) {
    return *(from.begin() + std::uniform_int_distribution<size_t>(0, from.size() - 1)(engine));
  }
};

double activated(double x, Activation kind) {
  switch (kind) {
    case Activation::None: return x;
    case Activation::SiLU: return x / (1 + std::exp(-x));
    case Activation::GELU: return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::GELUTanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  }
  return 0;
}

struct Problem {  // one group, op(A) and op(B) as numbers
  int64_t m, n, k;
  std::vector<float> a, b, bias;  // [m, k], [k, n], [n]
  std::vector<double> sum, size;  // [m, n]: A B and |A| |B|

  Problem(Random& random, DType t, int64_t rows, int64_t cols, int64_t depth)
      : m(rows), n(cols), k(depth), a(m * k), b(k * n), bias(n), sum(m * n), size(m * n) {
    for (auto* v : {&a, &b, &bias})
      for (float& x : *v) x = random.value(t);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t p = 0; p < k; ++p)
        for (int64_t j = 0; j < n; ++j) {
          const double x = double(a[i * k + p]) * b[p * n + j];
          sum[i * n + j] += x;
          size[i * n + j] += std::fabs(x);
        }
  }
  Stored stored_a(DType t, bool transpose, int64_t padding) const {
    Stored s(t, transpose ? k : m, transpose ? m : k, padding);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t p = 0; p < k; ++p) transpose ? s.set(p, i, a[i * k + p]) : s.set(i, p, a[i * k + p]);
    return s;
  }
  Stored stored_b(DType t, bool transpose, int64_t padding) const {
    Stored s(t, transpose ? n : k, transpose ? k : n, padding);
    for (int64_t p = 0; p < k; ++p)
      for (int64_t j = 0; j < n; ++j) transpose ? s.set(j, p, b[p * n + j]) : s.set(p, j, b[p * n + j]);
    return s;
  }
};

cpu::Gemm describe(Stored& c, Stored& a, Stored& b, int64_t k, bool transpose_a, bool transpose_b) {
  cpu::Gemm g;
  g.c = c.data(), g.a = a.data(), g.b = b.data();
  g.input = a.dtype, g.output = c.dtype;
  g.spec.m = c.rows, g.spec.n = c.cols, g.spec.k = k;
  g.spec.transpose_a = transpose_a, g.spec.transpose_b = transpose_b;
  g.spec.lda = a.ld, g.spec.ldb = b.ld, g.spec.ldc = c.ld;
  return g;
}

void check(const Named& kernel, const Problem& p, bool transpose_a, bool transpose_b, DType output, int64_t padding,
           Activation activation, bool with_bias, bool accumulate) {
  Stored a = p.stored_a(kernel.input, transpose_a, padding), b = p.stored_b(kernel.input, transpose_b, 2 * padding);
  Stored bias(kernel.input, 1, p.n, 0), c(output, p.m, p.n, padding);
  for (int64_t j = 0; j < p.n; ++j) bias.set(0, j, p.bias[j]);
  if (accumulate)
    for (int64_t i = 0; i < p.m; ++i)
      for (int64_t j = 0; j < p.n; ++j) c.set(i, j, float(i % 5) - float(j % 3));

  cpu::Gemm g = describe(c, a, b, p.k, transpose_a, transpose_b);
  g.bias = with_bias ? bias.data() : nullptr;
  g.spec.activation = activation, g.spec.accumulate = accumulate;
  cpu::gemm(g, kernel.kernel);

  // Rounding: once per element of k within a pass, once per pass, and of the result. Slopes are at most 1.13.
  constexpr double kHalfUlp = 0x1p-24;
  const double sums = kHalfUlp * double(std::min<int64_t>(p.k, 1024) + p.k / 512 + 4);
  double worst = 0;
  for (int64_t i = 0; i < p.m; ++i)
    for (int64_t j = 0; j < p.n; ++j) {
      const double x = p.sum[i * p.n + j] + (with_bias ? p.bias[j] : 0);
      const double before = accumulate ? double(i % 5) - double(j % 3) : 0;
      const double expected = activated(x, activation) + before;
      const double allowed = 1.13 * sums * (p.size[i * p.n + j] + 1) + 3e-7 * std::max(1.0, std::fabs(x)) +
                             (output == DType::BF16 ? 0x1p-8 : kHalfUlp) * std::fabs(expected);
      worst = std::max(worst, std::fabs(double(c.get(i, j)) - expected) / allowed);
      if (!(std::fabs(double(c.get(i, j)) - expected) <= allowed)) worst = std::numeric_limits<double>::infinity();
    }
  CHECK(worst <= 1);
  CHECK(c.padding_untouched());
}

}  // namespace

TEST_CASE("gemm: against double precision", "[gemm]") {
  const auto kernel = GENERATE(from_range(kernels()));
  Random random;
  for (int shape = 0; shape < 24; ++shape) {
    const int64_t m = random.pick({1, 2, 7, 8, 16, 33, 129, 300}), n = random.pick({1, 3, 8, 16, 33, 129, 300});
    const int64_t k = m * n > 20000 ? random.pick({7, 129, 300}) : random.pick({1, 2, 7, 31, 129, 515, 1030, 2100});
    CAPTURE(kernel.name, m, n, k);
    const Problem p(random, kernel.input, m, n, k);
    for (int variant = 0; variant < 8; ++variant) {
      const bool ta = variant & 1, tb = variant & 2;
      const DType output = variant & 4 ? DType::BF16 : DType::F32;
      const int epilogue = (shape + variant) % 6;  // the four activations, a bias alone, accumulate
      CAPTURE(ta, tb, name_of(output), epilogue);
      check(kernel, p, ta, tb, output, (shape + variant) % 3, epilogue < 4 ? Activation(epilogue) : Activation::None,
            epilogue < 5 && shape % 2 == 0, epilogue == 5);
    }
  }
  // More than one block of rows and of columns.
  const Problem p(random, kernel.input, 530, 1100, 40);
  CAPTURE(kernel.name);
  check(kernel, p, false, true, DType::F32, 1, Activation::None, true, false);
}

TEST_CASE("gemm: an element's bits depend on its row, its column and k alone", "[gemm]") {
  const auto kernel = GENERATE(from_range(kernels()));
  CAPTURE(kernel.name);
  Random random;
  // One pass over k, whose tiles can go straight into C; the same added to C; several passes; less than one vector.
  const auto [k, accumulate] =
      GENERATE(table<int64_t, bool>({{300, false}, {300, true}, {1300, false}, {1077, true}, {7, false}}));
  CAPTURE(k, accumulate);
  const int64_t m = 150, n = 300;
  const Problem p(random, kernel.input, m, n, k);
  const auto before = [&] {
    Stored s(DType::F32, m, n, 0);
    for (int64_t i = 0; i < m * n; ++i) s.f[size_t(i)] = 1 / float(i % 97 + 1);
    return s;
  };
  Stored a = p.stored_a(kernel.input, false, 3), b = p.stored_b(kernel.input, true, 0), whole = before();
  cpu::Gemm g = describe(whole, a, b, k, false, true);
  g.spec.accumulate = accumulate;
  cpu::gemm(g, kernel.kernel);
  const int64_t size = int64_t(size_of(kernel.input));

  Stored c = before();
  const auto block = [&](int64_t i, int64_t j, int64_t rows, int64_t cols) {
    cpu::Gemm part = g;
    part.c = c.f.data() + i * n + j;
    part.a = static_cast<const std::byte*>(g.a) + i * a.ld * size;
    part.b = static_cast<const std::byte*>(g.b) + j * b.ld * size;
    part.spec.m = rows, part.spec.n = cols;
    cpu::gemm(part, kernel.kernel);
  };
  SECTION("row by row") {
    for (int64_t i = 0; i < m; ++i) block(i, 0, 1, n);
    CHECK(c == whole);
  }
  SECTION("in batches, from those whose weights are read in place to those whose weights are packed") {
    for (int64_t i = 0, rows = 2; i < m; i += rows, ++rows) block(i, 0, std::min(rows, m - i), n);
    CHECK(c == whole);
  }
  SECTION("by blocks of columns, narrow enough to be computed transposed") {
    for (int64_t j = 0, width = 1; j < n; j += width, width = width % 41 + 4) block(0, j, m, std::min(width, n - j));
    CHECK(c == whole);
  }
#ifndef __SANITIZE_THREAD__  // which does not know the barriers of libgomp's threads
  SECTION("with other numbers of threads") {
    const int threads = omp_get_max_threads();
    for (int t : {1, 2, 3, 7}) {
      omp_set_num_threads(t);
      c = before();
      block(0, 0, m, n);
      CHECK(c == whole);
      c = before();
      for (int64_t i = 0; i < m; i += 5) block(i, 0, 5, n);
      CHECK(c == whole);
    }
    omp_set_num_threads(threads);
  }
#endif
  SECTION("as groups of rows, as groups of columns") {
    cpu::Gemm parts = g;
    parts.c = c.data();
    parts.spec.m = m / 6, parts.spec.groups = 6;
    parts.spec.stride_a = m / 6 * a.ld, parts.spec.stride_c = m / 6 * n;
    cpu::gemm(parts, kernel.kernel);
    CHECK(c == whole);
    c = before();
    parts = g;
    parts.c = c.data();
    parts.spec.n = n / 5, parts.spec.groups = 5;
    parts.spec.stride_b = n / 5 * b.ld, parts.spec.stride_c = n / 5;
    cpu::gemm(parts, kernel.kernel);
    CHECK(c == whole);
  }
  SECTION("however A and B are stored") {
    for (int layout = 0; layout < 4; ++layout) {
      Stored a2 = p.stored_a(kernel.input, layout & 1, 5), b2 = p.stored_b(kernel.input, layout & 2, 1);
      c = before();
      cpu::Gemm other = describe(c, a2, b2, k, layout & 1, layout & 2);
      other.spec.accumulate = accumulate;
      cpu::gemm(other, kernel.kernel);
      CHECK(c == whole);
    }
  }
}

TEST_CASE("gemm: many small groups", "[gemm]") {
  const auto kernel = GENERATE(from_range(kernels()));
  CAPTURE(kernel.name);
  Random random;
  const int64_t groups = 700, m = 5, n = 9, k = 3;
  // One row of memory per group; B is shared by all, the bias is not.
  Stored a(kernel.input, groups, m * k, 2), b(kernel.input, n, k, 0), bias(kernel.input, groups, n, 1);
  Stored c(DType::BF16, groups, m * n, 4);
  for (auto* s : {&a, &b, &bias})
    for (int64_t r = 0; r < s->rows; ++r)
      for (int64_t j = 0; j < s->cols; ++j) s->set(r, j, random.value(kernel.input));
  cpu::Gemm g = describe(c, a, b, k, false, true);
  g.bias = bias.data();
  g.spec.m = m, g.spec.n = n, g.spec.lda = k, g.spec.ldc = n, g.spec.groups = groups;
  g.spec.stride_a = a.ld, g.spec.stride_c = c.ld, g.spec.stride_bias = bias.ld;
  cpu::gemm(g, kernel.kernel);
  double worst = 0;
  for (int64_t q = 0; q < groups; ++q)
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) {
        double x = bias.get(q, j);
        for (int64_t p = 0; p < k; ++p) x += double(a.get(q, i * k + p)) * b.get(j, p);
        const double error = std::fabs(c.get(q, i * n + j) - x);
        worst = std::isnan(error) ? error : std::max(worst, error / (std::fabs(x) * 0x1p-8 + 1e-6));
      }
  CHECK(worst <= 1);
  CHECK(c.padding_untouched());
}

TEST_CASE("gemm: infinity and NaN go where they belong, and nowhere else", "[gemm]") {
  const auto kernel = GENERATE(from_range(kernels()));
  const int64_t m = GENERATE(5, 37), n = 45;
  const int64_t k = GENERATE(35, 1037);
  const bool ta = GENERATE(false, true), tb = GENERATE(false, true);
  CAPTURE(kernel.name, k, ta, tb);
  Random random;
  const Problem p(random, kernel.input, m, n, k);
  Problem q = p;
  const float inf = std::numeric_limits<float>::infinity();
  const int64_t row = m - 1, column = n - 2;
  q.a[row * k + k - 1] = inf;
  for (int64_t j = 0; j < n; ++j) q.b[(k - 1) * n + j] = j == column ? 0.f : 1.f;
  q.b[3 * n + 4] = std::nanf("");
  Stored a = q.stored_a(kernel.input, ta, 1), b = q.stored_b(kernel.input, tb, 1), c(DType::F32, m, n, 0);
  cpu::gemm(describe(c, a, b, k, ta, tb), kernel.kernel);
  bool right = true;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const float x = c.get(i, j);
      right &= j == 4 || (i == row && j == column) ? std::isnan(x) : i == row ? x == inf : std::isfinite(x);
    }
  CHECK(right);
}

TEST_CASE("gemm: degenerate and wrong arguments", "[gemm]") {
  const auto kernel = GENERATE(from_range(kernels()));
  Stored a(kernel.input, 3, 4, 0), b(kernel.input, 5, 4, 0), bias(kernel.input, 1, 5, 0), c(DType::F32, 3, 5, 0);
  for (int64_t j = 0; j < 5; ++j) bias.set(0, j, float(j));
  cpu::Gemm g = describe(c, a, b, 0, false, true);
  g.bias = bias.data();
  cpu::gemm(g, kernel.kernel);  // no k: the bias alone
  for (int64_t i = 0; i < 3; ++i)
    for (int64_t j = 0; j < 5; ++j) CHECK(c.get(i, j) == float(j));
  g.spec.m = 0, g.c = nullptr;
  cpu::gemm(g, kernel.kernel);
  g = describe(c, a, b, 4, false, true);
  g.spec.ldb = 3;
  CHECK_THROWS(cpu::gemm(g, kernel.kernel));
  g = describe(c, a, b, 4, false, true);
  g.bias = bias.data(), g.spec.accumulate = true;
  CHECK_THROWS(cpu::gemm(g, kernel.kernel));
}

TEST_CASE("vmath: within its stated errors over all of f32", "[gemm][vmath]") {
  const auto sweep = [](auto&& f, auto&& exact, auto&& error) {
    double worst = 0;
    for (uint64_t bits = 0; bits < 1ull << 32; bits += 2003) {
      const float x = std::bit_cast<float>(uint32_t(bits));
      if (!std::isfinite(x)) continue;
      const double e = error(double(x), double(f(x)), double(exact(double(x))));
      worst = e <= worst ? worst : e;  // NaN counts
    }
    return worst;
  };
  // Relative, from the smallest normal result on; overflow must be where f32 ends.
  const auto relative = [](double, double y, double exact) {
    if (std::isinf(float(exact))) return y == exact || y == double(float(exact)) ? 0.0 : 1.0;
    return std::fabs(y - exact) / std::max(std::fabs(exact), 0x1p-126);
  };
  // Relative to what enters: all that cancellation leaves of these.
  const auto scaled = [](double x, double y, double exact) {
    return std::fabs(y - exact) / std::max(1.0, std::fabs(x));
  };
  const auto logistic = [](double x) { return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x)); };
  const auto cdf = [](double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); };
  const auto u = [](double x) { return std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x); };

  CHECK(sweep([](float x) { return cpu::exp(x); }, [](double x) { return std::exp(x); }, relative) < 1.2e-7);
  CHECK(sweep([](float x) { return cpu::sigmoid(x); }, logistic, relative) < 2.5e-7);
  CHECK(sweep([](float x) { return cpu::tanh(x); }, [](double x) { return std::tanh(x); }, relative) < 2e-7);
  CHECK(sweep([](float x) { return cpu::erf(x); }, [](double x) { return std::erf(x); }, relative) < 2e-7);
  CHECK(sweep([](float x) { return cpu::silu(x); }, [&](double x) { return x * logistic(x); }, scaled) < 2e-7);
  CHECK(sweep([](float x) { return cpu::gelu(x); }, [&](double x) { return x * cdf(x); }, scaled) < 2e-7);
  CHECK(sweep([](float x) { return cpu::gelu_tanh(x); },
              [&](double x) { return std::fabs(x) > 1e9 ? std::max(x, 0.0) : 0.5 * x * (1 + std::tanh(u(x))); },
              scaled) < 2e-7);
  CHECK(sweep([](float x) { return cpu::silu_derivative(x); },
              [&](double x) { return logistic(x) * (1 + x * (1 - logistic(x))); }, scaled) < 2e-7);
  CHECK(sweep([](float x) { return cpu::gelu_derivative(x); },
              [&](double x) { return cdf(x) + x * std::exp(-x * x / 2) / std::sqrt(2 * M_PI); }, scaled) < 2e-7);
  CHECK(sweep([](float x) { return cpu::gelu_tanh_derivative(x); },
              [&](double x) {
                if (std::fabs(x) > 1e3) return x > 0 ? 1.0 : 0.0;
                const double t = std::tanh(u(x));
                return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
              },
              scaled) < 2e-7);
}

TEST_CASE("vmath: limits and NaN", "[gemm][vmath]") {
  const float inf = std::numeric_limits<float>::infinity();
  CHECK(cpu::exp(inf) == inf);
  CHECK(cpu::exp(-inf) == 0);
  CHECK(cpu::exp(0.f) == 1);
  for (auto f : {+[](float x) { return cpu::tanh(x); }, +[](float x) { return cpu::erf(x); }}) {
    CHECK(f(inf) == 1);
    CHECK(f(-inf) == -1);
    CHECK(std::signbit(f(-0.f)));
  }
  for (auto f : {+[](float x) { return cpu::silu(x); }, +[](float x) { return cpu::gelu(x); },
                 +[](float x) { return cpu::gelu_tanh(x); }}) {
    CHECK(f(inf) == inf);
    CHECK(f(-inf) == 0);
  }
  for (auto f :
       {+[](float x) { return cpu::sigmoid(x); }, +[](float x) { return cpu::silu_derivative(x); },
        +[](float x) { return cpu::gelu_derivative(x); }, +[](float x) { return cpu::gelu_tanh_derivative(x); }}) {
    CHECK(f(inf) == 1);
    CHECK(f(-inf) == 0);
  }
  for (auto f :
       {+[](float x) { return cpu::exp(x); }, +[](float x) { return cpu::sigmoid(x); },
        +[](float x) { return cpu::tanh(x); }, +[](float x) { return cpu::erf(x); },
        +[](float x) { return cpu::silu(x); }, +[](float x) { return cpu::gelu(x); },
        +[](float x) { return cpu::gelu_tanh(x); }, +[](float x) { return cpu::silu_derivative(x); },
        +[](float x) { return cpu::gelu_derivative(x); }, +[](float x) { return cpu::gelu_tanh_derivative(x); }})
    CHECK(std::isnan(f(std::nanf(""))));
}
