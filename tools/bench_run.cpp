// t2l-bench run: a decoder's two phases. Prefill is bound by the matrix product, decoding by reading the weights, so
// the ceilings are a large product and a sum over as much memory, measured between the runs. t2l-bench load: a cold
// t2l-run process on a model in the page cache, until its first token, beside reading the files.
#include <omp.h>

#include <algorithm>
#include <filesystem>
#include <numeric>

#include "tools/bench.h"
#include "transformer/generation.h"

namespace t2l {
namespace {

namespace fs = std::filesystem;

DecoderConfig config_of(const CommandLine& cli) {
  if (!cli.has("model")) throw UsageError("--model is missing: the directory of a base model");
  return DecoderConfig::load(cli.get("model"));
}

// Bytes per second at which all threads read 256 MB.
double read_rate() {
  static const Tensor memory = Tensor::zeros({int64_t(1) << 26});
  const auto* words = memory.data<uint64_t>();
  const int64_t n = memory.size() / 2;
  uint64_t bits = 0;
  const double seconds = timed([&] {
#pragma omp parallel for simd reduction(| : bits) schedule(static)
    for (int64_t i = 0; i < n; ++i) bits |= words[i];
  });
  if (bits) fail("zeros became {}", bits);
  return double(memory.bytes()) / seconds;
}

}  // namespace

int bench_run(const CommandLine& cli) {
  const DecoderConfig config = config_of(cli);
  const int64_t prompt = cli.get_int("prompt-tokens", 512), sequences = cli.get_int("n", 8),
                steps = cli.get_int("new-tokens", 32), runs = cli.get_int("repeat", 7);
  if (prompt < 1 || sequences < 1 || steps < 2 || runs < 1)
    throw UsageError("--prompt-tokens, --n, --repeat must be at least 1 and --new-tokens 2");
  const DecoderOptions options{cli.dtype, cli.device, {}};
  std::optional<Decoder> decoder;
  if (cli.has("random")) {
    decoder.emplace(config, options);
    decoder->initialise(cli.seed);
  } else {
    decoder.emplace(Decoder::load(cli.get("model"), options));
  }
  const auto ids = [&](int64_t n, uint64_t stream) {
    std::vector<int32_t> list;
    for (int64_t i = 0; i < n; ++i)
      list.push_back(int32_t(random_bits({cli.seed, stream}, uint64_t(i)) % uint64_t(config.vocab)));
    return list;
  };
  const int64_t head = config.vocab * config.hidden, block = config.parameters() - head * (config.tied ? 1 : 2);
  // The decoding sequences have short prompts of several lengths, so that their cost is that of the weights.
  TokenIds prompts;
  for (int64_t i = 0; i < sequences; ++i) prompts.push_back(ids(16 + 4 * i, uint64_t(i) + 1));

  std::vector<double> prefill, decode, reading, product;
  double attended = 0;
  for (int64_t i = 0; i <= runs; ++i) {
    GenerationTimes one, many;
    GenerationOptions o;
    o.max_new_tokens = 1;
    generate(*decoder, {ids(prompt, 0)}, o, nullptr, {}, {}, &one);
    o.max_new_tokens = steps;
    generate(*decoder, prompts, o, nullptr, {}, {}, &many);
    if (i == 0) continue;  // the first touches all memory
    prefill.push_back(one.prefill);
    decode.push_back(many.decode / double(many.steps));
    reading.push_back(cli.device == Device::CPU ? read_rate() : 0);
    product.push_back(cli.device == Device::CPU ? product_rate(cli.dtype, cli.device) : 0);
  }
  for (int64_t i = 0; i < config.layers; ++i)
    attended += 4 * double(config.heads * config.head_dim) * double(prompt) * double(prompt + 1) / 2;
  const double flops = 2 * double(block) * double(prompt) + 2 * double(head) + attended;
  const double bytes = double(block + head) * double(size_of(cli.dtype));
  const double t_prefill = median(prefill), t_decode = median(decode);
  if (cli.json) {
    fmt::print("{}\n", Json{{"prompt_tokens", prompt},
                            {"prefill_seconds", t_prefill},
                            {"prefill_flops_per_second", flops / t_prefill},
                            {"product_flops_per_second", median(product)},
                            {"sequences", sequences},
                            {"decode_step_seconds", t_decode},
                            {"decode_tokens_per_second", double(sequences) / t_decode},
                            {"weight_bytes_per_second", bytes / t_decode},
                            {"read_bytes_per_second", median(reading)},
                            {"dtype", name_of(cli.dtype)},
                            {"threads", omp_get_max_threads()},
                            {"peak_rss_mib", peak_resident_bytes() / (1 << 20)}}
                           .dump(2));
    return 0;
  }
  fmt::print("{}: {:.1f} M parameters, {}, {} threads; medians of {} runs\n\n", config.path,
             double(config.parameters()) / 1e6, name_of(cli.dtype), omp_get_max_threads(), runs);
  fmt::print("{:<34} {:>10} {:>14} {:>14} {:>7}\n", "", "time", "rate", "ceiling", "share");
  const auto row = [](const std::string& name, double seconds, double rate, double ceiling, const char* unit) {
    fmt::print("{:<34} {:>7.1f} ms {:>8.1f} {} {:>8.1f} {} {:>6.0f}%\n", name, seconds * 1e3, rate / 1e9, unit,
               ceiling / 1e9, unit, ceiling > 0 ? 100 * rate / ceiling : 0);
  };
  row(fmt::format("prefill of {} tokens", prompt), t_prefill, flops / t_prefill, median(product), "GF/s ");
  row(fmt::format("a step of {} sequences", sequences), t_decode, bytes / t_decode, median(reading), "GB/s ");
  fmt::print("{:.1f} tokens/s prefilled, {:.1f} tokens/s decoded\n", double(prompt) / t_prefill,
             double(sequences) / t_decode);
  return 0;
}

int bench_load(const CommandLine& cli) {
  const DecoderConfig config = config_of(cli);
  const BenchFolder scratch;
  std::string model = cli.get("model");
  if (cli.has("random")) {  // weights of the config's own size
    model = scratch.path;
    Decoder decoder(config, {cli.dtype, Device::CPU, {}});
    decoder.initialise(cli.seed);
    NamedTensors tensors;
    for (const Decoder::Parameter& p : decoder.parameters()) tensors.emplace_back(p.name, p.value->value);
    write_safetensors(model + "/model.safetensors", tensors);
    fs::copy_file(config.path, model + "/config.json");
  }
  std::vector<std::string> files;
  double bytes = 0;
  for (auto& entry : fs::directory_iterator(model))
    if (entry.path().extension() == ".safetensors") {
      files.push_back(entry.path().string());
      bytes += double(fs::file_size(entry.path()));
    }
  std::vector<char> buffer(size_t(8) << 20);
  const auto read_all = [&] {
    for (const std::string& file : files)
      if (std::FILE* f = std::fopen(file.c_str(), "rb")) {
        while (std::fread(buffer.data(), 1, buffer.size(), f) == buffer.size()) {}
        std::fclose(f);
      }
  };
  read_all();  // into the page cache
  const int64_t runs = cli.get_int("repeat", 5);
  std::vector<double> reading, cold;
  double peak = 0;
  for (int64_t i = 0; i < std::max<int64_t>(runs, 1); ++i) {
    reading.push_back(timed(read_all));
    const ChildRun run =
        run_child("t2l-run",
                  {"--model", model, "--ids", "1,2,3,4,5,6,7,8", "--max-new-tokens", "1", "--device", "cpu", "--dtype",
                   name_of(cli.dtype), "--json", "--quiet", "--threads", std::to_string(omp_get_max_threads())},
                  scratch.path);
    cold.push_back(run.seconds);
    peak = std::max(peak, run.peak_bytes);
  }
  const double seconds = median(cold), once = median(reading);
  if (cli.json)
    fmt::print("{}\n", Json{{"file_bytes", bytes},
                            {"seconds_to_first_token", seconds},
                            {"read_seconds", once},
                            {"of_reading", seconds / once},
                            {"peak_rss_mib", peak / (1 << 20)},
                            {"peak_of_file", peak / bytes}}
                           .dump(2));
  else
    fmt::print(
        "{}: {:.2f} GB of weights, computed in {}\n{:<44} {:>8.2f} s\n{:<44} {:>8.2f} s  {:.2f} x\n{:<44} {:>8.2f} GB "
        "{:.2f} x\n",
        config.path, bytes / 1e9, name_of(cli.dtype), "reading the files once", once,
        "cold start to the first token of 8 read", seconds, seconds / once, "peak memory, of the files", peak / 1e9,
        peak / bytes);
  return 0;
}

}  // namespace t2l
