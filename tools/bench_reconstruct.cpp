// t2l-bench reconstruct: one training step, from embeddings to updated weights, of 4 tasks with a description each, at
// the base model's shapes.
#include <omp.h>

#include <algorithm>

#include "nn/optimizer.h"
#include "t2l/reconstruct.h"
#include "tools/bench.h"
#include "transformer/base_model.h"

namespace t2l {

int bench_reconstruct(const CommandLine& cli) {
  if (!cli.has("model"))
    throw UsageError("--model is missing: the directory of the base model, of which only config.json is read");
  BaseModel base = BaseModel::read(cli.get("model"));
  const int64_t runs = cli.get_int("repeat", 5), tasks = 4;
  if (const int64_t layers = cli.get_int("layers", base.layers); layers < 1 || layers > base.layers || runs < 1)
    throw UsageError(fmt::format("--layers must be 1 to {} and --repeat positive", base.layers));
  else
    base.layers = layers;
  const std::string variant = cli.get("variant", "L");
  HypernetConfig c = hypernet_for(base, variant);
  c.dense = cli.has("dense");
  c.z_score = !c.dense;
  c.head_bias = c.dense;  // as the official script has it
  Hypernet net(c);
  net.parameters().initialise(cli.seed);
  ReconTargets targets;
  uint64_t stream = 0;
  const auto normal = [&](Shape shape, float std) {
    Tensor t = Tensor::empty(shape);
    backend(t).random_normal(t, 0, std, {cli.seed, ++stream});
    return t;
  };
  for (const AdaptedModule& m : c.modules)
    targets.modules.push_back(
        {normal({tasks, c.layers, c.rank, m.in}, 0.01f), normal({tasks, c.layers, m.out, c.rank}, 0.01f)});
  if (c.z_score) set_z_scores(net, targets);
  net.parameters().commit(cli.device);
  targets = targets.to(cli.device);
  Optimizer optimizer(net.parameters(), {.weight_decay = 1e-3, .max_norm = 1});
  const double before = peak_resident_bytes();

  StepTimes times;
  std::vector<double> losses;
  double flops = 3 * net.flops(tasks);
  for (const AdaptedModule& m : c.modules)  // D, dA and dB
    if (c.dense) flops += double(tasks * c.layers) * 8 * double(c.rank) * double(m.in) * double(m.out);
  for (int64_t i = 0; i <= runs; ++i) {
    const Tensor embeddings = normal({tasks, c.task_dim}, 1).to(cli.device);
    const Hypernet::Training training{cli.seed, uint64_t(i)};
    Stopwatch watch;
    ReconLoss loss = reconstruct_loss(net, embeddings, {0, 1, 2, 3}, targets, &training);
    losses.push_back(double(loss.loss.value.to_vector<float>()[0]));
    const double t_forward = watch.lap();
    backward(loss.loss);
    const double t_back = watch.lap();
    optimizer.step(1e-3);
    const double t_update = watch.lap();
    if (i > 0) times.add(t_forward, t_back, t_update);
  }
  const double seconds = times.seconds();
  if (cli.json) {
    Json report{{"variant", variant},
                {"dense", c.dense},
                {"layers", c.layers},
                {"tasks", tasks},
                {"parameters", net.parameters().count()},
                {"flops_per_second", flops / seconds},
                {"losses", losses}};
    times.describe(report, before);
    fmt::print("{}\n", report.dump(2));
    return 0;
  }
  fmt::print("{} {} at {} layers of {}: {:.1f} M parameters, {} threads; medians of {} steps\n\n", variant,
             c.dense ? "dense" : "factorized", c.layers, base.path, double(net.parameters().count()) / 1e6,
             omp_get_max_threads(), runs);
  fmt::print("a step of {} tasks {:>8.3f} s  {:.1f} GFLOP/s\n", tasks, seconds, flops / seconds / 1e9);
  times.print_stages(before);
  return 0;
}

}  // namespace t2l
