// Attention on the CPU: what a query gets depends, to the bit, on its span and the keys of its sample alone, not on the
// queries beside it, the other samples, the threads or where the cache lies. So decoding repeats the bits of a prefill.
// That they are the right bits is checked by cases/attention.cpp.
#include <omp.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <random>

#include "tensor/backend.h"

using namespace t2l;

namespace {

Tensor ints(const std::vector<int32_t>& v) {
  return Tensor::from(std::span<const int32_t>(v), {int64_t(v.size())}, Device::CPU);
}
Tensor normal(Shape shape, DType dtype, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  Tensor x = Tensor::empty(shape);
  for (int64_t i = 0; i < x.size(); ++i) x.data<float>()[i] = normal(rng);
  return x.to(dtype);
}
bool same(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}
// b's rows are those of a from `row` on.
bool same_rows(const Tensor& a, int64_t row, const Tensor& b) {
  const size_t bytes = b.dim(0) == 0 ? 0 : b.bytes() / size_t(b.dim(0));
  return std::memcmp(static_cast<const std::byte*>(a.raw()) + size_t(row) * bytes, b.raw(), b.bytes()) == 0;
}

struct Case {
  DType dtype;
  int64_t heads, kv_heads, dim;
  int32_t keys, window;
  float softcap;
};

// Samples of a cache: queries begin .. end of `keys` causal ones, the keys from row `at` on.
struct Sample {
  int32_t begin, end, keys, at;
};
AttentionSpans spans_of(const std::vector<Sample>& samples, const Case& c) {
  std::vector<int32_t> offsets{0}, k_begin, k_len, first, last;
  for (const Sample& s : samples) {
    offsets.push_back(offsets.back() + s.end - s.begin);
    k_begin.push_back(s.at);
    k_len.push_back(s.keys);
    for (int32_t i = s.begin; i < s.end; ++i) {
      first.push_back(s.at + (c.window > 0 ? std::max(0, i - c.window + 1) : 0));
      last.push_back(s.at + i);
    }
  }
  return {ints(offsets), ints(k_begin), ints(k_len), ints(first), ints(last), 1 / std::sqrt(float(c.dim)), c.softcap};
}

struct Output {
  Tensor o, lse;
};
Output forward(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionSpans& spans) {
  Output out{Tensor::empty(q.shape(), q.dtype()), Tensor::empty({q.dim(0), q.dim(1)})};
  backend(out.o).attention_forward(out.o, out.lse, q, k, v, spans);
  return out;
}
struct Gradients {
  Tensor dq, dk, dv;
};
Gradients backward(const Tensor& dout, const Output& out, const Tensor& q, const Tensor& k, const Tensor& v,
                   const AttentionSpans& spans) {
  Gradients d{Tensor::empty(q.shape(), q.dtype()), Tensor::empty(k.shape(), k.dtype()),
              Tensor::empty(v.shape(), v.dtype())};
  backend(d.dq).attention_backward(&d.dq, &d.dk, &d.dv, dout, out.o, out.lse, q, k, v, spans);
  return d;
}

// Rows begin .. end of t.
Tensor rows(const Tensor& t, int64_t begin, int64_t end) { return t.slice(begin, end).clone(); }

Case any_case() {
  return GENERATE(Case{DType::F32, 6, 2, 34, 300, 0, 0}, Case{DType::BF16, 6, 2, 64, 389, 0, 0},
                  Case{DType::F32, 3, 3, 16, 270, 40, 0}, Case{DType::BF16, 20, 1, 10, 261, 150, 0},
                  Case{DType::F32, 4, 4, 2, 131, 0, 3}, Case{DType::BF16, 2, 1, 256, 140, 0, 5});
}

}  // namespace

