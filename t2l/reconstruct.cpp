#include "t2l/reconstruct.h"

#include <algorithm>
#include <cmath>

namespace t2l {
namespace {

// Copies one of an adapter's matrices to its place among the targets.
void place(const Tensor& matrix, const Tensor& targets, int64_t row, const Adapter& from, const LoraWeights& w,
           const char* name) {
  const Shape want{targets.dim(-2), targets.dim(-1)};
  if (!(matrix.shape() == want))
    fail("{}: {} of {} in layer {} is {}, the hypernetwork needs {}; is the adapter of another base model?", from.path,
         name, w.module, w.layer, matrix.shape().str(), want.str());
  if (!all_finite(matrix))
    fail("{}: {} of {} in layer {} has a value that is not finite", from.path, name, w.module, w.layer);
  targets.reshape({targets.dim(0) * targets.dim(1), want[0], want[1]})
      .slice(row, row + 1)
      .reshape(want)
      .copy_from(matrix);
}

// Empty targets for `tasks` adapters.
ReconTargets make_targets(int64_t tasks, const HypernetConfig& c) {
  ReconTargets t;
  for (const AdaptedModule& m : c.modules)
    t.modules.push_back(
        {Tensor::empty({tasks, c.layers, c.rank, m.in}), Tensor::empty({tasks, c.layers, m.out, c.rank})});
  return t;
}

void add_task(ReconTargets& targets, const Adapter& adapter, const HypernetConfig& c) {
  if (adapter.spec.rank != c.rank)
    fail("{}: the adapter's rank is {}, the hypernetwork's {}; train either with the other's", adapter.path,
         adapter.spec.rank, c.rank);
  const int64_t task = int64_t(targets.tasks.size());
  std::vector<int64_t> found(c.modules.size());
  for (const LoraWeights& w : adapter.weights) {
    const auto m = std::find_if(c.modules.begin(), c.modules.end(), [&](auto& x) { return x.name == w.module; });
    if (m == c.modules.end() || w.layer >= c.layers)
      fail("{}: the adapter has {} in layer {}, the hypernetwork has not; an adapter is learnt whole", adapter.path,
           w.module, w.layer);
    const size_t i = size_t(m - c.modules.begin());
    ++found[i];
    place(w.a, targets.modules[i].a, task * c.layers + w.layer, adapter, w, "lora_A");
    place(w.b, targets.modules[i].b, task * c.layers + w.layer, adapter, w, "lora_B");
  }
  for (size_t i = 0; i < found.size(); ++i)
    if (found[i] != c.layers)
      fail("{}: the adapter has {} in {} layers, the hypernetwork in {}", adapter.path, c.modules[i].name, found[i],
           c.layers);
  targets.tasks.push_back(adapter.path);
}

}  // namespace

ReconTargets ReconTargets::to(Device device) const {
  ReconTargets there{tasks, {}};
  for (const Module& m : modules) there.modules.push_back({m.a.to(device), m.b.to(device)});
  return there;
}

ReconTargets load_targets(const std::string& folder, const std::vector<std::string>& tasks, const HypernetConfig& c) {
  ReconTargets targets = make_targets(int64_t(tasks.size()), c);
  for (const std::string& task : tasks) add_task(targets, load_adapter(folder + "/" + task), c);
  targets.tasks = tasks;
  return targets;
}

ReconTargets stack_targets(const std::vector<Adapter>& adapters, const HypernetConfig& c) {
  ReconTargets targets = make_targets(int64_t(adapters.size()), c);
  for (const Adapter& adapter : adapters) add_task(targets, adapter, c);
  return targets;
}

void set_z_scores(Hypernet& net, const ReconTargets& targets) {
  const auto set = [&](const Tensor& all, const std::string& name) {
    const int64_t tasks = all.dim(0), n = tasks ? all.size() / tasks : 0;
    if (tasks < 2)
      fail("z-scores: {} training tasks have no deviation; take two or more, or pred_z_score: false", tasks);
    const Shape shape{all.dim(1), all.dim(2), all.dim(3)};
    Tensor mean = Tensor::empty(shape), std = Tensor::empty(shape);
    const float* const x = all.host<float>().data();
    float *const means = mean.data<float>(), *const stds = std.data<float>();
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; ++i) {
      double sum = 0, squares = 0;
      for (int64_t t = 0; t < tasks; ++t) sum += double(x[t * n + i]);
      const double m = sum / double(tasks);
      for (int64_t t = 0; t < tasks; ++t) squares += (double(x[t * n + i]) - m) * (double(x[t * n + i]) - m);
      means[i] = float(m);
      stds[i] = float(std::sqrt(squares / double(tasks - 1)));
    }
    net.parameters().load("mean_recon_target." + name, mean, "the targets' mean");
    net.parameters().load("std_recon_target." + name, std, "the targets' deviation");
  };
  const std::vector<AdaptedModule>& modules = net.config().modules;
  for (size_t i = 0; i < modules.size(); ++i) {
    set(targets.modules[i].a, "A." + modules[i].name);
    set(targets.modules[i].b, "B." + modules[i].name);
  }
}

ReconLoss reconstruct_loss(const Hypernet& net, const Var& tasks, const std::vector<int32_t>& task_of_row,
                           const ReconTargets& targets, const Hypernet::Training* training) {
  const HypernetConfig& c = net.config();
  T2L_CHECK(int64_t(task_of_row.size()) == tasks.dim(0) && targets.modules.size() == c.modules.size() &&
                std::all_of(task_of_row.begin(), task_of_row.end(),
                            [&](int32_t t) { return t >= 0 && t < targets.modules[0].a.dim(0); }),
            "reconstruction: {} rows of {} tasks for embeddings {}", task_of_row.size(), targets.tasks.size(),
            tasks.shape().str());
  const Tensor ids = Tensor::from(task_of_row, tasks.value.device());
  const auto predictions = net.predict(tasks, training);
  Var loss, error;
  const auto collect = [](Var& sum, const Var& x) { sum = sum ? add(sum, x) : x; };
  for (size_t i = 0; i < c.modules.size(); ++i) {
    const ModuleAdapters& p = predictions[i];
    const ReconTargets::Module& t = targets.modules[i];
    if (c.dense) {
      collect(loss, dense_l1_loss(p.a, p.b, t.a, t.b, ids, float(c.delta_w_scaling)));
      continue;
    }
    const auto factor = [&](const Var& prediction, const Tensor& target, const std::string& name) {
      const auto vector = [&](const std::string& kind) {
        return c.z_score ? net.parameters().value(kind + name + c.modules[i].name) : Tensor{};
      };
      Tensor of_factor;
      collect(loss,
              l1_loss(prediction, target, ids, vector("mean_recon_target."), vector("std_recon_target."), &of_factor));
      collect(error, of_factor);
    };
    factor(p.a, t.a, "A.");
    factor(p.b, t.b, "B.");
  }
  const float modules = float(c.modules.size());
  if (c.dense) {
    loss = scale(loss, 1 / modules);
    const NoGrad no_grad;
    return {loss, scale(loss, float(1 / c.delta_w_scaling)).value};
  }
  return {scale(loss, 1 / (2 * modules)), scale(error, 1 / (2 * modules)).value};
}

}  // namespace t2l
