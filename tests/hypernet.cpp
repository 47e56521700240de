// The hypernetworks against the official code: what gen_lora gives, initial values, parameter counts; and what must
// hold of them whatever the weights: batches equal single runs, save and load give the same bits, gradients are right.
#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <set>

#include "t2l/checkpoint.h"
#include "t2l/task_embedding.h"
#include "tensor/json.h"
#include "tests/golden_files.h"
#include "transformer/base_model.h"

using namespace t2l;
namespace fs = std::filesystem;

namespace {

std::vector<Device> devices() { return has_cuda() ? std::vector{Device::CPU, Device::CUDA} : std::vector{Device::CPU}; }

double relative_l2(const Tensor& got, const Tensor& want) {
  const auto a = got.to_vector<float>(), b = want.to_vector<float>();
  if (a.size() != b.size()) return INFINITY;
  double error = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += std::pow(double(a[i]) - b[i], 2);
    norm += std::pow(double(b[i]), 2);
  }
  return error == 0 ? 0 : std::isfinite(error) && norm > 0 ? std::sqrt(error / norm) : INFINITY;
}

Tensor task_embedding(const TrainedHypernet& t, const std::string& folder) {
  const Tensor raw = SafeTensors::open(folder + "/embedding.safetensors").get("embedding");
  return t.encoder.normalise ? normalise_embedding(raw) : raw;
}

// The worst relative L2 over all adapters and tensors of a golden case.
double worst_of_case(const std::string& folder, const std::string& expected, const std::vector<std::string>& order,
                     Device device) {
  TrainedHypernet t = load_hypernet(folder, {order, folder + "/base"});
  t.verified.get();
  t.net.parameters().move_to(device);
  const NoGrad no_grad;
  const auto adapters = t.net.generate(task_embedding(t, folder).to(device));
  const HypernetConfig& c = t.net.config();
  double worst = 0;
  for (int64_t i = 0; fs::exists(fmt::format("{}/{}/{}", folder, expected, i)); ++i) {
    const SafeTensors want = SafeTensors::open(fmt::format("{}/{}/{}/adapter_model.safetensors", folder, expected, i));
    size_t compared = 0;
    for (size_t m = 0; m < c.modules.size(); ++m)
      for (int64_t l = 0; l < c.layers; ++l) {
        const std::string name = "base_model.model." + module_path(c.modules[m].name, l);
        const auto one = [&](const Var& all) {
          return all.value.slice(i, i + 1).reshape({c.layers, all.dim(2), all.dim(3)}).slice(l, l + 1);
        };
        worst = std::max(worst, relative_l2(one(adapters[m].a), want.get(name + ".lora_A.weight")));
        worst = std::max(worst, relative_l2(one(adapters[m].b), want.get(name + ".lora_B.weight")));
        compared += 2;
      }
    CHECK(compared == want.names().size());
  }
  return worst;
}

void check_goldens(const std::string& root) {
  const auto cases = test::folders_with(root, "hypermod.pt");
  REQUIRE_FALSE(cases.empty());
  const Json index = read_json(root + "/cases.json");
  for (const std::string& folder : cases)
    for (const Device device : devices()) {
      const std::string name = fs::path(folder).filename();
      INFO(name << " on " << name_of(device));
      const double worst = worst_of_case(folder, "expected", {}, device);
      CHECK(worst > 0);  // nothing compared would be 0
      CHECK(worst <= 5e-6);
      if (!fs::exists(folder + "/expected_swapped_order")) continue;
      auto order = index[name]["module_order"].get<std::vector<std::string>>();
      std::reverse(order.begin(), order.end());
      CHECK(worst_of_case(folder, "expected_swapped_order", order, device) <= 5e-6);
    }
}

HypernetConfig config(bool shared, bool autoregressive, bool learnable) {
  HypernetConfig c;
  c.shared_head = shared;
  c.autoregressive = autoregressive;
  c.learnable_positions = learnable;
  return c;
}
const std::vector<std::pair<std::string, HypernetConfig>> kVariants{
    {"L", config(false, false, false)}, {"M", config(true, false, false)},  {"S", config(true, true, false)},
    {"Spos", config(true, true, true)}, {"AR", config(false, true, false)}, {"ARpos", config(false, true, true)}};