TEST_CASE("attention: a query's bits depend on its span alone", "[attention]") {
  const Case c = any_case();
  CAPTURE(name_of(c.dtype), c.heads, c.dim, c.keys);
  const Tensor q = normal({c.keys, c.heads, c.dim}, c.dtype, 1), k = normal({c.keys, c.kv_heads, c.dim}, c.dtype, 2),
               v = normal({c.keys, c.kv_heads, c.dim}, c.dtype, 3);
  const Output all = forward(q, k, v, spans_of({{0, c.keys, c.keys, 0}}, c));
  // One query and a few are decoding steps; the others begin somewhere in a block.
  for (const int32_t count : {1, 2, 7, 8, 9, 33, 64, 131})
    for (const int32_t end : {c.keys, c.keys - 3, count}) {
      if (end < count) continue;
      CAPTURE(count, end);
      const int32_t begin = end - count;
      // The keys lie behind those of another sample, which is a decoding step.
      const int32_t past = 5;
      Tensor keys = normal({c.keys + past, c.kv_heads, c.dim}, c.dtype, 4), values = keys.clone();
      std::memcpy(keys.slice(past, c.keys + past).raw(), k.raw(), k.bytes());
      std::memcpy(values.slice(past, c.keys + past).raw(), v.raw(), v.bytes());
      const Tensor queries = rows(q, begin - (begin > 0), end);  // an earlier one serves the other sample
      const int32_t others = begin > 0 ? 1 : 0;
      std::vector<Sample> samples{{begin, end, end, past}};
      if (others) samples.insert(samples.begin(), {past - 1, past, past, 0});
      const Output part = forward(queries, keys, values, spans_of(samples, c));
      CHECK(same_rows(all.o, begin, rows(part.o, others, others + count)));
      CHECK(same_rows(all.lse, begin, rows(part.lse, others, others + count)));
    }
}

TEST_CASE("attention: samples in one call, one by one, and on any number of threads", "[attention]") {
  const Case c = any_case();
  CAPTURE(name_of(c.dtype), c.heads, c.dim);
  const std::vector<int32_t> lengths{40, 1, 0, c.keys, 8, 129};
  std::vector<Sample> samples;
  int32_t total = 0;
  for (const int32_t n : lengths) samples.push_back({0, n, n, total}), total += n;
  const Tensor q = normal({total, c.heads, c.dim}, c.dtype, 1), k = normal({total, c.kv_heads, c.dim}, c.dtype, 2),
               v = normal({total, c.kv_heads, c.dim}, c.dtype, 3), dout = normal(q.shape(), c.dtype, 4);
  const auto both = [&](const Tensor& q1, const Tensor& k1, const Tensor& v1, const Tensor& d1,
                        const AttentionSpans& spans) {
    const Output out = forward(q1, k1, v1, spans);
    return std::pair(out, backward(d1, out, q1, k1, v1, spans));
  };
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const auto [one, d_one] = both(q, k, v, dout, spans_of(samples, c));
  omp_set_num_threads(5);
  const auto [packed, d] = both(q, k, v, dout, spans_of(samples, c));
  omp_set_num_threads(threads);
  CHECK(same(one.o, packed.o));
  CHECK(same(one.lse, packed.lse));
  CHECK(same(d_one.dq, d.dq));
  CHECK(same(d_one.dk, d.dk));
  CHECK(same(d_one.dv, d.dv));
  for (const Sample& s : samples) {
    const auto of = [&](const Tensor& t) { return rows(t, s.at, s.at + s.keys); };
    const auto [alone, d_alone] = both(of(q), of(k), of(v), of(dout), spans_of({{0, s.keys, s.keys, 0}}, c));
    CAPTURE(s.keys);
    CHECK(same_rows(packed.o, s.at, alone.o));
    CHECK(same_rows(packed.lse, s.at, alone.lse));
    CHECK(same_rows(d.dq, s.at, d_alone.dq));
    CHECK(same_rows(d.dk, s.at, d_alone.dk));
    CHECK(same_rows(d.dv, s.at, d_alone.dv));
  }
}

TEST_CASE("attention: NaN shows, and only where it is seen", "[attention]") {
  const Case c{GENERATE(DType::F32, DType::BF16), 2, 1, 16, 200, 0, 0};
  const int32_t bad = GENERATE(0, 77, 150);
  const bool in_values = GENERATE(false, true);
  const Tensor q = normal({c.keys, 2, 16}, c.dtype, 1), k = normal({c.keys, 1, 16}, DType::F32, 2),
               v = normal({c.keys, 1, 16}, DType::F32, 3);
  (in_values ? v : k).data<float>()[bad * 16 + 3] = std::nanf("");
  const Output out = forward(q, k.to(c.dtype), v.to(c.dtype), spans_of({{0, c.keys, c.keys, 0}}, c));
  const Tensor o = out.o.to(DType::F32);
  bool before = false, after = true;
  for (int32_t i = 0; i < c.keys; ++i) {
    const bool nan = std::isnan(o.data<float>()[i * 32 + 3]);
    (i < bad ? before : after) = i < bad ? before || nan : after && nan;
  }
  CHECK(after);
  if (!in_values) CHECK_FALSE(before);
}
