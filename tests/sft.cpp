// Supervised fine-tuning: the losses and first gradients of official runs (../shared/golden/training), and what must
// hold in any: packed equals one by one, and a step does no work that is not needed.
#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <map>
#include <random>
#include <set>

#include "t2l/apply_adapter.h"
#include "t2l/checkpoint.h"
#include "t2l/sft.h"
#include "tests/golden_files.h"
#include "tests/support.h"

namespace t2l {
namespace {

namespace fs = std::filesystem;
using namespace test;

// One recorded iteration: padding is cut off again.
SftBatch recorded_batch(const SafeTensors& file, int64_t step) {
  const auto get = [&](const char* name) { return file.get(fmt::format("step{}.{}", step, name)); };
  const Tensor ids = get("input_ids"), mask = get("attention_mask"), labels = get("labels");
  SftBatch batch;
  for (int64_t s = 0; s < ids.dim(0); ++s) {
    const auto row = [&](const Tensor& t) { return t.slice(s, s + 1).to_vector<int32_t>(); };
    const std::vector<int32_t> m = row(mask);
    const auto n = ptrdiff_t(std::count(m.begin(), m.end(), 1));
    const auto cut = [n](const std::vector<int32_t>& v) { return std::vector<int32_t>(v.begin(), v.begin() + n); };
    batch.ids.push_back(cut(row(ids)));
    batch.labels.push_back(cut(row(labels)));
  }
  return batch;
}

TEST_CASE("losses and first gradients of the official code") {
  const std::string root = shared_folder() + "/golden/training";
  if (!fs::is_directory(root)) return skip("../shared/golden/training is not here");
  for (const Device device : devices()) {
    const Decoder base = Decoder::load(root + "/world/base", {.device = device});
    for (const std::string name : {"sft_L", "sft_M", "sft_S", "sft_L_token"}) {
      CAPTURE(name, name_of(device));
      const std::string dir = root + "/" + name;
      const Json info = read_json(dir + "/case.json");
      TrainedHypernet t = load_hypernet((fs::path(dir) / info["init"].get<std::string>()).lexically_normal().string(),
                                        {.module_order = {}, .base = root + "/world/base"});
      t.net.parameters().commit(device);
      const SafeTensors batches = SafeTensors::open(dir + "/batches.safetensors");
      SftOptions o;
      o.equally_weight_sample = name != "sft_L_token";
      std::ifstream steps(dir + "/steps.jsonl");
      std::string line;
      std::getline(steps, line);
      const Json want = Json::parse(line);
      const SftBatch batch = recorded_batch(batches, 1);
      const Tensor task = batches.get("step1.task_embs").to(device);
      const std::vector<ModuleAdapters> generated = t.net.generate(task);
      const SftLoss loss = sft_loss(
          base, batch, adapters_of(generated, t.net.config(), float(t.adapter.scaling()), base.options().dtype),
          &generated, o, nullptr);
      CHECK(values(loss.sft)[0] == Approx(want["sft_loss"].get<double>()).epsilon(2e-6));
      CHECK(values(loss.l2)[0] == Approx(want["generated_w_l2_loss"].get<double>()).epsilon(1e-5));
      CHECK(loss.tokens == want["tokens"]);
      CHECK(loss.response_tokens == want["response_tokens"]);
      backward(loss.total);
      const SafeTensors grads = SafeTensors::open(dir + "/grads_step1.safetensors");
      for (const std::string& p : grads.names()) {
        CAPTURE(p);
        check_near(t.net.parameters()(p).grad(), values(grads.get(p)), 2e-5);
      }
    }
  }
}

// ---- a base model, samples and a hypernetwork of odd sizes ----------------------------------------------------------
// Its weights are larger than an untrained model's, so that adapters move its answers.
Decoder random_decoder(const DecoderOptions& options, int64_t layers) {
  const Json config{{"model_type", "llama"},
                    {"hidden_size", 26},
                    {"num_attention_heads", 3},
                    {"head_dim", 10},
                    {"num_key_value_heads", 1},
                    {"intermediate_size", 37},
                    {"vocab_size", 53},
                    {"num_hidden_layers", layers},
                    {"rms_norm_eps", 1e-6},
                    {"attention_bias", true},
                    {"mlp_bias", true},
                    {"tie_word_embeddings", false},
                    {"max_position_embeddings", 128}};
  Decoder d(DecoderConfig::parse(config, "config.json"), options);
  d.initialise(1);
  for (const Decoder::Parameter& p : d.parameters())
    if (p.shape.rank() > 1) backend(p.value->value).scale(p.value->value, p.value->value, 8, false);
  return d;
}

// Samples of the lengths, each with a response of about a third; some of its labels are left out.
SftBatch random_batch(const std::vector<int64_t>& lengths, int64_t vocab) {
  std::mt19937 random(4);
  SftBatch batch;
  for (const int64_t n : lengths) {
    std::vector<int32_t> ids(size_t(n), 0), labels(size_t(n), -100);
    for (int32_t& id : ids) id = int32_t(random() % uint32_t(vocab));
    for (size_t t = size_t(n - (n + 2) / 3); t < size_t(n); ++t)
      if (t + 1 == size_t(n) || random() % 4) labels[t] = ids[t];
    batch.ids.push_back(ids);
    batch.labels.push_back(labels);
  }
  return batch;
}

Tensor normal(const Shape& shape, float std, uint64_t stream, Device device = Device::CPU) {
  Tensor t = Tensor::empty(shape);
  backend(t).random_normal(t, 0, std, {5, stream});
  return t.to(device);
}

TEST_CASE("packed samples of mixed lengths have the loss and the gradients of one by one") {
  const SftBatch batch = random_batch({2, 71, 17, 9, 40}, 53);
  const auto n = int64_t(batch.ids.size());
  for (const Device device : devices()) {
    const Decoder base = random_decoder({.device = device}, 2);
    for (const std::string variant : {"L", "S"})
      for (const bool per_sample : {true, false}) {
        CAPTURE(name_of(device), variant, per_sample);
        HypernetConfig c;
        c.shared_head = c.autoregressive = variant == "S";
        c.layers = base.config().layers, c.rank = 3, c.latent = 12, c.head_in = 7, c.task_dim = 9;
        for (const char* m : {"q_proj", "v_proj", "down_proj"}) {
          const BaseModel::Linear l = *base.config().linear(m);
          c.modules.push_back({m, l.in, l.out});
        }
        REQUIRE(c.variant() == variant);
        Hypernet net(c);
        Parameters& p = net.parameters();
        p.initialise(2);
        p.commit(device);
        Tensor all = p.values();  // away from where training starts: there B is 0 and A gets no gradient
        backend(all).add(all, all, normal(all.shape(), 0.2f, 1, device));
        const Tensor tasks = normal({n, c.task_dim}, 1, 2, device);
        const SftOptions o{.equally_weight_sample = per_sample, .l2_generated = per_sample ? 0.01f : 0};

        // Backward from `weight` times the loss of samples begin .. end.
        const auto run = [&](int64_t begin, int64_t end, float weight) {
          const auto generated = net.generate(tasks.slice(begin, end));
          const SftBatch some{{batch.ids.begin() + begin, batch.ids.begin() + end},
                              {batch.labels.begin() + begin, batch.labels.begin() + end}};
          const SftLoss loss =
              sft_loss(base, some, adapters_of(generated, c, 0.5f, DType::F32), &generated, o, nullptr);
          backward({{loss.total, Tensor::full({1}, weight, device)}});
          return loss;
        };
        const SftLoss packed = run(0, n, 1);
        std::map<std::string, Values> want;
        p.grads();
        for (const std::string& name : p.names()) want[name] = values(p(name).grad());
        p.clear_grads();
        double sum = 0;
        for (int64_t s = 0; s < n; ++s) {
          const auto& labels = batch.labels[size_t(s)];
          const auto responses = std::count_if(labels.begin(), labels.end(), [](int32_t l) { return l != -100; });
          const float weight = per_sample ? 1 / float(n) : float(responses) / float(packed.response_tokens);
          sum += double(weight) * double(values(run(s, s + 1, weight).total.value)[0]);
        }
        CHECK(values(packed.total.value)[0] == Approx(sum).epsilon(1e-5));
        p.grads();
        for (const std::string& name : p.names()) {
          CAPTURE(name);
          check_near(p(name).grad(), want[name], 1e-5);
        }
      }
  }
}

// ---- work, by counts of operations ----------------------------------------------------------------------------------
using Places = std::vector<std::pair<int64_t, Projection>>;  // linear layers: of which block, and which

// What backward needs for adapters at some places, and nothing else: a linear layer's output is live if a gradient goes
// through it, its input if an adapter lies before it.
struct Needed {
  std::multiset<std::array<int64_t, 3>> products;  // m, n, k of dx = dy w
  int64_t norms = 1, gated = 0, attended = 0, rotated = 0, through_adapters = 0, scattered = 0;

