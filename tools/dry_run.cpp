#include "tools/dry_run.h"

namespace t2l {
namespace {

// The mean FLOPs and samples of some micro-batches, and the memory of the one that takes most.
struct Costs {
  StepCost mean, most;
};
Costs costs_of(const Learner& learner, int64_t iterations) {
  constexpr int64_t kSome = 16;
  const int64_t n = std::min(iterations, kSome);
  Costs all;
  for (int64_t i = 0; i < n; ++i) {
    const StepCost cost = learner.cost(i);
    if (i == 0) {
      all.mean = all.most = cost;
      continue;
    }
    if (cost.total_bytes() > all.most.total_bytes()) all.most = cost;
    for (size_t p = 0; p < cost.flops.size(); ++p) {
      all.mean.flops[p].forward += cost.flops[p].forward;
      all.mean.flops[p].backward += cost.flops[p].backward;
    }
    all.mean.samples += cost.samples, all.mean.tokens += cost.tokens;
    all.mean.response_tokens += cost.response_tokens;
  }
  for (StepCost::Flops& f : all.mean.flops) f.forward /= double(n), f.backward /= double(n);
  all.mean.samples /= n, all.mean.tokens /= n, all.mean.response_tokens /= n;
  return all;
}

std::string gflop(double x) { return fmt::format("{:.4g}", x / 1e9); }
std::string mib(double x) { return fmt::format("{:.1f}", x / (1 << 20)); }

}  // namespace

void print_dry_run(const TrainConfig& c, const Learner& learner, const Parameters& parameters, const TrainPlan& plan,
                   DType dtype, Device device) {
  int64_t samples = 0, tokens = 0, responses = 0, descriptions = 0;
  for (const Task& t : learner.data().tasks) {
    samples += int64_t(t.train.size()), descriptions += int64_t(t.descriptions.size());
    for (const Example& e : t.train) tokens += int64_t(e.ids.size()), responses += int64_t(e.ids.size()) - e.prompt;
  }
  const auto tasks = int64_t(learner.data().tasks.size());
  const auto parts = parameters_by_part(parameters);
  const auto [mean, most] = costs_of(learner, plan.iterations);

  if (c.json) {
    Json by_part = Json::object(), flops = Json::object(), memory = Json::object();
    for (const auto& [part, n] : parts) by_part[part] = n;
    by_part["total"] = parameters.count();
    for (const auto& f : mean.flops) flops[f.part] = {{"forward", f.forward}, {"backward", f.backward}};
    flops["total"] = mean.total_flops();
    for (const auto& [part, bytes] : most.bytes) memory[part] = bytes;
    memory["total"] = most.total_bytes();
    fmt::print("{}\n",
               Json{{"verb", name_of(c.verb)},
                    {"dtype", name_of(dtype)},
                    {"device", name_of(device)},
                    {"parameters", by_part},
                    {"data",
                     {{"tasks", tasks},
                      {"descriptions", descriptions},
                      {"samples", samples},
                      {"tokens", tokens},
                      {"response_tokens", responses}}},
                    {"micro_batches", plan.iterations},
                    {"updates", plan.iterations / plan.accumulate},
                    {"micro_batch",
                     {{"samples", mean.samples}, {"tokens", mean.tokens}, {"response_tokens", mean.response_tokens}}},
                    {"flops_per_micro_batch", flops},
                    {"memory_bytes", memory}}
                   .dump(2));
    return;
  }
  fmt::print("{}, {} on {}; nothing is written\n\n{:<32}{:>16}\n", name_of(c.verb), name_of(dtype), name_of(device),
             "trained parameters", parameters.count());
  for (const auto& [part, n] : parts) fmt::print("  {:<30}{:>16}\n", part, n);
  fmt::print("\ndata: {} tasks, {} descriptions, {} samples, {} tokens, {} of them responses\n", tasks, descriptions,
             samples, tokens, responses);
  fmt::print("steps: {} micro-batches, {} updates; a micro-batch has {} samples, {} tokens, {} of them responses\n\n",
             plan.iterations, plan.iterations / plan.accumulate, mean.samples, mean.tokens, mean.response_tokens);
  fmt::print("{:<32}{:>16}{:>16}\n", "GFLOP a micro-batch", "forward", "backward");
  for (const auto& f : mean.flops) fmt::print("  {:<30}{:>16}{:>16}\n", f.part, gflop(f.forward), gflop(f.backward));
  fmt::print("  {:<30}{:>16}\n\n{:<32}{:>16}\n", "total", gflop(mean.total_flops()), "memory, estimated", "MiB");
  for (const auto& [part, bytes] : most.bytes) fmt::print("  {:<30}{:>16}\n", part, mib(bytes));
  fmt::print("  {:<30}{:>16}\n", "total", mib(most.total_bytes()));
}

}  // namespace t2l