// Small, odd, out > in and in > out.
HypernetConfig tiny(HypernetConfig c) {
  c.layers = 3;
  c.rank = 3;
  c.latent = 12;
  c.head_in = 7;
  c.task_dim = 9;
  c.modules = {{"v_proj", 10, 5}, {"gate_proj", 10, 13}};
  return c;
}

// Away from the zeros of the initial values, so that everything shows in the output.
void randomise(Hypernet& net, uint64_t seed) {
  for (const std::string& name : net.parameters().names()) {
    Tensor t = Tensor::empty(net.parameters().shape(name));
    const bool norm = name.ends_with("1.weight") && t.rank() == 1;
    backend(t).random_normal(t, norm ? 1.0f : 0.0f, t.rank() > 1 ? 0.4f : 0.2f, {seed, std::hash<std::string>{}(name)});
    if (name.starts_with("std_recon"))
      for (float& x : t.host<float>()) x = std::abs(x);
    net.parameters().load(name, t, "test");
  }
}

Tensor random_tasks(int64_t n, int64_t dim) {
  Tensor t = Tensor::empty({n, dim});
  backend(t).random_normal(t, 0, 1, {5, 5});
  return t;
}

}  // namespace

TEST_CASE("official adapters, the committed set") { check_goldens("tests/golden/hypernet"); }

TEST_CASE("official adapters, the large set") {
  if (test::shared_folder().empty()) {
    WARN("skipped: no ../shared");
    return;
  }
  check_goldens(test::shared_folder() + "/golden/hypernet");
}

TEST_CASE("parameter counts at Mistral-7B shapes") {
  // counts.json of the official class: without and with head biases.
  const std::map<std::string, std::pair<int64_t, int64_t>> want{
      {"L", {55317504, 55424000}},  {"M", {34346752, 34412288}}, {"S", {4986624, 4994816}},
      {"Spos", {4987904, 4996096}}, {"AR", {7607296, 7620608}},  {"ARpos", {7608576, 7621888}}};
  for (auto& [name, variant] : kVariants)
    for (const bool bias : {false, true}) {
      HypernetConfig c = variant;
      c.layers = 32;
      c.task_dim = 1024;
      c.modules = {{"q_proj", 4096, 4096}, {"v_proj", 4096, 1024}};
      c.head_bias = bias;
      INFO(name);
      CHECK(Hypernet(c).parameters().count() == (bias ? want.at(name).second : want.at(name).first));
    }
}

TEST_CASE("a batch of tasks equals one by one, bit for bit") {
  const NoGrad no_grad;
  for (auto& [name, variant] : kVariants) {
    Hypernet net(tiny(variant));
    randomise(net, 1);
    const Tensor tasks = random_tasks(5, 9);
    const auto all = net.generate(tasks);
    for (int64_t i = 0; i < 5; ++i) {
      const auto one = net.generate(tasks.slice(i, i + 1));
      for (size_t m = 0; m < all.size(); ++m) {
        INFO(name << " task " << i << " module " << m);
        CHECK(one[m].a.value.to_vector<float>() == all[m].a.value.slice(i, i + 1).to_vector<float>());
        CHECK(one[m].b.value.to_vector<float>() == all[m].b.value.slice(i, i + 1).to_vector<float>());
      }
    }
  }
}

