// The reconstruction objective: training runs of the official code, and losses and gradients against computations in
// double precision from the hypernetwork's predictions.
#include "t2l/reconstruct.h"

#include <map>
#include <sstream>

#include "nn/optimizer.h"
#include "t2l/checkpoint.h"
#include "tests/golden_files.h"
#include "tests/support.h"

using namespace t2l;
using namespace t2l::test;
namespace fs = std::filesystem;

namespace {

HypernetConfig config(bool z_score, bool dense) {
  HypernetConfig c;
  c.objective = HypernetConfig::Objective::Reconstruction;
  c.z_score = z_score;
  c.dense = dense;
  c.delta_w_scaling = 50;
  c.layers = 3;
  c.rank = 3;
  c.latent = 12;
  c.head_in = 7;
  c.task_dim = 9;
  c.dropout = 0;
  c.modules = {{"v_proj", 19, 5}, {"gate_proj", 19, 23}};
  return c;
}

Tensor normal(Shape shape, uint64_t stream, float std = 1) {
  Tensor t = Tensor::empty(shape);
  backend(t).random_normal(t, 0, std, {7, stream});
  return t;
}

std::vector<Adapter> random_adapters(const HypernetConfig& c, int64_t count) {
  std::vector<Adapter> all;
  uint64_t stream = 100;
  for (int64_t i = 0; i < count; ++i) {
    Adapter a{fmt::format("adapter-{}", i), {"base", c.rank, 16, true, 0, {}}, {}};
    for (int64_t l = c.layers; l-- > 0;)  // in any order
      for (auto& m : c.modules)
        a.weights.push_back({m.name, l, normal({c.rank, m.in}, ++stream), normal({m.out, c.rank}, ++stream)});
    all.push_back(std::move(a));
  }
  return all;
}

const LoraWeights& find(const Adapter& a, const std::string& module, int64_t layer) {
  for (const LoraWeights& w : a.weights)
    if (w.module == module && w.layer == layer) return w;
  throw std::logic_error("no " + module);
}

struct Mean {
  double sum = 0, count = 0;
  void add(double x) { sum += x, ++count; }
  double value() const { return sum / count; }
};

TEST_CASE("losses are those of the definition") {
  struct Mode {
    bool z_score, dense;
  };
  for (const Device device : devices())
    for (const Mode mode : {Mode{true, false}, Mode{false, false}, Mode{false, true}}) {
      const HypernetConfig c = config(mode.z_score, mode.dense);
      const auto adapters = random_adapters(c, 4);
      const ReconTargets targets = stack_targets(adapters, c);
      Hypernet net(c);
      if (mode.z_score) set_z_scores(net, targets);
      net.parameters().initialise(3);
      net.parameters().commit(device);
      const Tensor tasks = normal({5, c.task_dim}, 1).to(device);
      const std::vector<int32_t> rows{2, 0, 3, 3, 1};
      const ReconLoss got = reconstruct_loss(net, tasks, rows, targets.to(device));
      REQUIRE(got.loss.needs_grad());
      Tape::clear();

      const NoGrad no_grad;
      const auto predictions = net.predict(tasks);
      double loss = 0, error = 0;
      for (size_t m = 0; m < c.modules.size(); ++m) {
        const AdaptedModule& module = c.modules[m];
        const Values a = values(predictions[m].a.value), b = values(predictions[m].b.value);
        Mean product;
        for (const bool is_b : {false, true}) {
          Mean z_scores, plain;
          for (size_t i = 0; i < rows.size(); ++i)
            for (int64_t l = 0; l < c.layers; ++l) {
              const int64_t matrix = int64_t(i) * c.layers + l, r = c.rank;
              const LoraWeights& w = find(adapters[size_t(rows[i])], module.name, l);
              const Values wa = values(w.a), wb = values(w.b);
              if (mode.dense) {
                for (int64_t row = 0; !is_b && row < module.out; ++row)
                  for (int64_t j = 0; j < module.in; ++j) {
                    double d = 0;
                    for (int64_t k = 0; k < r; ++k)
                      d += double(b[size_t((matrix * module.out + row) * r + k)]) *
                               double(a[size_t((matrix * r + k) * module.in + j)]) -
                           50. * double(wb[size_t(row * r + k)]) * double(wa[size_t(k * module.in + j)]);
                    product.add(std::abs(d));
                  }
                continue;
              }
              const Values &target = is_b ? wb : wa, &p = is_b ? b : a;
              for (size_t e = 0; e < target.size(); ++e) {
                Mean mean, variance;
                for (const Adapter& of : adapters)
                  mean.add(double(values(is_b ? find(of, module.name, l).b : find(of, module.name, l).a)[e]));
                for (const Adapter& of : adapters)
                  variance.add(std::pow(
                      double(values(is_b ? find(of, module.name, l).b : find(of, module.name, l).a)[e]) - mean.value(),
                      2));
                const double deviation = mode.z_score ? std::sqrt(variance.sum / 3) : 1,
                             shift = mode.z_score ? mean.value() : 0;
                const double d =
                    double(p[size_t(matrix) * target.size() + e]) - (double(target[e]) - shift) / deviation;
                z_scores.add(std::abs(d));
                plain.add(std::abs(d) * deviation);
              }
            }
          if (!mode.dense) loss += z_scores.value() / 4, error += plain.value() / 4;
        }
        if (mode.dense) loss += product.value() / 2, error += product.value() / 100;
      }
      INFO(name_of(device) << " z-scores " << mode.z_score << " dense " << mode.dense);
      CHECK(values(got.loss.value)[0] == Approx(loss).epsilon(5e-7));
      CHECK(values(got.error)[0] == Approx(error).epsilon(5e-7));
    }
}

TEST_CASE("reconstruction is learnt, on both devices alike") {
  for (const bool dense : {false, true}) {
    std::vector<Values> losses;
    for (const Device device : devices()) {
      const HypernetConfig c = config(!dense, dense);
      const ReconTargets targets = stack_targets(random_adapters(c, 3), c);
      Hypernet net(c);
      if (!dense) set_z_scores(net, targets);
      net.parameters().initialise(3);
      net.parameters().commit(device);
      Optimizer optimizer(net.parameters(), {.weight_decay = 1e-3, .max_norm = 1});
      const Tensor tasks = normal({3, c.task_dim}, 1).to(device);
      const ReconTargets there = targets.to(device);
      Values of_device;
      for (int i = 0; i < 10; ++i) {
        const ReconLoss loss = reconstruct_loss(net, tasks, {0, 1, 2}, there);
        of_device.push_back(values(loss.loss.value)[0]);
        backward(loss.loss);
        optimizer.step(3e-3);
      }
      CHECK(of_device.back() < of_device.front());
      losses.push_back(of_device);
      CHECK(relative(of_device, losses[0]) < 1e-5);
    }
  }
}

TEST_CASE("adapters that do not fit are refused in one line") {
  const HypernetConfig c = config(true, false);
  const auto refused = [&](const std::function<void(Adapter&)>& spoil, const std::vector<std::string>& parts) {
    auto adapters = random_adapters(c, 2);
    spoil(adapters[1]);
    check_refused([&] { stack_targets(adapters, c); }, parts);
  };
  refused([](Adapter& a) { a.spec.rank = 4; }, {"adapter-1", "rank is 4", "3"});
  refused([](Adapter& a) { a.weights[0].module = "q_proj"; }, {"adapter-1", "q_proj", "layer 2"});
  refused([](Adapter& a) { a.weights[0].layer = 3; }, {"adapter-1", "v_proj", "layer 3"});
  refused([](Adapter& a) { a.weights.pop_back(); }, {"adapter-1", "gate_proj", "2 layers", "3"});
  refused([](Adapter& a) { a.weights[0].b = normal({6, 3}, 1); }, {"adapter-1", "lora_B", "[6, 3]", "[5, 3]"});
  refused([](Adapter& a) { a.weights[3].a.data<float>()[5] = NAN; }, {"adapter-1", "lora_A", "gate_proj", "finite"});
  check_refused([&] { load_targets("/nowhere", {"task"}, c); }, {"/nowhere/task"});
  Hypernet net(c);
  check_refused([&] { set_z_scores(net, stack_targets(random_adapters(c, 1), c)); },
                {"1 training task", "pred_z_score"});
}

// ---- training runs of the official code
std::vector<Json> lines_of(const std::string& path) {
  std::vector<Json> lines;
  std::istringstream text(read_text_file(path));
  for (std::string line; std::getline(text, line);) lines.push_back(Json::parse(line));
  return lines;
}

struct Worst {
  double loss = 0, error = 0, norm = 0, gradient = 0, weights = 0, z_scores = 0;
};

Worst replay(const std::string& root, const std::string& name, Device device, size_t steps) {
  const std::string folder = root + "/" + name, world = root + "/world";
  const auto order = read_json(folder + "/case.json")["module_order"].get<std::vector<std::string>>();
  Hypernet net = std::move(load_hypernet(folder + "/init", {order, world + "/base"}).net);
  std::vector<std::string> tasks;
  for (auto& entry : fs::directory_iterator(world + "/train_outputs/sft/oracle_lora"))
    tasks.push_back(entry.path().filename());
  std::sort(tasks.begin(), tasks.end());
  const ReconTargets targets = load_targets(world + "/train_outputs/sft/oracle_lora", tasks, net.config());
  Worst worst;
  if (net.config().z_score) {  // ours against the checkpoint's
    Hypernet ours(net.config());
    set_z_scores(ours, targets);
    for (const std::string& n : net.parameters().names())
      if (n.find("_recon_target.") != std::string::npos)
        worst.z_scores =
            std::max(worst.z_scores, relative(values(ours.parameters().value(n)), values(net.parameters().value(n))));
  }
  net.parameters().commit(device);
  const ReconTargets there = targets.to(device);
  const SafeTensors embeddings = SafeTensors::open(world + "/embeddings.safetensors"),
                    gradients = SafeTensors::open(folder + "/grads_step1.safetensors");
  const auto data = lines_of(folder + "/data_order.jsonl"), expected = lines_of(folder + "/steps.jsonl");
  Optimizer optimizer(net.parameters(), {.weight_decay = 1e-3, .max_norm = 1});
  for (size_t step = 0; step < std::min(steps, expected.size()); ++step) {
    const int64_t n = int64_t(data[step].size()), dim = net.config().task_dim;
    const Tensor batch = Tensor::empty({n, dim});
    std::vector<int32_t> rows;
    for (int64_t i = 0; i < n; ++i) {
      const std::string task = data[step][size_t(i)][0];
      const int64_t description = data[step][size_t(i)][1];
      rows.push_back(int32_t(std::find(tasks.begin(), tasks.end(), task) - tasks.begin()));
      batch.slice(i, i + 1).copy_from(normalise_embedding(embeddings.get(task)).slice(description, description + 1));
    }
    const ReconLoss loss = reconstruct_loss(net, batch.to(device), rows, there);
    const auto off = [](double got, const Json& want) { return std::abs(got / want.get<double>() - 1); };
    worst.loss = std::max(worst.loss, off(values(loss.loss.value)[0], expected[step]["loss"]));
    worst.error = std::max(worst.error, off(values(loss.error)[0], expected[step]["unnorm_err"]));
    backward(loss.loss);
    if (step == 0) {
      net.parameters().grads();
      CHECK(gradients.names().size() > 20);
      for (const std::string& of : gradients.names())
        worst.gradient =
            std::max(worst.gradient, relative(values(net.parameters()(of).grad()), values(gradients.get(of))));
    }
    worst.norm = std::max(worst.norm, off(optimizer.step(expected[step]["lr"]), expected[step]["grad_norm"]));
  }
  if (steps >= expected.size()) {
    const SafeTensors final = SafeTensors::open(folder + "/final.safetensors");
    Values got, want;
    for (const std::string& n : final.names()) {
      const Values g = values(net.parameters().value(n)), w = values(final.get(n));
      got.insert(got.end(), g.begin(), g.end());
      want.insert(want.end(), w.begin(), w.end());
    }
    CHECK(int64_t(want.size()) == net.parameters().count());
    worst.weights = relative(got, want);
  }
  return worst;
}

TEST_CASE("the official runs") {
  const std::string root = shared_folder() + "/golden/training";
  if (!fs::exists(root)) return skip("no ../shared/golden/training");
  for (const std::string name : {"recon_L", "recon_M", "recon_S", "recon_L_dense"})
    for (const Device device : devices()) {
      const Worst worst = replay(root, name, device, device == Device::CPU ? 50 : 1);
      const std::string found = fmt::format(
          "{} on {}: loss {:.1e}, error {:.1e}, norm {:.1e}, first gradients {:.1e}, weights {:.1e}, z-scores {:.1e}",
          name, name_of(device), worst.loss, worst.error, worst.norm, worst.gradient, worst.weights, worst.z_scores);
      INFO(found);
      CHECK(worst.loss < 1e-6);
      CHECK(worst.error < 2e-6);
      CHECK(worst.norm < 3e-5);
      CHECK(worst.gradient < 2e-5);
      CHECK(worst.weights < 4e-6);
      CHECK(worst.z_scores < 1e-6);
    }
}

}  // namespace
