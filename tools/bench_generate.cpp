// The main job as a user runs it: a cold t2l-gen process from a checkpoint in the page cache to adapters on disk,
// beside what the machine allows: copying the checkpoint's bytes twice plus the products at the best rate of the matrix
// product.
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "t2l/hypernet.h"
#include "t2l/torch_archive.h"
#include "tools/bench.h"
#include "transformer/base_model.h"

namespace t2l {
namespace {

namespace fs = std::filesystem;

// The checkpoint of an untrained hypernetwork, in the official layout.
Hypernet write_checkpoint(const std::string& folder, const BaseModel& base, const std::string& variant, uint64_t seed) {
  const HypernetConfig c = hypernet_for(base, variant);
  Hypernet net(c);
  net.parameters().initialise(seed);
  NamedTensors state;
  for (const char* kind : {"AB_offset", "mean_recon_target", "std_recon_target"})
    for (const char* ab : {"A", "B"})
      for (auto& m : c.modules)
        state.emplace_back(fmt::format("{}.{}.{}", kind, ab, m.name),
                           Tensor::zeros(*ab == 'A' ? Shape{c.layers, c.rank, m.in} : Shape{c.layers, m.out, c.rank}));
  for (const std::string& name : net.parameters().names()) state.emplace_back(name, net.parameters().value(name));
  write_torch_archive(folder + "/hypermod.pt", state);
  write_text_file(
      folder + "/args.yaml",
      fmt::format("training_task: recon\nfactorized: true\npred_z_score: false\nemb_model: none\nshared_AB_head: {}\n"
                  "autoreg_gen: {}\nmodel_dir: base\n",
                  c.shared_head, c.autoregressive));
  write_text_file(folder + "/adapter_config.json",
                  R"({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "use_rslora": true})");
  return net;
}

}  // namespace

int bench_generate(const CommandLine& cli) {
  if (!cli.has("model"))
    throw UsageError("--model is missing: the directory of the base model, of which only config.json is read");
  const std::string variant = cli.get("variant", "L");
  const int64_t n = cli.get_int("n", 128), runs = 7;
  if (n < 1) throw UsageError(fmt::format("--n {}: must be positive", n));
  const BaseModel base = BaseModel::read(cli.get("model"));
  const BenchFolder scratch;
  const Hypernet net = write_checkpoint(scratch.path, base, variant, cli.seed);
  const double file_bytes = double(fs::file_size(scratch.path + "/hypermod.pt"));
  const auto embedding = [&](int64_t count) {
    Tensor e = Tensor::empty({count, net.config().task_dim});
    backend(e).random_normal(e, 0, 1, {cli.seed, 99});
    const std::string path = fmt::format("{}/embedding-{}.safetensors", scratch.path, count);
    write_safetensors(path, {{"embedding", e}});
    return path;
  };
  const auto generate = [&](int64_t count) {
    fs::remove_all(scratch.path + "/out");
    return run_child("t2l-gen",
                     {"--hypernet", scratch.path, "--embedding", embedding(count), "--out", scratch.path + "/out",
                      "--device", "cpu", "--json", "--quiet", "--threads", std::to_string(omp_get_max_threads())},
                     scratch.path);
  };

  // Ceilings and runs take turns, so that a slow moment of the machine meets them all.
  const size_t bytes = size_t(file_bytes);
  std::vector<char> from(bytes, 1), to(bytes, 2);
  const int64_t rows = 512, columns = net.config().head_out(net.config().modules[0]), inner = net.config().head_in;
  Tensor x = Tensor::full({rows, inner}, 0.5f), w = Tensor::full({columns, inner}, 0.25f),
         y = Tensor::empty({rows, columns});
  const Matmul spec{
      .m = rows, .n = columns, .k = inner, .transpose_b = true, .lda = inner, .ldb = inner, .ldc = columns};
  const double product = 2.0 * double(rows) * double(columns) * double(inner);
  std::vector<double> copy, rate, one;
  double peak_one = 0;
  for (int i = 0; i < runs; ++i) {
    copy.push_back(timed([&] { std::memcpy(to.data(), from.data(), bytes); }));
    rate.push_back(product / timed([&] { backend(y).matmul(y, x, w, nullptr, spec); }));
    const ChildRun run = generate(1);
    one.push_back(run.seconds);
    peak_one = std::max(peak_one, run.peak_bytes);
  }
  const double best_rate = *std::max_element(rate.begin(), rate.end());
  const double allowed = 2 * median(copy) + net.flops(1) / median(rate);

  std::vector<double> many_rate, many_seconds;
  double peak_many = 0;
  for (int i = 0; i < 3; ++i) {
    const ChildRun run = generate(n);
    many_rate.push_back(run.report["hypernet_gflops_per_second"].get<double>() * 1e9);
    many_seconds.push_back(run.seconds);
    peak_many = std::max(peak_many, run.peak_bytes);
    rate.push_back(product / timed([&] { backend(y).matmul(y, x, w, nullptr, spec); }));
  }
  const double best = std::max(best_rate, *std::max_element(rate.begin(), rate.end()));

  if (cli.json) {
    fmt::print("{}\n", Json{{"variant", variant},
                            {"checkpoint_bytes", file_bytes},
                            {"memcpy_seconds", median(copy)},
                            {"gemm_flops_per_second", best},
                            {"cold_seconds", median(one)},
                            {"allowed_seconds", allowed},
                            {"cold_of_allowed", median(one) / allowed},
                            {"peak_of_checkpoint", peak_one / file_bytes},
                            {"n", n},
                            {"n_seconds", median(many_seconds)},
                            {"n_hypernet_flops_per_second", median(many_rate)},
                            {"n_of_gemm", median(many_rate) / best},
                            {"n_peak_of_checkpoint", peak_many / file_bytes},
                            {"peak_rss_mib", peak_many / (1 << 20)}}
                           .dump(2));
    return 0;
  }
  fmt::print("t2l-gen, {} at the shapes of {}: checkpoint {:.1f} MB, {} threads\n", variant, base.path,
             file_bytes / 1e6, omp_get_max_threads());
  fmt::print("ceilings of this run: memcpy of the checkpoint {:.1f} ms, matrix product {:.1f} GFLOP/s\n\n",
             median(copy) * 1e3, best / 1e9);
  fmt::print("{:<34} {:>10} {:>10} {:>8}\n", "", "measured", "ceiling", "ratio");
  fmt::print("{:<34} {:>7.1f} ms {:>7.1f} ms {:>7.2f}x\n", "cold start to one adapter", median(one) * 1e3,
             allowed * 1e3, median(one) / allowed);
  fmt::print("{:<34} {:>7.0f} MB {:>7.0f} MB {:>7.2f}x\n", "  peak memory, of the checkpoint", peak_one / 1e6,
             file_bytes / 1e6, peak_one / file_bytes);
  fmt::print("{:<34} {:>5.1f} GF/s {:>5.1f} GF/s {:>7.0f}%\n", fmt::format("{} adapters, hypernetwork", n),
             median(many_rate) / 1e9, best / 1e9, 100 * median(many_rate) / best);
  fmt::print("{:<34} {:>7.1f} ms {:>7.1f} ms\n", "  start to all adapters on disk", median(many_seconds) * 1e3,
             net.flops(n) / best * 1e3);
  fmt::print("{:<34} {:>7.0f} MB {:>7.0f} MB {:>7.2f}x\n", "  peak memory, of the checkpoint", peak_many / 1e6,
             file_bytes / 1e6, peak_many / file_bytes);
  return 0;
}

}  // namespace t2l