TEST_CASE("gradients of every parameter, all variants and modes") {
  struct Mode {
    bool offset, z_score, dense;
  };
  for (const Device device : devices())
    for (auto& [name, variant] : kVariants)
      for (const Mode mode :
           {Mode{false, false, false}, Mode{true, false, false}, Mode{false, true, false}, Mode{false, false, true}}) {
        if (device == Device::CUDA && (mode.z_score || mode.dense))
          continue;  // the emulator is slow, the ops are the same
        HypernetConfig c = tiny(variant);
        c.offset = c.learnable_offset = mode.offset;
        c.z_score = mode.z_score;
        c.dense = mode.dense;
        c.delta_w_scaling = 4;
        if (mode.z_score || mode.dense) c.objective = HypernetConfig::Objective::Reconstruction;
        Hypernet net(c);
        randomise(net, 2);
        net.parameters().commit(device);
        const Tensor tasks = random_tasks(2, 9).to(device);
        const Hypernet::Training training{3, 1};

        // loss = <adapters, fixed random weights>, computed in double
        std::vector<std::vector<float>> weights;
        const auto loss = [&](const std::vector<ModuleAdapters>& out) {
          double sum = 0;
          size_t k = 0;
          for (auto& o : out)
            for (const Var* v : {&o.a, &o.b}) {
              const auto x = v->value.to_vector<float>();
              for (size_t i = 0; i < x.size(); ++i) sum += double(x[i]) * weights[k][i];
              ++k;
            }
          return sum;
        };
        const auto out = net.generate(tasks, &training);
        std::vector<std::pair<Var, Tensor>> seeds;
        for (auto& o : out)
          for (const Var* v : {&o.a, &o.b}) {
            Tensor w = Tensor::empty(v->shape());
            backend(w).random_normal(w, 0, 1, {11, weights.size()});
            weights.push_back(w.to_vector<float>());
            seeds.emplace_back(*v, w.to(device));
          }
        backward(seeds);
        const NoGrad no_grad;
        Parameters& p = net.parameters();
        p.grads();  // zeroes what got none
        // f32 forward runs are off by about 1e-7 of the terms of the loss, and the difference is divided by h.
        double terms = 0;
        for (auto& w : weights)
          for (float x : w) terms += double(x) * x;
        const double noise = 1e-4 * std::sqrt(terms);
        // Along a random direction of each parameter by itself.
        for (const std::string& parameter : p.names()) {
          Var v = p(parameter);
          if (!v.needs_grad()) continue;
          const auto grads = v.grad().to_vector<float>(), values = v.value.to_vector<float>();
          Tensor u = Tensor::empty({int64_t(values.size())});
          backend(u).random_normal(u, 0, 1, {17, values.size()});
          const auto direction = u.to_vector<float>();
          double got = 0, norm = 0;
          for (size_t i = 0; i < grads.size(); ++i) {
            got += double(grads[i]) * direction[i];
            norm += double(grads[i]) * grads[i];
          }
          const auto at = [&](float step) {
            auto moved = values;
            for (size_t i = 0; i < moved.size(); ++i) moved[i] += step * direction[i];
            v.value.copy_from(Tensor::from(std::span<const float>(moved), v.shape()).to(device));
            return loss(net.generate(tasks, &training));
          };
          const float h = 4e-3f;
          const double want = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * double(h));
          v.value.copy_from(Tensor::from(std::span<const float>(values), v.shape()).to(device));
          INFO(name << " on " << name_of(device) << ", " << parameter << ": " << got << " for " << want);
          CHECK(norm > 0);
          CHECK(std::abs(got - want) <= 2e-3 * std::sqrt(norm) + noise);
        }
      }
}

TEST_CASE("training mode drops, evaluation does not, and a key repeats") {
  const NoGrad no_grad;
  for (auto& [name, variant] : kVariants) {
    Hypernet net(tiny(variant));
    randomise(net, 1);
    const Tensor tasks = random_tasks(2, 9);
    const Hypernet::Training first{7, 0}, second{7, 1};
    const auto bits = [&](const Hypernet::Training* t) { return net.generate(tasks, t)[0].a.value.to_vector<float>(); };
    INFO(name);
    CHECK(bits(&first) == bits(&first));
    CHECK(bits(&first) != bits(&second));
    CHECK(bits(&first) != bits(nullptr));
    CHECK(bits(nullptr) == bits(nullptr));
  }
}

