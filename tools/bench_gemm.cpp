// t2l-bench gemm: the CPU's matrix product beside OpenBLAS and oneDNN, where installed, on the engine's shapes, all
// from plain row-major operands into f32. Each round times every library once, and the peak: fused multiply-adds on
// registers alone, on all threads; where rows are few, also reading memory. Medians over the rounds. Between libraries
// the threads of the last one are given the time to stop spinning.
#include <immintrin.h>
#include <omp.h>
#include <time.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "tensor/cpu/gemm_kernels.h"
#include "tools/bench.h"
#ifdef T2L_HAVE_OPENBLAS
#include <cblas.h>
extern "C" void openblas_set_num_threads(int);
#endif
#ifdef T2L_HAVE_DNNL
#include <oneapi/dnnl/dnnl.hpp>
#endif

namespace t2l {
namespace {

struct Shape3 {
  const char* use;
  int64_t m, n, k;
  bool transpose_a = false, transpose_b = true;
};
constexpr Shape3 kShapes[] = {
    {"large", 512, 4096, 4096},
    {"large", 512, 4096, 4096, false, false},
    {"large", 512, 4096, 4096, true, false},
    {"head", 32, 65536, 512},
    {"head", 32, 40960, 512},
    {"head", 512, 65536, 512},
    {"trunk", 64, 512, 128},
    {"trunk", 64, 128, 512},
    {"trunk", 256, 512, 128},
    {"trunk", 4096, 512, 128},
    {"rows", 64, 4096, 4096},
    {"decode", 1, 1536, 576},
    {"decode", 1, 576, 1536},
    {"decode", 1, 192, 576},
    {"decode", 1, 49152, 576},
    {"decode", 1, 4096, 4096},
    {"decode", 1, 14336, 4096},
    {"decode", 8, 49152, 576},
    {"decode", 8, 4096, 4096},
    {"decode", 8, 14336, 4096},
    {"decode", 16, 14336, 4096},
    {"lora", 1, 8, 576},
    {"lora", 1, 576, 8},
    {"lora", 512, 8, 576},
    {"lora", 512, 576, 8},
    {"lora", 512, 8, 4096},
    {"lora", 512, 4096, 8},
    {"lora", 512, 64, 4096},
    {"lora", 512, 4096, 64},
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

// ---- the ceilings

// Chains of multiply-adds that no compiler can shorten: each starts elsewhere, and the end is used.
volatile float sink;

void probe_avx2(int64_t steps) {
  __m256 c[12], x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(1e-3f);
  for (int j = 0; j < 12; ++j) c[j] = _mm256_set1_ps(float(j));
  for (int64_t i = 0; i < steps; ++i)
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) c[j] = _mm256_fmadd_ps(c[j], x, y);
  for (int j = 1; j < 12; ++j) c[0] = _mm256_add_ps(c[0], c[j]);
  sink = _mm256_cvtss_f32(c[0]);
}

template <bool kPairs>
__attribute__((target("avx512f,avx512bf16"))) void probe_avx512(int64_t steps) {
  __m512 c[24], x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(1e-3f);
#pragma GCC unroll 24
  for (int j = 0; j < 24; ++j) c[j] = _mm512_set1_ps(float(j));
  for (int64_t i = 0; i < steps; ++i)
#pragma GCC unroll 24
    for (int j = 0; j < 24; ++j)
      c[j] = kPairs ? _mm512_dpbf16_ps(c[j], (__m512bh)x, (__m512bh)y) : _mm512_fmadd_ps(c[j], x, y);
#pragma GCC unroll 24
  for (int j = 1; j < 24; ++j) c[0] = _mm512_add_ps(c[0], c[j]);
  sink = _mm512_cvtss_f32(c[0]);
}

void probe_amx(int64_t steps) {
  cpu::kAmxBF16.begin();
  for (int64_t i = 0; i < steps; ++i)
    asm volatile(
        "tdpbf16ps %tmm6, %tmm4, %tmm0\n\ttdpbf16ps %tmm7, %tmm4, %tmm1\n\t"
        "tdpbf16ps %tmm6, %tmm5, %tmm2\n\ttdpbf16ps %tmm7, %tmm5, %tmm3");
  cpu::kAmxBF16.end();
}

struct Probe {
  void (*run)(int64_t);
  double flops;  // per step
};
Probe probe_of(cpu::Isa isa, DType input) {
  if (isa == cpu::Isa::AVX2) return {probe_avx2, 12 * 8 * 2};
  if (input == DType::F32 || isa == cpu::Isa::AVX512) return {probe_avx512<false>, 24 * 16 * 2};
  if (isa == cpu::Isa::AVX512BF16) return {probe_avx512<true>, 24 * 32 * 2};
  return {probe_amx, 4 * 16 * 16 * 32 * 2};
}

double peak_flops(const Probe& probe) {
  constexpr int64_t kSteps = 1000000;  // some 10 ms
  const double seconds = seconds_of([&] {
#pragma omp parallel
    probe.run(kSteps);
  });
  return probe.flops * double(kSteps) * omp_get_max_threads() / seconds;
}

// Bytes copied per second by all threads, each counted once.
double copy_bandwidth() {
  constexpr size_t kBytes = size_t(256) << 20;
  std::vector<std::byte> from(kBytes, std::byte{1}), to(kBytes);
  std::vector<double> rounds;
  for (int round = 0; round < 7; ++round)
    rounds.push_back(seconds_of([&] {
#pragma omp parallel
      {
        const size_t t = size_t(omp_get_thread_num()), n = size_t(omp_get_num_threads());
        const size_t begin = kBytes * t / n, end = kBytes * (t + 1) / n;
        std::memcpy(to.data() + begin, from.data() + begin, end - begin);
      }
    }));
  return double(kBytes) / median(rounds);
}

// Bytes read per second by all threads, from memory larger than caches.
double read_bandwidth() {
  static const std::vector<float> from(size_t(64) << 20, 1.f);
  return double(from.size() * sizeof(float)) / seconds_of([&] {
#pragma omp parallel
           {
             const size_t t = size_t(omp_get_thread_num()), n = size_t(omp_get_num_threads());
             __m256 sum[8] = {};
             for (size_t i = from.size() / 64 * t / n * 64; i < from.size() / 64 * (t + 1) / n * 64; i += 64)
               for (size_t j = 0; j < 8; ++j) sum[j] = _mm256_add_ps(sum[j], _mm256_loadu_ps(&from[i + 8 * j]));
             for (size_t j = 1; j < 8; ++j) sum[0] = _mm256_add_ps(sum[0], sum[j]);
             sink = _mm256_cvtss_f32(sum[0]);
           }
         });
}

// ---- the libraries

struct Library {
  const char* name;
  std::function<void()> multiply;
  Tensor c;
  int spins = 30;  // milliseconds until its threads sleep
  std::vector<double> seconds = {};
};

#ifdef T2L_HAVE_DNNL
std::function<void()> dnnl_matmul(const cpu::Gemm& g) {
  using namespace dnnl;
  static const engine cpu_engine(engine::kind::cpu, 0);
  static stream queue(cpu_engine);
  const Matmul& s = g.spec;
  const auto type = g.input == DType::F32 ? memory::data_type::f32 : memory::data_type::bf16;
  const auto plain = [](int64_t ld, bool transposed) { return transposed ? memory::dims{1, ld} : memory::dims{ld, 1}; };
  const memory::desc a({s.m, s.k}, type, plain(s.lda, s.transpose_a)), b({s.k, s.n}, type, plain(s.ldb, s.transpose_b));
  const memory::desc c({s.m, s.n}, memory::data_type::f32, plain(s.ldc, false));
  const matmul product(matmul::primitive_desc(matmul::desc(a, b, c), cpu_engine));
  const std::unordered_map<int, memory> arguments = {
      {DNNL_ARG_SRC, memory(a, cpu_engine, const_cast<void*>(g.a))},
      {DNNL_ARG_WEIGHTS, memory(b, cpu_engine, const_cast<void*>(g.b))},
      {DNNL_ARG_DST, memory(c, cpu_engine, g.c)},
  };
  return [=] {
    product.execute(queue, arguments);
    queue.wait();
  };
}
#endif

Tensor numbers(int64_t rows, int64_t cols, DType dtype) {
  const Tensor t = Tensor::empty({rows, cols});
  float* p = t.data<float>();
#pragma omp parallel for
  for (int64_t i = 0; i < rows * cols; ++i) p[i] = unit_uniform(uint32_t(i) * 2654435761u) - 0.5f;
  return t.to(dtype);
}

Json measure(const Shape3& shape, DType dtype, const std::string& name) {
  const bool ta = shape.transpose_a, tb = shape.transpose_b;
  const Tensor a = numbers(ta ? shape.k : shape.m, ta ? shape.m : shape.k, dtype);
  const Tensor b = numbers(tb ? shape.n : shape.k, tb ? shape.k : shape.n, dtype);
  const auto output = [&] { return Tensor::empty({shape.m, shape.n}); };
  cpu::Gemm g;
  g.input = dtype;
  g.spec.m = shape.m, g.spec.n = shape.n, g.spec.k = shape.k;
  g.spec.transpose_a = ta, g.spec.transpose_b = tb;
  g.spec.lda = a.cols(), g.spec.ldb = b.cols(), g.spec.ldc = shape.n;
  const Tensor ours = output();
  g.a = a.raw(), g.b = b.raw(), g.c = ours.raw();

  std::vector<Library> libraries;
  libraries.push_back({"t2l", [g] { cpu::gemm(g); }, ours});
#ifdef T2L_HAVE_OPENBLAS
  if (g.input == DType::F32) {  // this OpenBLAS has no bf16 product
    const Tensor c = output();
    openblas_set_num_threads(omp_get_max_threads());
    libraries.push_back({"openblas",
                         [g, c] {
                           const Matmul& s = g.spec;
                           const auto t = [](bool transposed) { return transposed ? CblasTrans : CblasNoTrans; };
                           cblas_sgemm(CblasRowMajor, t(s.transpose_a), t(s.transpose_b), int(s.m), int(s.n), int(s.k),
                                       1, static_cast<const float*>(g.a), int(s.lda), static_cast<const float*>(g.b),
                                       int(s.ldb), 0, c.data<float>(), int(s.ldc));
                         },
                         c, 150});  // 2^28 cycles, on a core that others then lack
  }
#endif
#ifdef T2L_HAVE_DNNL
  {
    cpu::Gemm other = g;
    const Tensor c = output();
    other.c = c.raw();
    libraries.push_back({"onednn", dnnl_matmul(other), c});
  }
#endif

  const double flops = 2.0 * double(shape.m) * double(shape.n) * double(shape.k);
  const int64_t calls = std::clamp<int64_t>(int64_t(2e9 / flops), 1, 200);  // some 10 ms per timing
  const Probe probe = probe_of(cpu::isa(), g.input);
  const bool few_rows = shape.m <= 16;  // bound by reading B
  std::vector<double> peaks, reads;
  for (int round = 0; round < 9; ++round) {
    for (Library& library : libraries) {
      library.multiply();
      library.seconds.push_back(seconds_of([&] {
                                  for (int64_t i = 0; i < calls; ++i) library.multiply();
                                }) /
                                double(calls));
      std::this_thread::sleep_for(std::chrono::milliseconds(library.spins));
    }
    peaks.push_back(peak_flops(probe));
    if (few_rows) reads.push_back(read_bandwidth());
  }

  const double seconds = median(libraries[0].seconds), peak = median(peaks);
  Json row = {{"name", name},
              {"m", shape.m},
              {"n", shape.n},
              {"k", shape.k},
              {"dtype", name_of(g.input)},
              {"milliseconds", seconds * 1e3},
              {"gflops_per_second", flops / seconds / 1e9},
              {"peak_gflops_per_second", peak / 1e9},
              {"percent_of_peak", flops / seconds / peak * 100},
              {"best_milliseconds", *std::min_element(libraries[0].seconds.begin(), libraries[0].seconds.end()) * 1e3}};
  if (few_rows) {
    const double bytes = double(b.size()) * double(size_of(dtype)) / seconds;
    row["bytes_per_second"] = bytes;
    row["percent_of_read_bandwidth"] = bytes / median(reads) * 100;
  }
  double twin = 0;
  for (const Library& library : libraries) {
    if (&library == &libraries[0]) continue;
    const double t = median(library.seconds);
    twin = twin == 0 ? t : std::min(twin, t);
    double difference = 0, size = 0;
    for (int64_t i = 0; i < ours.size(); ++i) {
      const double x = ours.data<float>()[i], y = library.c.data<float>()[i];
      difference += (x - y) * (x - y), size += y * y;
    }
    row[library.name] = {{"milliseconds", t * 1e3}, {"relative_difference", std::sqrt(difference / size)}};
  }
  row["times_as_fast_as_best_twin"] = twin > 0 ? Json(twin / seconds) : Json();
  return row;
}

}  // namespace

int bench_gemm(const CommandLine& cli) {
  const std::string filter = cli.get("filter");
  Json rows = Json::array();
  const auto print = [&](const std::string& line) {
    if (!cli.json) fmt::print("{}\n", line), std::fflush(stdout);
  };
  print(fmt::format("{}, {} threads", cpu::name_of(cpu::isa()), omp_get_max_threads()));
  print(fmt::format("{:<30} {:>9} {:>9} {:>7} {:>7} {:>7} {:>12} {:>10} {:>7}", "m x n x k, A B", "ms", "GFLOP/s",
                    "% peak", "GB/s", "% read", "openblas ms", "onednn ms", "x twin"));
  for (DType dtype : {DType::F32, DType::BF16})
    for (const Shape3& s : kShapes) {
      const std::string name = fmt::format("{} {}x{}x{} {}{} {}", s.use, s.m, s.n, s.k, s.transpose_a ? 'T' : 'N',
                                           s.transpose_b ? 'T' : 'N', name_of(dtype));
      if (name.find(filter) == std::string::npos) continue;
      Json row = measure(s, dtype, name);
      const auto twin = [&](const char* library) {
        return row.contains(library) ? fmt::format("{:.4f}", row[library]["milliseconds"].get<double>()) : "-";
      };
      const Json& ratio = row["times_as_fast_as_best_twin"];
      const auto rate = [&](const char* key, double unit) {
        return row.contains(key) ? fmt::format("{:.1f}", row[key].get<double>() / unit) : "-";
      };
      print(fmt::format("{:<30} {:>9.4f} {:>9.1f} {:>7.1f} {:>7} {:>7} {:>12} {:>10} {:>7}", name,
                        row["milliseconds"].get<double>(), row["gflops_per_second"].get<double>(),
                        row["percent_of_peak"].get<double>(), rate("bytes_per_second", 1e9),
                        rate("percent_of_read_bandwidth", 1), twin("openblas"), twin("onednn"),
                        ratio.is_null() ? "-" : fmt::format("{:.2f}", ratio.get<double>())));
      rows.push_back(std::move(row));
    }
  if (rows.empty()) throw UsageError(fmt::format("--filter {}: no row has this in its name", filter));
  const double copy = copy_bandwidth();
  print(fmt::format("memory copy {:.1f} GB/s", copy / 1e9));
  if (cli.json)
    fmt::print("{}\n", Json{{"isa", cpu::name_of(cpu::isa())},
                            {"threads", omp_get_max_threads()},
                            {"copy_bytes_per_second", copy},
                            {"rows", rows}}
                           .dump(2));
  return 0;
}

}  // namespace t2l
