// t2l-bench train: one step of supervised fine-tuning, from embeddings to updated weights, a task for each sample, with
// dropout and noise as in training; beside a square matrix product measured between the steps.
#include <omp.h>

#include <algorithm>
#include <charconv>

#include "nn/optimizer.h"
#include "t2l/apply_adapter.h"
#include "t2l/estimate.h"
#include "t2l/sft.h"
#include "tools/bench.h"

namespace t2l {
namespace {

std::vector<int64_t> parse_lengths(const std::string& list) {
  std::vector<int64_t> lengths;
  for (const char *at = list.data(), *end = at + list.size();;) {
    int64_t n = 0;
    const auto [next, error] = std::from_chars(at, end, n);
    if (error != std::errc() || n < 2 || n > 1 << 20 || (next != end && *next != ','))
      throw UsageError(fmt::format("--lengths {}: must be numbers of tokens from 2, with commas between them", list));
    lengths.push_back(n);
    if (next == end) return lengths;
    at = next + 1;
  }
}

}  // namespace

int bench_train(const CommandLine& cli) {
  if (!cli.has("model")) throw UsageError("--model is missing: the directory of the base model");
  const DecoderConfig config = DecoderConfig::load(cli.get("model"));
  const std::vector<int64_t> lengths = parse_lengths(cli.get("lengths", "64,128,192,256,320,384,448,512"));
  const double response = cli.get_number("response", 0.25);
  const int64_t steps = cli.get_int("steps", 5);
  if (!(response > 0 && response <= 1) || steps < 1)
    throw UsageError("--response must be above 0 and at most 1, --steps at least 1");
  const DecoderOptions options{cli.dtype, cli.device, {}, cli.has("recompute")};
  std::optional<Decoder> base;
  if (cli.has("random")) {
    base.emplace(config, options);
    base->initialise(cli.seed);
  } else {
    base.emplace(Decoder::load(cli.get("model"), options));
  }

  HypernetConfig c = hypernet_for(config, cli.get("variant", "L"));
  c.objective = HypernetConfig::Objective::SFT;
  Hypernet net(c);
  net.parameters().initialise(cli.seed);
  net.parameters().commit(cli.device);
  Optimizer optimizer(net.parameters(), {.weight_decay = 1e-2, .max_norm = 1});
  const auto tasks = int64_t(lengths.size());
  SftBatch batch;
  int64_t tokens = 0, answered = 0;
  std::vector<int64_t> responses;
  for (int64_t s = 0; s < tasks; ++s) {
    std::vector<int32_t> ids, labels;
    const int64_t n = lengths[size_t(s)], from = n - std::max<int64_t>(1, int64_t(double(n) * response));
    for (int64_t i = 0; i < n; ++i) {
      ids.push_back(int32_t(random_bits({cli.seed, uint64_t(s)}, uint64_t(i)) % uint64_t(config.vocab)));
      labels.push_back(i < from ? -100 : ids.back());
    }
    batch.ids.push_back(std::move(ids)), batch.labels.push_back(std::move(labels));
    tokens += n, answered += n - from;
    responses.push_back(n - from);
  }
  const double before = peak_resident_bytes();

  StepTimes times;
  std::vector<double> rates, losses;
  for (int64_t i = 0; i <= steps; ++i) {
    Tensor task = Tensor::empty({tasks, net.config().task_dim}, DType::F32, cli.device);
    backend(task).random_normal(task, 0, 1, {cli.seed, uint64_t(1000 + i)});
    const Hypernet::Training training{cli.seed, uint64_t(i)};
    const RandomKey key = step_key(cli.seed, i);
    Stopwatch watch;
    const std::vector<ModuleAdapters> generated = net.generate(task, &training);
    const SftLoss loss =
        sft_loss(*base, batch, adapters_of(generated, net.config(), 5.65685f, cli.dtype), &generated, {}, &key);
    losses.push_back(double(loss.total.value.to_vector<float>()[0]));
    const double t_forward = watch.lap();
    backward(loss.total);
    backend(task).synchronize();
    const double t_back = watch.lap();
    optimizer.step(1e-4);
    const double t_update = watch.lap();
    if (i == 0) continue;
    times.add(t_forward, t_back, t_update);
    rates.push_back(product_rate(cli.dtype, cli.device));
  }
  StepCost cost;
  add_hypernet(cost, net, tasks, cli.dtype);
  BaseStep shape{config, cli.dtype, cli.has("recompute"), lengths, responses, {}, c.rank, SftOptions{}.lora_dropout};
  for (const AdaptedModule& m : c.modules) shape.adapted.push_back(parse_projection(m.name));
  add_base_step(cost, shape);
  add_slabs(cost, net.parameters());
  const double flops = cost.total_flops();
  const double step = times.seconds();
  if (cli.json) {
    Json report{{"variant", net.config().variant()},
                {"dtype", name_of(cli.dtype)},
                {"tokens", tokens},
                {"response_tokens", answered},
                {"parameters", net.parameters().count()},
                {"tokens_per_second", double(tokens) / step},
                {"flops_per_second", flops / step},
                {"product_flops_per_second", median(rates)},
                {"estimated_mib", cost.total_bytes() / (1 << 20)},
                {"losses", losses}};
    times.describe(report, before);
    fmt::print("{}\n", report.dump(2));
    return 0;
  }
  fmt::print("T2L-{} through {}, {}: {} tokens in {} samples, {} of them answers; {} threads, medians of {} steps\n\n",
             net.config().variant(), config.path, name_of(cli.dtype), tokens, tasks, answered, omp_get_max_threads(),
             steps);
  fmt::print("a step {:>8.3f} s  {:.0f} tokens/s  {:.1f} GFLOP/s, {:.0f}% of the product's {:.1f}\n", step,
             double(tokens) / step, flops / step / 1e9, 100 * flops / step / median(rates), median(rates) / 1e9);
  times.print_stages(before);
  return 0;
}

}  // namespace t2l