TEST_CASE("initial values follow the official laws") {
  // initial.json of the golden set, restated: see reference in t2l/hypernet.cpp.
  for (auto& [name, variant] : kVariants)
    for (const std::string mode : {"sft", "sft_offset", "recon"}) {
      HypernetConfig c = variant;
      c.layers = 4;
      c.task_dim = 64;
      c.modules = {{"q_proj", 256, 256}, {"up_proj", 256, 300}};  // out > in, where the official code fails
      c.head_bias = mode != "sft_offset";
      c.offset = mode == "sft_offset";
      if (mode == "recon") c.objective = HypernetConfig::Objective::Reconstruction;
      Hypernet net(c);
      net.parameters().initialise(42);
      for (const std::string& n : net.parameters().names()) {
        const auto v = net.parameters().value(n).to_vector<float>();
        const Shape& s = net.parameters().shape(n);
        double mean = 0, square = 0, most = 0;
        for (float x : v) {
          mean += x / double(v.size());
          square += double(x) * x / double(v.size());
          most = std::max(most, double(std::abs(x)));
        }
        INFO(name << " " << mode << " " << n);
        const auto uniform = [&](double bound,
                                 double share = 1) {  // the first `share` of the elements; the others zero
          CHECK(most <= bound * 1.004);               // 1.004: the rounding of A to bf16
          CHECK(square ==
                Approx(share * bound * bound / 3).epsilon(5 * 0.9 / std::sqrt(double(v.size()) * share) + 0.01));
        };
        if (n.starts_with("heads.") && n.ends_with("weight")) {
          if (mode == "recon")
            uniform(1 / std::sqrt(512.0));
          else
            CHECK(most == 0);
        } else if (n.starts_with("heads.") && mode == "recon") {
          uniform(1 / std::sqrt(512.0));
        } else if (n.starts_with("heads.")) {
          const double a = 1 / std::sqrt(256.0);
          if (name == "L") {
            uniform(a, 8.0 * 256 / double(v.size()));
            CHECK(std::all_of(v.begin() + 8 * 256, v.end(), [](float x) { return x == 0; }));
          } else {
            uniform(a / std::sqrt(name == "M" ? 2.0 : name[0] == 'S' ? 16.0 : 8.0));
          }
        } else if (n.starts_with("AB_offset")) {
          CHECK(most == 0);
        } else if (n.starts_with("out_emb.") ||
                   (s.rank() == 2 && n.find("_encoder.0.") != std::string::npos && !n.starts_with("task")) ||
                   n == "pos_emb.0.weight") {
          CHECK(mean == Approx(0).margin(5 / std::sqrt(double(v.size()))));
          CHECK(square == Approx(1).epsilon(5 * std::sqrt(2.0 / double(v.size()))));
        } else if (s.rank() == 2) {
          uniform(1 / std::sqrt(double(s[1])));
        } else if (net.parameters().contains(n.substr(0, n.rfind('.')) + ".weight") &&
                   net.parameters().shape(n.substr(0, n.rfind('.')) + ".weight").rank() == 2) {
          CHECK(most <= 1 / std::sqrt(double(net.parameters().shape(n.substr(0, n.rfind('.')) + ".weight")[1])));
          CHECK(most > 0);
        } else {  // LayerNorm
          CHECK(most == (n.ends_with("weight") ? 1 : 0));
        }
      }
    }
}

TEST_CASE("M computes its head's values for what it uses only") {
  // Equal to the full head sliced, where A and B differ in length.
  const NoGrad no_grad;
  Hypernet net(tiny(kVariants[1].second));
  randomise(net, 3);
  const Trace trace;
  const auto out = net.generate(random_tasks(1, 9));
  CHECK(out[0].a.shape() == Shape{1, 3, 3, 10});
  CHECK(out[0].b.shape() == Shape{1, 3, 5, 3});
  CHECK(trace(Device::CPU, "matmul").calls == 1 + 2 + 3 * 2 + 4);  // task, mixer, mlp1-3, two heads twice
}

TEST_CASE("our layout: saved and loaded, the same bits; damage is named") {
  const std::string folder = fs::temp_directory_path() / fmt::format("t2l_hypernet_{}", getpid());
  fs::create_directories(folder);
  for (auto& [name, variant] : kVariants) {
    HypernetConfig c = tiny(variant);
    TrainedHypernet t{
        Hypernet(c), {"base", 3, 6, true, 0.05, {"v_proj", "gate_proj"}}, {}, false, {}, "", "", "", 0, {}, {}};
    t.encoder.dim = 9;
    randomise(t.net, 4);
    save_hypernet(t, folder);
    const TrainedHypernet back = load_hypernet(folder);
    const NoGrad no_grad;
    const Tensor tasks = random_tasks(2, 9);
    const auto a = t.net.generate(tasks), b = back.net.generate(tasks);
    INFO(name);
    CHECK(back.net.config().variant() == t.net.config().variant());
    CHECK(back.net.parameters().count() == t.net.parameters().count());
    CHECK(back.adapter.scaling() == t.adapter.scaling());
    CHECK(a[1].b.value.to_vector<float>() == b[1].b.value.to_vector<float>());
    Json json = read_json(folder + "/hypernet.json");
    for (auto& [key, value] : json.items()) {  // each key missing, each key of another kind
      for (const bool missing : {true, false}) {
        Json bad = json;
        missing ? void(bad.erase(key)) : void(bad[key] = Json::array({Json::object()}));
        write_text_file(folder + "/hypernet.json", bad.dump());
        INFO(key);
        CHECK_THROWS_AS(load_hypernet(folder), Error);
      }
    }
  }
  fs::remove_all(folder);
}
