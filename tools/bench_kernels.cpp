// t2l-bench kernels: attention on the engine's shapes, beside a square matrix product in f32 measured between its runs.
// Decoding (one query per sequence) is bound by memory: its rate is that of reading the keys and values once.
#include <omp.h>
#include <time.h>

#include <numeric>

#include "nn/spans.h"
#include "tensor/backend.h"
#include "tensor/cpu/gemm.h"
#include "tools/bench.h"

namespace t2l {
namespace {

enum class Mask { Full, Causal, Decode };
struct Shape5 {
  const char* use;
  Mask mask;
  int64_t heads, kv_heads, dim, samples, length;  // length 0: short texts of 5 to 60 tokens
  int32_t window = 0;
  float softcap = 0;
};
constexpr Shape5 kShapes[] = {
    {"prefill", Mask::Causal, 9, 3, 64, 1, 128},   {"prefill", Mask::Causal, 9, 3, 64, 1, 512},
    {"prefill", Mask::Causal, 9, 3, 64, 1, 2048},  {"prefill", Mask::Causal, 32, 8, 128, 1, 512},
    {"prefill", Mask::Causal, 8, 4, 256, 1, 512},  {"capped", Mask::Causal, 8, 4, 256, 1, 1024, 512, 50},
    {"train", Mask::Causal, 9, 3, 64, 8, 128},     {"encoder", Mask::Full, 12, 12, 32, 64, 0},
    {"encoder", Mask::Full, 12, 12, 64, 1, 512},   {"decode", Mask::Decode, 9, 3, 64, 8, 64},
    {"decode", Mask::Decode, 9, 3, 64, 8, 512},    {"decode", Mask::Decode, 9, 3, 64, 8, 4096},
    {"decode", Mask::Decode, 32, 8, 128, 1, 4096}, {"decode", Mask::Decode, 32, 8, 128, 8, 1024},
};

// On one thread its own CPU time, which other programs on the machine do not enter.
double seconds_of(const auto& f) {
  const auto now = [clock = omp_get_max_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC] {
    timespec t;
    clock_gettime(clock, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
  };
  const double begin = now();
  f();
  return now() - begin;
}

struct Times {
  std::vector<double> seconds;
  double middle() const { return median(seconds); }
  double best() const { return *std::min_element(seconds.begin(), seconds.end()); }
};

AttentionSpans spans_of(const Shape5& s, int64_t* pairs) {
  std::vector<int32_t> offsets{0};
  for (int64_t i = 0; i < s.samples; ++i)
    offsets.push_back(offsets.back() + int32_t(s.length > 0 ? s.length : 5 + i * 37 % 56));
  const float scale = 1 / std::sqrt(float(s.dim));
  AttentionSpans spans = s.mask == Mask::Full ? full_spans(offsets, scale, Device::CPU)
                                              : causal_spans(offsets, scale, s.window, Device::CPU);
  spans.softcap = s.softcap;
  if (s.mask == Mask::Decode) {  // the last query of each sequence
    std::vector<int32_t> each(size_t(s.samples + 1)), last;
    std::iota(each.begin(), each.end(), 0);
    for (int64_t i = 0; i < s.samples; ++i) last.push_back(offsets[size_t(i) + 1] - 1);
    spans.q_offsets = Tensor::from(std::span<const int32_t>(each), {s.samples + 1}, Device::CPU);
    spans.first = spans.k_begin;
    spans.last = Tensor::from(std::span<const int32_t>(last), {s.samples}, Device::CPU);
  }
  *pairs = 0;
  for (int64_t i = 0; i < spans.first.size(); ++i)
    *pairs += spans.last.data<int32_t>()[i] - spans.first.data<int32_t>()[i] + 1;
  return spans;
}

Tensor normal(Shape shape, DType dtype, uint64_t seed) {
  const Tensor x = Tensor::empty(shape);
  uint64_t state = seed;
  for (int64_t i = 0; i < x.size(); ++i) {
    float sum = 0;  // of 3 uniform numbers of variance 1/3
    for (int j = 0; j < 3; ++j) state = state * 6364136223846793005u + 1, sum += float(int64_t(state) >> 32) * 0x1p-31f;
    x.data<float>()[i] = sum;
  }
  return x.to(dtype);
}

Json measure(const Shape5& s, DType dtype, const std::string& name) {
  int64_t pairs = 0;
  const AttentionSpans spans = spans_of(s, &pairs);
  const int64_t queries = spans.first.size(),
                keys = spans.k_begin.data<int32_t>()[s.samples - 1] + spans.k_len.data<int32_t>()[s.samples - 1];
  const Tensor q = normal({queries, s.heads, s.dim}, dtype, 1), k = normal({keys, s.kv_heads, s.dim}, dtype, 2),
               v = normal({keys, s.kv_heads, s.dim}, dtype, 3), dout = normal(q.shape(), dtype, 4);
  Tensor o = Tensor::empty(q.shape(), dtype), lse = Tensor::empty({queries, s.heads}),
         dq = Tensor::empty(q.shape(), dtype), dk = Tensor::empty(k.shape(), dtype),
         dv = Tensor::empty(v.shape(), dtype);
  constexpr int64_t kSide = 768;
  const Tensor a = normal({kSide, kSide}, DType::F32, 5), b = normal({kSide, kSide}, DType::F32, 6),
               c = Tensor::empty({kSide, kSide});
  cpu::Gemm gemm;
  gemm.c = c.raw(), gemm.a = a.raw(), gemm.b = b.raw();
  gemm.spec.m = gemm.spec.n = gemm.spec.k = gemm.spec.lda = gemm.spec.ldb = gemm.spec.ldc = kSide;

  const double flops = 4.0 * double(pairs) * double(s.heads * s.dim);
  const auto forward = [&] { backend(o).attention_forward(o, lse, q, k, v, spans); };
  const auto backward = [&] { backend(o).attention_backward(&dq, &dk, &dv, dout, o, lse, q, k, v, spans); };
  const bool trains = s.mask != Mask::Decode;
  const int64_t calls = std::clamp<int64_t>(int64_t(5e8 / flops), 1, 50);
  Times times[3];
  for (int round = 0; round < 9; ++round) {
    const auto time = [&](Times& to, int64_t n, const auto& f) {
      f();
      to.seconds.push_back(seconds_of([&] {
                             for (int64_t i = 0; i < n; ++i) f();
                           }) /
                           double(n));
    };
    time(times[0], calls, forward);
    if (trains) time(times[1], std::max<int64_t>(1, calls / 3), backward);
    time(times[2], 1, [&] { cpu::gemm(gemm); });
  }
  const double rate = 2.0 * kSide * kSide * kSide / times[2].middle();
  const auto part = [&](Times& t, double work) {
    return Json{{"milliseconds", t.middle() * 1e3},
                {"best_milliseconds", t.best() * 1e3},
                {"gflops_per_second", work / t.middle() / 1e9},
                {"percent_of_gemm", work / t.middle() / rate * 100}};
  };
  Json row = {{"name", name},
              {"use", s.use},
              {"heads", s.heads},
              {"kv_heads", s.kv_heads},
              {"dim", s.dim},
              {"samples", s.samples},
              {"length", s.length},
              {"window", s.window},
              {"softcap", s.softcap},
              {"dtype", name_of(dtype)},
              {"gemm_f32_gflops_per_second", rate / 1e9},
              {"forward", part(times[0], flops)}};
  if (trains)
    row["backward"] = part(times[1], 2.5 * flops);
  else
    row["gigabytes_per_second"] = double(k.bytes() + v.bytes()) / times[0].middle() / 1e9;
  return row;
}

}  // namespace

int bench_kernels(const CommandLine& cli) {
  const std::string filter = cli.get("filter");
  Json rows = Json::array();
  const auto print = [&](const std::string& line) {
    if (!cli.json) fmt::print("{}\n", line), std::fflush(stdout);
  };
  print(fmt::format("{}, {} threads", cpu::name_of(cpu::isa()), omp_get_max_threads()));
  print(fmt::format("{:<44} {:>9} {:>9} {:>7} {:>9} {:>9} {:>7} {:>9} {:>6}", "heads/kv x dim, samples x length",
                    "fwd ms", "GFLOP/s", "% gemm", "bwd ms", "GFLOP/s", "% gemm", "gemm f32", "GB/s"));
  for (DType dtype : {DType::F32, DType::BF16})
    for (const Shape5& s : kShapes) {
      const std::string length = s.length > 0 ? std::to_string(s.length) : "5..60";
      const std::string name = fmt::format("attention {} {}/{}x{} {}x{} {}", s.use, s.heads, s.kv_heads, s.dim,
                                           s.samples, length, name_of(dtype));
      if (name.find(filter) == std::string::npos) continue;
      Json row = measure(s, dtype, name);
      const auto number = [](const Json& part, const char* key, const char* format) {
        return part.is_null() ? std::string("-") : fmt::format(fmt::runtime(format), part[key].get<double>());
      };
      const Json forward = row["forward"], backward = row.contains("backward") ? row["backward"] : Json();
      print(fmt::format("{:<44} {:>9} {:>9} {:>7} {:>9} {:>9} {:>7} {:>9} {:>6}", name,
                        number(forward, "milliseconds", "{:.3f}"), number(forward, "gflops_per_second", "{:.1f}"),
                        number(forward, "percent_of_gemm", "{:.0f}"), number(backward, "milliseconds", "{:.3f}"),
                        number(backward, "gflops_per_second", "{:.1f}"), number(backward, "percent_of_gemm", "{:.0f}"),
                        number(row, "gemm_f32_gflops_per_second", "{:.1f}"),
                        row.contains("gigabytes_per_second") ? number(row, "gigabytes_per_second", "{:.1f}") : "-"));
      rows.push_back(std::move(row));
    }
  if (rows.empty()) throw UsageError(fmt::format("--filter {}: no row has this in its name", filter));
  if (cli.json)
    fmt::print("{}\n",
               Json{{"isa", cpu::name_of(cpu::isa())}, {"threads", omp_get_max_threads()}, {"rows", rows}}.dump(2));
  return 0;
}

}  // namespace t2l