  // answered: rows that predict a response token, to which the last block keeps behind its keys and values.
  Needed(const DecoderConfig& c, const Places& adapted, int64_t tokens, int64_t answered) {
    const auto depth = [](int64_t layer, Projection p) {
      return 4 * layer + (p <= Projection::V ? 0 : p == Projection::O ? 1 : p == Projection::Down ? 3 : 2);
    };
    int64_t lowest = 4 * c.layers;
    for (auto& [layer, p] : adapted) lowest = std::min(lowest, depth(layer, p));
    for (int64_t layer = 0; layer < c.layers; ++layer) {
      const auto input = [&](Projection p) { return depth(layer, p) > lowest; };
      const bool last = layer + 1 == c.layers;
      norms += input(Projection::Q) + input(Projection::Gate);
      if (last) scattered = 2 * input(Projection::Q);  // rows of the block's input, and of its norm
      for (size_t i = 0; i < kProjections; ++i) {
        const auto p = Projection(i);
        const bool adapter = std::count(adapted.begin(), adapted.end(), std::pair(layer, p)),
                   live = input(p) || adapter;
        const auto [in, out] = c.linear(p);
        const bool all = !last || p == Projection::K || p == Projection::V;
        if (input(p)) products.insert({all ? tokens : answered, in, out});
        through_adapters += adapter + (adapter && input(p));
        gated += live && (p == Projection::Gate || p == Projection::Up);
        attended += live && p <= Projection::V;
        rotated += live && p <= Projection::K;
      }
    }
  }
};

TEST_CASE("a step does no work below the lowest adapter, none for the base's weights, and makes no other logits") {
  const SftBatch batch = random_batch({5, 40, 17}, 53);
  const auto n = int64_t(batch.ids.size());
  std::vector<Places> cases(3);
  for (int64_t layer = 0; layer < 3; ++layer)
    for (size_t i = 0; i < kProjections; ++i) {
      const auto p = Projection(i);
      cases.push_back({{layer, p}});                                                  // one by itself,
      if (p == Projection::Q || p == Projection::V) cases[0].emplace_back(layer, p);  // the official choice,
      if (p != Projection::Gate) cases[1].emplace_back(layer, p);                     // nearly all,
      if (layer == 2) cases[2].emplace_back(layer, p);                                // and the last block
    }
  for (const Device device : devices())
    for (const bool recompute : {false, true}) {
      const Decoder base = random_decoder({.device = device, .progress = {}, .recompute = recompute}, 3);
      const DecoderConfig& c = base.config();
      for (const Places& adapted : cases) {
        CAPTURE(name_of(device), recompute, adapted.size(), adapted[0].first, int(adapted[0].second));
        AdapterBatch adapters;
        adapters.count = n;
        adapters.layers.resize(size_t(c.layers));
        for (auto& [layer, p] : adapted) {
          const auto [in, out] = c.linear(p);
          adapters.layers[size_t(layer)][size_t(p)] = {variable(normal({n, 3, in}, 0.3f, 1, device)),
                                                       variable(normal({n, out, 3}, 0.3f, 2, device))};
        }
        const RandomKey key = step_key(1, 0);
        SftLoss loss;
        int64_t rows = 0, rows_back = 0;
        {
          const Trace forward;
          loss = sft_loss(base, batch, adapters, nullptr, {}, &key);
          for (const Matmul& m : forward.products(device)) {
            CHECK_FALSE(m.transpose_a);
            (m.transpose_b ? rows : rows_back) += m.n == c.vocab || m.k == c.vocab ? m.m : 0;
          }
          CHECK(forward.products(device).size() == size_t(c.layers) * kProjections + 2);
        }
        CHECK(rows == loss.response_tokens);
        CHECK(rows_back == loss.response_tokens);
        CHECK(loss.response_tokens < loss.tokens / 2);

        const Needed needed(c, adapted, loss.tokens, loss.response_tokens);
        const Trace trace;
        backward(loss.total);
        std::multiset<std::array<int64_t, 3>> products;
        int64_t again = 0;  // of the forward pass
        for (const Matmul& m : trace.products(device)) {
          CHECK_FALSE(m.transpose_a);  // as it is in dw = dy^T x
          if (m.transpose_b)
            ++again;
          else
            products.insert({m.m, m.n, m.k});
        }
        int64_t first = c.layers;
        for (auto& [layer, p] : adapted) first = std::min(first, layer);
        const int64_t repeated = recompute ? c.layers - first : 0;  // blocks
        const auto adapters_count = int64_t(adapted.size());
        const auto count = [&](const char* op) { return trace(device, op); };
        CHECK(products == needed.products);
        CHECK(again == repeated * int64_t(kProjections));
        CHECK(count("rmsnorm_backward").calls == needed.norms);
        CHECK(count("rmsnorm_backward_params").calls == 0);
        CHECK(count("sum_rows").calls == 0);  // as for the gradients of biases
        CHECK(count("gated_backward").outputs == needed.gated);
        CHECK(count("attention_backward").outputs == needed.attended);
        CHECK(count("rope").calls == needed.rotated + 2 * repeated);
        CHECK(count("segment_matmul").calls == needed.through_adapters + (recompute ? 2 * adapters_count : 0));
        CHECK(count("segment_matmul_weight").calls == 2 * adapters_count);
        CHECK(count("scatter_rows").calls == needed.scattered);  // not of the embeddings
        for (auto& [layer, p] : adapted) CHECK(adapters.layers[size_t(layer)][size_t(p)].a.grad());
      }
    }
}

}  // namespace
}  // namespace t2l
