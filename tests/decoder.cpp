// Decoders: tiny random models of every family against their forward pass in double precision (tests/golden/decoders,
// made by tools/make_golden_decoders.py), what transformers and PEFT give in ../shared/golden/models, and what must
// hold between runs: packed or alone, cached or not, merged or applied, one adapter or many, CPU or CUDA.
#include <catch2/catch.hpp>
#include <filesystem>
#include <random>

#include "nn/spans.h"
#include "t2l/apply_adapter.h"
#include "t2l/task_embedding.h"
#include "tensor/allocator.h"
#include "tests/golden_files.h"
#include "tests/support.h"
#include "transformer/generation.h"

namespace t2l {
namespace {

namespace fs = std::filesystem;
using namespace test;

const std::string kGolden = "tests/golden/decoders";
constexpr double kGradient = 1e-4;  // f32 rounding through sharp attention; measured at most 5.2e-5

// A golden set in one layout or the other: samples with logits, adapters with logits and gradients.
struct Sample {
  std::vector<int32_t> ids, labels, greedy;
  Values logits;
};
struct Model {
  std::string name, dir;
  SafeTensors golden;
  std::vector<Sample> samples;
};

Model model_of(const std::string& dir) {
  Model m{fs::path(dir).filename().string(), dir, SafeTensors::open(dir + "/golden.safetensors"), {}};
  const bool ours = m.golden.contains("ids_0");
  for (int i = 0; m.golden.contains(fmt::format("logits_{}", i)); ++i) {
    Sample s;
    const auto ids = [&](const std::string& name) {
      const std::string full = fmt::format("{}_{}", name, i);
      return m.golden.contains(full) ? m.golden.get(full).to_vector<int32_t>() : std::vector<int32_t>{};
    };
    s.ids = ids(ours ? "ids" : "input_ids");
    s.labels = ids("labels");
    s.greedy = ids("greedy");
    s.logits = values(m.golden.get(fmt::format("logits_{}", i)));
    m.samples.push_back(std::move(s));
  }
  REQUIRE(!m.samples.empty());
  return m;
}
std::vector<Model> committed() {
  std::vector<Model> all;
  for (const std::string& dir : folders_with(kGolden, "golden.safetensors")) all.push_back(model_of(dir));
  REQUIRE(all.size() >= 6);
  return all;
}
std::vector<Model> shared_models() {
  std::vector<Model> all;
  for (const std::string& dir : folders_with(shared_folder() + "/golden/models", "golden.safetensors"))
    all.push_back(model_of(dir));
  if (all.empty()) skip("../shared/golden/models is not here");
  return all;
}

TokenIds ids_of(const Model& m) {
  TokenIds ids;
  for (const Sample& s : m.samples) ids.push_back(s.ids);
  return ids;
}
Values all_logits(const Model& m) {
  Values x;
  for (const Sample& s : m.samples) x.insert(x.end(), s.logits.begin(), s.logits.end());
  return x;
}
Tensor logits(const Decoder& d, const TokenBatch& batch, const AdapterBatch* adapters = nullptr,
              KvCache* cache = nullptr) {
  const NoGrad no_grad;
  return d.logits(d.hidden(batch, adapters, cache).value);
}

// Loss and gradients of one sample. Labels are those of the next token; -100 is left out.
struct Targets {
  std::vector<int32_t> rows, targets;
  std::vector<float> weights;
};
Targets targets_of(const std::vector<std::vector<int32_t>>& labels, bool per_sample) {
  Targets t;
  int32_t begin = 0;
  for (const auto& l : labels) {
    const auto kept = float(std::count_if(l.begin() + 1, l.end(), [](int32_t x) { return x != -100; }));
    for (size_t i = 0; i + 1 < l.size(); ++i)
      if (l[i + 1] != -100) {
        t.rows.push_back(begin + int32_t(i));
        t.targets.push_back(l[i + 1]);
        t.weights.push_back(per_sample ? 1 / (kept * float(labels.size())) : 1);
      }
    begin += int32_t(l.size());
  }
  if (!per_sample)
    for (float& w : t.weights) w = 1 / float(t.weights.size());
  return t;
}
Var loss_of(const Decoder& d, const Var& hidden, const Targets& t, float smoothing) {
  const Device on = d.options().device;
  return d.loss(gather_rows(hidden, Tensor::from(t.rows, on)), Tensor::from(t.targets, on), Tensor::from(t.weights, on),
                smoothing);
}

// The adapter's own A and B as variables, the scale beside them, for gradients. One for all samples, or one for each.
struct Trainable {
  AdapterBatch batch;
  std::vector<std::pair<std::string, Var>> named;  // by the name in the file
};
Trainable trainable(const Adapter& adapter, const Decoder& d, int64_t copies = 1) {
  Trainable t;
  t.batch.count = copies;
  t.batch.scale = float(adapter.spec.scaling());
  t.batch.layers.resize(size_t(d.config().layers));
  for (const LoraWeights& w : adapter.weights) {
    const auto repeat = [&](const Tensor& x) {
      const Tensor all = Tensor::empty({copies, x.dim(0), x.dim(1)});
      for (int64_t i = 0; i < copies; ++i) all.slice(i, i + 1).copy_from(x.reshape({1, x.dim(0), x.dim(1)}));
      return variable(all.to(d.options().device));
    };
    const Var a = repeat(w.a), b = repeat(w.b);
    t.batch.layers[size_t(w.layer)][size_t(parse_projection(w.module))] = {a, b};
    const std::string path = "base_model.model." + module_path(w.module, w.layer);
    t.named.emplace_back(path + ".lora_A.weight", a);
    t.named.emplace_back(path + ".lora_B.weight", b);
  }
  return t;
}

// ---- parity ---------------------------------------------------------------------------------------------------------
TEST_CASE("logits, hidden states and greedy tokens equal the forward pass in double precision") {
  for (const Model& m : committed())
    for (const Device device : devices()) {
      CAPTURE(m.name, name_of(device));
      const Decoder d = Decoder::load(m.dir, {.device = device});
      check_near(logits(d, {.ids = ids_of(m)}), all_logits(m), 3e-6);
      const NoGrad no_grad;
      Values before;
      for (size_t i = 0; i < m.samples.size(); ++i) {
        const Values h = values(m.golden.get(fmt::format("hidden_{}", i)));
        before.insert(before.end(), h.begin(), h.end());
      }
      check_near(d.hidden({.ids = ids_of(m)}, nullptr, nullptr, d.config().layers - 1).value, before, 2e-6);

      GenerationOptions o;
      o.max_new_tokens = int64_t(m.samples[0].greedy.size());
      const TokenIds got = generate(d, ids_of(m), o);
      for (size_t i = 0; i < got.size(); ++i) CHECK(got[i] == m.samples[i].greedy);
    }
}

TEST_CASE("adapters and their gradients equal the reference, sample by sample and packed") {
  for (const Model& m : committed())
    for (const Device device : devices()) {
      CAPTURE(m.name, name_of(device));
      const Decoder d = Decoder::load(m.dir, {.device = device});
      const Adapter adapter = load_adapter(m.dir + "/adapter");
      const AdapterBatch shared = stack_adapters({{{&adapter}}}, d.config(), d.options());
      Values want;
      for (size_t i = 0; i < m.samples.size(); ++i) {
        const Values x = values(m.golden.get(fmt::format("adapted_{}", i)));
        want.insert(want.end(), x.begin(), x.end());
      }
      check_near(logits(d, {.ids = ids_of(m)}, &shared), want, 5e-6);

      // Each sample has a copy of its own: packed, their gradients stay apart.
      const int64_t n = int64_t(m.samples.size());
      const Trainable t = trainable(adapter, d, n);
      std::vector<std::vector<int32_t>> labels;
      for (const Sample& s : m.samples) labels.push_back(s.labels);
      Targets targets = targets_of(labels, true);
      for (float& w : targets.weights) w *= float(n);  // each sample's own loss
      const Var loss = loss_of(d, d.hidden({.ids = ids_of(m)}, &t.batch), targets, 0.1f);
      float sum = 0;
      for (int64_t i = 0; i < n; ++i)
        if (const std::string name = fmt::format("loss_{}", i); m.golden.contains(name))
          sum += m.golden.get(name).to_vector<float>()[0];
      CHECK(values(loss.value)[0] == Approx(sum).epsilon(1e-5));
      backward(loss);
      for (auto& [name, v] : t.named)
        for (int64_t i = 0; i < n; ++i) {
          const std::string key = fmt::format("grad_{}/{}", i, name);
          const Tensor got = v.grad().slice(i, i + 1);
          CAPTURE(key);
          if (m.golden.contains(key))
            check_near(got, values(m.golden.get(key)), kGradient);
          else
            for (const float x : values(got)) REQUIRE(x == 0);  // a sample of one token has no loss
        }
    }
}

TEST_CASE("gradients of the base model equal the reference") {
  for (const Model& m : committed())
    for (const Device device : devices()) {
      CAPTURE(m.name, name_of(device));
      Decoder d = Decoder::load(m.dir, {.device = device});
      for (const Decoder::Parameter& p : d.parameters()) p.value->slot = std::make_shared<Slot>();
      std::vector<std::vector<int32_t>> labels;
      TokenIds ids;
      for (const Sample& s : m.samples)
        if (s.ids.size() > 1) labels.push_back(s.labels), ids.push_back(s.ids);
      const Var loss = loss_of(d, d.hidden({.ids = ids}), targets_of(labels, true), 0.1f);
      CHECK(values(loss.value)[0] == Approx(m.golden.get("base_loss").to_vector<float>()[0]).epsilon(1e-5));
      backward(loss);
      for (const Decoder::Parameter& p : d.parameters()) {
        CAPTURE(p.name);
        check_near(p.value->grad(), values(m.golden.get("base_grad/" + p.name)), kGradient);
      }
    }
}

TEST_CASE("what transformers and PEFT give") {
  for (const Model& m : shared_models()) {
    CAPTURE(m.name);
    const Decoder d = Decoder::load(m.dir);
    const Values want = all_logits(m);
    check_near(logits(d, {.ids = ids_of(m)}), want, 1e-5);
    if (m.golden.contains("logits_bf16_0")) {
      Values rough;
      for (size_t i = 0; i < m.samples.size(); ++i) {
        const Values x = values(m.golden.get(fmt::format("logits_bf16_{}", i)));
        rough.insert(rough.end(), x.begin(), x.end());
      }
      for (const Device device : devices()) {
        const Decoder bf16 = Decoder::load(m.dir, {.dtype = DType::BF16, .device = device});
        check_near(logits(bf16, {.ids = ids_of(m)}), want, 1.5 * relative(rough, want));
      }
    }
    if (!m.samples[0].greedy.empty()) {
      GenerationOptions o;
      o.max_new_tokens = int64_t(m.samples[0].greedy.size());
      const TokenIds got = generate(d, ids_of(m), o);
      for (size_t i = 0; i < got.size(); ++i) CHECK(got[i] == m.samples[i].greedy);
    }
    for (const std::string& folder : folders_with(m.dir + "/adapters", "golden.safetensors")) {
      CAPTURE(folder);
      const Adapter adapter = load_adapter(folder);
      const SafeTensors golden = SafeTensors::open(folder + "/golden.safetensors");
      const AdapterBatch stacked = stack_adapters({{{&adapter}}}, d.config(), d.options());
      const bool grads = fs::exists(folder + "/grads.safetensors");
      Values adapted;
      for (size_t i = 0; i < m.samples.size(); ++i) {
        const Values x = values(golden.get(fmt::format("logits_{}", i)));
        adapted.insert(adapted.end(), x.begin(), x.end());
        if (!grads) continue;
        const Trainable t = trainable(adapter, d);
        const SafeTensors want_grads = SafeTensors::open(folder + "/grads.safetensors");
        const Var loss =
            loss_of(d, d.hidden({.ids = {m.samples[i].ids}}, &t.batch), targets_of({m.samples[i].labels}, true), 0.1f);
        CHECK(values(loss.value)[0] ==
              Approx(golden.get(fmt::format("loss_{}", i)).to_vector<float>()[0]).epsilon(1e-5));
        backward(loss);
        for (auto& [name, v] : t.named)
          check_near(v.grad(), values(want_grads.get(fmt::format("grad_{}.{}", i, name))), 5e-5);
      }
      check_near(logits(d, {.ids = ids_of(m)}, &stacked), adapted, 1e-5);
      if (!grads) continue;
      std::vector<std::vector<int32_t>> labels;
      for (const Sample& s : m.samples) labels.push_back(s.labels);
      for (const bool per_sample : {true, false}) {
        const NoGrad no_grad;
        const Var loss = loss_of(d, d.hidden({.ids = ids_of(m)}, &stacked), targets_of(labels, per_sample), 0.1f);
        const char* name = per_sample ? "loss_batch" : "loss_batch_token_weighted";
        CHECK(values(loss.value)[0] == Approx(golden.get(name).to_vector<float>()[0]).epsilon(1e-5));
      }
    }
  }
}

TEST_CASE("base gradients as transformers gives them") {
  for (const Model& m : shared_models())
    for (const bool pretrain : {false, true}) {
      const std::string file = m.dir + (pretrain ? "/base_grads_pretrain" : "/base_grads_sft") + ".safetensors";
      if (!fs::exists(file)) continue;
      CAPTURE(file);
      const SafeTensors golden = SafeTensors::open(file);
      Decoder d = Decoder::load(m.dir);
      for (const Decoder::Parameter& p : d.parameters()) p.value->slot = std::make_shared<Slot>();
      std::vector<std::vector<int32_t>> labels;
      for (const Sample& s : m.samples) labels.push_back(pretrain ? s.ids : s.labels);
      const Var loss = loss_of(d, d.hidden({.ids = ids_of(m)}), targets_of(labels, !pretrain), pretrain ? 0 : 0.1f);
      CHECK(values(loss.value)[0] == Approx(golden.get("loss").to_vector<float>()[0]).epsilon(1e-5));
      backward(loss);
      for (const Decoder::Parameter& p : d.parameters()) {
        CAPTURE(p.name);
        check_near(p.value->grad(), values(golden.get("grad." + p.name)), 5e-5);
      }
    }
}

// ---- equalities -----------------------------------------------------------------------------------------------------
std::vector<int32_t> random_ids(std::mt19937& random, int64_t n, int64_t vocab) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int32_t& id : ids) id = int32_t(random() % uint32_t(vocab));
  return ids;
}

TEST_CASE("packed equals one by one, with an adapter for each sample") {
  std::mt19937 random(1);
  for (const Model& m : committed())
    for (const DType dtype : {DType::F32, DType::BF16}) {
      CAPTURE(m.name, name_of(dtype));
      const Decoder d = Decoder::load(m.dir, {.dtype = dtype});
      const Adapter adapter = load_adapter(m.dir + "/adapter");
      std::vector<AdapterSum> sums;
      TokenIds ids;
      for (int i = 0; i < 8; ++i) {
        sums.push_back(i == 3 ? AdapterSum{} : AdapterSum{{&adapter, float(i) / 4 - 1}});
        if (i == 5) sums.back().push_back({&adapter, 0.25f});  // two that add up: its rank is twice the others'
        ids.push_back(random_ids(random, 1 + 7 * i, d.config().vocab));
      }
      const AdapterBatch all = stack_adapters(sums, d.config(), d.options());
      const Tensor packed = logits(d, {.ids = ids}, &all);
      int64_t row = 0;
      for (size_t i = 0; i < ids.size(); ++i) {
        const AdapterBatch own = stack_adapters({sums[i]}, d.config(), d.options());
        const auto n = int64_t(ids[i].size());
        const Tensor alone = logits(d, {.ids = {ids[i]}}, sums[i].empty() ? nullptr : &own);
        check_near(packed.slice(row, row + n), values(alone), dtype == DType::F32 ? 1e-6 : 2e-2);
        row += n;
      }
      // Samples that share an adapter stand side by side.
      const AdapterBatch two = stack_adapters({sums[1], sums[5]}, d.config(), d.options());
      const Tensor shared = logits(d, {.ids = {ids[2], ids[1], ids[5]}, .adapters = {0, 0, 1}}, &two);
      const auto n2 = int64_t(ids[2].size()), n1 = int64_t(ids[1].size());
      check_near(shared.slice(n2, n2 + n1), values(packed.slice(1, 1 + n1)), dtype == DType::F32 ? 1e-6 : 2e-2);
    }
}

TEST_CASE("without adapters a token has the same bits alone, packed, prefilled and behind a cache") {
  std::mt19937 random(5);
  for (const Model& m : committed())
    for (const DType dtype : {DType::F32, DType::BF16}) {
      CAPTURE(m.name, name_of(dtype));
      const Decoder d = Decoder::load(m.dir, {.dtype = dtype});
      TokenIds ids;
      for (const int64_t n : {70, 1, 33, 9}) ids.push_back(random_ids(random, n, d.config().vocab));
      const Values packed = values(logits(d, {.ids = ids}));
      Values alone, stepwise;
      KvCache cache(d.config(), {70, 1, 33, 9}, dtype, Device::CPU);
      for (size_t i = 0; i < ids.size(); ++i) {
        const Values x = values(logits(d, {.ids = {ids[i]}}));
        alone.insert(alone.end(), x.begin(), x.end());
        for (size_t at = 0; at < ids[i].size();) {  // prefilled in pieces of 20, 1, 20, 1 ..
          const size_t n = std::min<size_t>(at % 3 ? 1 : 20, ids[i].size() - at);
          const auto begin = ids[i].begin() + ptrdiff_t(at);
          const Values y =
              values(logits(d, {.ids = {{begin, begin + ptrdiff_t(n)}}, .sequences = {int32_t(i)}}, nullptr, &cache));
          stepwise.insert(stepwise.end(), y.begin(), y.end());
          at += n;
        }
      }
      CHECK(alone == packed);
      CHECK(stepwise == packed);
    }
}

TEST_CASE("a cache gives what the full forward pass gives") {
  std::mt19937 random(2);
  for (const Model& m : committed())
    for (const Device device : devices()) {
      CAPTURE(m.name, name_of(device));
      const Decoder d = Decoder::load(m.dir, {.device = device});
      const Adapter adapter = load_adapter(m.dir + "/adapter");
      const AdapterBatch adapters = stack_adapters({{{&adapter}}, {}}, d.config(), d.options());
      const TokenIds ids = {random_ids(random, 31, d.config().vocab), random_ids(random, 40, d.config().vocab)};
      const Tensor full = logits(d, {.ids = ids}, &adapters);
      // Steps of uneven sizes; the second sequence starts later, and they come in either order of the cache.
      KvCache cache(d.config(), {40, 35}, DType::F32, device);
      size_t at[2] = {0, 0};
      const auto step = [&](size_t n0, size_t n1) {
        TokenBatch batch;
        std::vector<std::pair<size_t, size_t>> parts;
        for (const auto& [s, n] : {std::pair(size_t(0), n0), std::pair(size_t(1), n1)}) {
          if (!n) continue;
          batch.ids.push_back({ids[s].begin() + ptrdiff_t(at[s]), ids[s].begin() + ptrdiff_t(at[s] + n)});
          batch.adapters.push_back(int32_t(s));
          batch.sequences.push_back(int32_t(1 - s));
          parts.emplace_back(s, n);
        }
        const Tensor got = logits(d, batch, &adapters, &cache);
        int64_t row = 0;
        for (const auto& [s, n] : parts) {
          const auto begin = int64_t(at[s]) + (s ? int64_t(ids[0].size()) : 0);
          check_near(got.slice(row, row + int64_t(n)), values(full.slice(begin, begin + int64_t(n))), 3e-6);
          row += int64_t(n);
          at[s] += n;
        }
      };
      step(5, 0);
      step(1, 17);
      step(13, 1);
      for (int i = 0; i < 6; ++i) step(1, 1);
      step(0, 8);
      CHECK(cache.length(1) == int64_t(at[0]));
      CHECK(cache.length(0) == int64_t(at[1]));
    }
}

TEST_CASE("some rows alone have the bits, and the gradients, that they have among all") {
  std::mt19937 random(21);
  for (const Model& m : committed())
    for (const Device device : devices())
      for (const DType dtype : {DType::F32, DType::BF16}) {
        CAPTURE(m.name, name_of(device), name_of(dtype));
        Decoder d = Decoder::load(m.dir, {.dtype = dtype, .device = device});
        for (const Decoder::Parameter& p : d.parameters()) p.value->slot = std::make_shared<Slot>();
        const Adapter adapter = load_adapter(m.dir + "/adapter");
        TokenBatch batch;
        std::vector<int32_t> rows, targets;
        int32_t begin = 0;
        for (const int64_t n : {40, 1, 17, 33}) {
          batch.ids.push_back(random_ids(random, n, d.config().vocab));
          for (int32_t i = 0; i < int32_t(n); ++i)
            if (random() % 3 == 0 && n != 17) rows.push_back(begin + i);  // one sample has none
          begin += int32_t(n);
        }
        for (size_t i = 0; i < rows.size(); ++i) targets.push_back(int32_t(random() % uint32_t(d.config().vocab)));
        const std::vector<float> weights(rows.size(), 1 / float(rows.size()));
        const auto run = [&](bool some, std::vector<Values>& grads) {
          Trainable t = trainable(adapter, d, 4);
          for (auto& layer : t.batch.layers)
            for (AdapterBatch::Pair& pair : layer)
              if (pair.a) pair = {cast(pair.a, dtype), cast(pair.b, dtype)};
          batch.rows = some ? rows : std::vector<int32_t>{};
          const Tensor which = Tensor::from(rows, device);
          const Var all = d.hidden(batch, &t.batch), x = some ? all : gather_rows(all, which);
          backward(d.loss(x, Tensor::from(targets, device), Tensor::from(weights, device), 0.1f));
          for (const Decoder::Parameter& p : d.parameters()) {
            grads.push_back(values(p.value->grad()));
            p.value->slot->clear();
          }
          for (auto& [name, v] : t.named) grads.push_back(values(v.grad()));
          return values(x.value);
        };
        std::vector<Values> want, got;
        const Values x = run(false, want), y = run(true, got);
        CHECK(relative(y, x) < (dtype == DType::F32 ? 3e-6 : 2e-2));  // adapters' products depend on the rows beside
        REQUIRE(want.size() == got.size());
        for (size_t i = 0; i < want.size(); ++i) {
          CAPTURE(i);
          CHECK(relative(got[i], want[i]) < (dtype == DType::F32 ? 1e-5 : 3e-2));
        }
        // Without adapters the same bits, and of an earlier layer too
        const NoGrad no_grad;
        for (const int64_t layer : {-1, 1}) {
          batch.rows = rows;
          const Values some = values(d.hidden(batch, nullptr, nullptr, layer).value);
          batch.rows.clear();
          const Var all = d.hidden(batch, nullptr, nullptr, layer);
          const Values same = values(gather_rows(all, Tensor::from(rows, device)).value);
          CHECK(relative(some, same) < (device == Device::CPU ? 0 : dtype == DType::F32 ? 3e-6 : 2e-2) + 1e-30);
        }
      }
}

// ---- the gist rule ------------------------------------------------------------------------------------------------
constexpr int32_t kGist = 7;
Decoder with_gist(const Model& m, const DecoderOptions& options) {
  DecoderConfig c = DecoderConfig::load(m.dir);
  c.gist_token = kGist;
  return {c, SafeTensors::open(m.dir), options};
}
// Random tokens, gist tokens at some positions only.
std::vector<int32_t> gist_ids(std::mt19937& random, int64_t n, int64_t vocab, const std::vector<int64_t>& gists) {
  std::vector<int32_t> ids = random_ids(random, n, vocab);
  for (int32_t& id : ids) id = id == kGist ? kGist + 1 : id;
  for (const int64_t at : gists) ids[size_t(at)] = kGist;
  return ids;
}

TEST_CASE("spans of the gist rule") {
  std::mt19937 random(11);
  for (int round = 0; round < 200; ++round) {
    std::vector<int32_t> offsets{0}, k_begin, past, gist;
    int32_t k = 0;
    for (int s = 0; s < 5; ++s) {
      const auto queries = int32_t(random() % 12);
      past.push_back(int32_t(random() % 20));
      gist.push_back(random() % 3 ? int32_t(random() % 30) : 0);
      k_begin.push_back(k);
      offsets.push_back(offsets.back() + queries);
      k += past.back() + queries + 3;
    }
    const auto window = int32_t(random() % 2 * (1 + random() % 9));
    const AttentionSpans spans = cached_spans(offsets, k_begin, past, 1, window, Device::CPU, gist);
    const auto first = spans.first.to_vector<int32_t>(), last = spans.last.to_vector<int32_t>();
    for (size_t s = 0; s < past.size(); ++s)
      for (int32_t row = offsets[s]; row < offsets[s + 1]; ++row) {
        const int32_t i = past[s] + row - offsets[s];
        for (int32_t j = 0; j < past[s] + offsets[s + 1] - offsets[s]; ++j) {
          const bool seen = j <= i && (window == 0 || i - j < window) && !(i > gist[s] && j < gist[s]);
          const int32_t key = k_begin[s] + j;
          REQUIRE(seen == (first[size_t(row)] <= key && key <= last[size_t(row)]));
        }
      }
  }
}

TEST_CASE("what lies behind a gist token sees nothing before it") {
  std::mt19937 random(12);
  for (const Model& m : committed())
    for (const Device device : devices()) {
      CAPTURE(m.name, name_of(device));
      const Decoder plain = Decoder::load(m.dir, {.device = device}), gist = with_gist(m, {.device = device});
      const DecoderConfig& c = plain.config();
      const std::pair<int64_t, std::vector<int64_t>> samples[] = {
          {21, {}}, {17, {0, 9}}, {19, {1, 6}}, {40, {2}}, {37, {11, 15, 30}}, {9, {8}}, {33, {12}}};
      for (const auto& [n, gists] : samples) {
        const std::vector<int32_t> ids = gist_ids(random, n, c.vocab, gists);
        const Tensor got = logits(gist, {.ids = {ids}}), without = logits(plain, {.ids = {ids}});
        const int64_t at = gists.empty() || gists[0] <= 1 ? n - 1 : gists[0];  // the last that sees all before it
        CHECK(values(got.slice(0, at + 1)) == values(without.slice(0, at + 1)));
        if (at + 1 == n) continue;
        CHECK(values(got.slice(at + 1, n)) != values(without.slice(at + 1, n)));

        // The same without a rule: a cache that holds the gist token's keys and values alone, as if it were the first.
        const std::vector<int32_t> head(ids.begin(), ids.begin() + at + 1), tail(ids.begin() + at + 1, ids.end());
        KvCache all(c, {n}, DType::F32, device), short_cache(c, {n}, DType::F32, device);
        logits(plain, {.ids = {head}}, nullptr, &all);
        const std::vector<float> f = c.rope.frequencies(c.head_dim);
        for (int64_t layer = 0; layer < c.layers; ++layer) {
          Values k = values(all.keys(layer).slice(at, at + 1));
          for (int64_t h = 0; h < c.kv_heads; ++h)
            for (size_t j = 0; j < f.size(); ++j) {
              float &a = k[size_t(h * c.head_dim) + j], &b = k[size_t(h * c.head_dim) + j + f.size()];
              const double angle = -double(float(at) * f[j]), x = a, y = b;
              a = float(x * std::cos(angle) - y * std::sin(angle));
              b = float(y * std::cos(angle) + x * std::sin(angle));
            }
          short_cache.keys(layer).slice(0, 1).copy_from(
              Tensor::from<float>(k, {1, c.kv_heads, c.head_dim}, Device::CPU).to(device));
          short_cache.values(layer).slice(0, 1).copy_from(all.values(layer).slice(at, at + 1));
        }
        short_cache.extend(0, 1);
        check_near(got.slice(at + 1, n), values(logits(plain, {.ids = {tail}}, nullptr, &short_cache)), 1e-5);
      }
    }
}

TEST_CASE("the gist rule has the same bits alone, packed, prefilled in pieces and behind a cache") {
  std::mt19937 random(13);
  for (const Model& m : committed())
    for (const Device device : devices())
      for (const DType dtype : {DType::F32, DType::BF16}) {
        CAPTURE(m.name, name_of(device), name_of(dtype));
        const Decoder d = with_gist(m, {.dtype = dtype, .device = device});
        const TokenIds ids = {gist_ids(random, 40, d.config().vocab, {19, 25}),
                              gist_ids(random, 33, d.config().vocab, {20}), gist_ids(random, 9, d.config().vocab, {}),
                              gist_ids(random, 30, d.config().vocab, {1, 7})};
        const Values packed = values(logits(d, {.ids = ids}));
        Values alone, stepwise;
        KvCache cache(d.config(), {30, 9, 33, 40}, dtype, device);
        for (size_t i = 0; i < ids.size(); ++i) {
          const Values x = values(logits(d, {.ids = {ids[i]}}));
          alone.insert(alone.end(), x.begin(), x.end());
          for (size_t at = 0; at < ids[i].size();) {  // pieces of 20, 1, 1, 20 ..: gists end, begin and are pieces
            const size_t n = std::min<size_t>(at % 3 ? 1 : 20, ids[i].size() - at);
            const auto begin = ids[i].begin() + ptrdiff_t(at);
            const Values y = values(
                logits(d, {.ids = {{begin, begin + ptrdiff_t(n)}}, .sequences = {int32_t(3 - i)}}, nullptr, &cache));
            stepwise.insert(stepwise.end(), y.begin(), y.end());
            at += n;
          }
        }
        if (device == Device::CPU) {
          CHECK(alone == packed);
          CHECK(stepwise == packed);
        } else {
          CHECK(relative(alone, packed) < (dtype == DType::F32 ? 3e-6 : 2e-2));
          CHECK(relative(stepwise, packed) < (dtype == DType::F32 ? 3e-6 : 2e-2));
        }
      }
}

TEST_CASE("merged equals applied, and unmerging restores every bit") {
  for (const Model& m : committed())
    for (const Device device : devices()) {
      CAPTURE(m.name, name_of(device));
      Decoder d = Decoder::load(m.dir, {.device = device});
      const Adapter adapter = load_adapter(m.dir + "/adapter");
      const AdapterSum sum = {{&adapter, 0.5f}, {&adapter, -1.25f}};
      const Values before = values(logits(d, {.ids = ids_of(m)}));
      const AdapterBatch applied = stack_adapters({sum}, d.config(), d.options());
      const Values want = values(logits(d, {.ids = ids_of(m)}, &applied));
      {
        const MergedAdapters merged(d, sum);
        check_near(logits(d, {.ids = ids_of(m)}), want, 1e-5);
      }
      CHECK(values(logits(d, {.ids = ids_of(m)})) == before);
    }
}

TEST_CASE("generation: eight sequences with eight adapters give what eight runs give") {
  std::mt19937 random(3);
  for (const Model& m : committed()) {
    CAPTURE(m.name);
    const Decoder d = Decoder::load(m.dir);
    const Adapter adapter = load_adapter(m.dir + "/adapter");
    std::vector<AdapterSum> sums;
    TokenIds prompts;
    std::vector<int32_t> adapter_of;
    for (int i = 0; i < 8; ++i) {
      sums.push_back({{&adapter, float(i) / 4}});
      prompts.push_back(random_ids(random, 2 + (5 * i) % 17, d.config().vocab));
      adapter_of.push_back((i * 3) % 8);  // in no order
    }
    const AdapterBatch all = stack_adapters(sums, d.config(), d.options());
    for (const float temperature : {0.f, 1.5f}) {
      GenerationOptions o;
      o.max_new_tokens = 20;
      o.temperature = temperature;
      o.top_p = 0.95f;
      o.seed = 7;
      o.eos = {5, 6};
      const TokenIds together = generate(d, prompts, o, &all, adapter_of);
      CHECK(generate(d, prompts, o, &all, adapter_of) == together);
      GenerationOptions waves = o;
      waves.max_sequences = 3;
      CHECK(generate(d, prompts, waves, &all, adapter_of) == together);
      for (size_t i = 0; i < prompts.size(); ++i) {
        const auto& ids = together[i];
        const auto end = std::find_if(ids.begin(), ids.end(), [](int32_t id) { return id == 5 || id == 6; });
        CHECK((end == ids.end() ? ids.size() == 20 : end + 1 == ids.end()));
        if (temperature > 0) continue;
        const AdapterBatch own = stack_adapters({sums[size_t(adapter_of[i])]}, d.config(), d.options());
        CHECK(generate(d, {prompts[i]}, o, &own)[0] == ids);
      }
      if (temperature > 0) {  // other seeds, other tokens
        o.seed = 8;
        CHECK(generate(d, prompts, o, &all, adapter_of) != together);
      }
    }
  }
}

TEST_CASE("a prompt longer than a prefill chunk") {
  const Model m = model_of(kGolden + "/mistral");
  const Decoder d = Decoder::load(m.dir);
  std::mt19937 random(4);
  const std::vector<int32_t> prompt = random_ids(random, 5000, d.config().vocab);
  GenerationOptions o;
  o.max_new_tokens = 3;
  const TokenIds got = generate(d, {m.samples[1].ids, prompt, m.samples[2].ids}, o);
  std::vector<int32_t> all = prompt;
  for (int i = 0; i < 3; ++i) {
    const NoGrad no_grad;
    const Tensor x = d.hidden({.ids = {all}}).value;
    const Values row = values(d.logits(x.slice(x.dim(0) - 1, x.dim(0))));
    all.push_back(int32_t(std::max_element(row.begin(), row.end()) - row.begin()));
  }
  CHECK(got[1] == std::vector<int32_t>(all.end() - 3, all.end()));
  CHECK(std::equal(got[2].begin(), got[2].end(), m.samples[2].greedy.begin()));
}

TEST_CASE("dropout of the adapters' input is drawn by its key") {
  const Model m = model_of(kGolden + "/llama3");
  const Decoder d = Decoder::load(m.dir);
  const Adapter adapter = load_adapter(m.dir + "/adapter");
  AdapterBatch batch = stack_adapters({{{&adapter}}}, d.config(), d.options());
  const Values plain = values(logits(d, {.ids = ids_of(m)}, &batch));
  batch.dropout = 0.5f;
  batch.key = {11, 0};
  const Values dropped = values(logits(d, {.ids = ids_of(m)}, &batch));
  CHECK(dropped != plain);
  CHECK(values(logits(d, {.ids = ids_of(m)}, &batch)) == dropped);
  batch.key = {11, 1000};
  CHECK(values(logits(d, {.ids = ids_of(m)}, &batch)) != dropped);
}

TEST_CASE("weights written anew give the same bits") {
  const Model m = model_of(kGolden + "/gemma2");
  const Scratch scratch;
  Decoder d = Decoder::load(m.dir);
  NamedTensors tensors;
  for (const Decoder::Parameter& p : d.parameters()) tensors.emplace_back(p.name, p.value->value);
  write_safetensors(scratch / "model.safetensors", tensors);
  fs::copy_file(m.dir + "/config.json", scratch / "config.json");
  const Decoder again = Decoder::load(scratch.path.string());
  CHECK(values(logits(again, {.ids = ids_of(m)})) == values(logits(d, {.ids = ids_of(m)})));
  CHECK(d.config().parameters() == std::accumulate(tensors.begin(), tensors.end(), int64_t(0),
                                                   [](int64_t n, auto& t) { return n + t.second.size(); }));
}

TEST_CASE("nothing is saved for frozen weights below the lowest adapter") {
  const Model m = model_of(kGolden + "/qwen2");
  const Decoder d = Decoder::load(m.dir);
  Adapter adapter = load_adapter(m.dir + "/adapter");
  std::erase_if(adapter.weights, [](const LoraWeights& w) { return w.layer == 0 || w.module != "v_proj"; });
  const Trainable t = trainable(adapter, d);
  const size_t before = Tape::size();
  const Var x = d.hidden({.ids = ids_of(m)}, &t.batch);
  // v's adapter, reshape, attention, reshape, o, add; norm, gate, up, gated, down, add; the final norm
  CHECK(Tape::size() - before <= 14);
  Tape::clear();
}

// ---- what is refused ------------------------------------------------------------------------------------------------
TEST_CASE("configs in either spelling, and those that are refused") {
  const std::string dir = kGolden + "/llama3";
  const Json good = read_json(dir + "/config.json");
  const auto with = [&](const Json& patch) {
    Json c = good;
    c.merge_patch(patch);
    return DecoderConfig::parse(c, "config.json");
  };
  const auto newer = with({{"rope_scaling", nullptr},
                           {"rope_theta", nullptr},
                           {"rope_parameters",
                            [&] {
                              Json r = good["rope_scaling"];
                              r["rope_theta"] = good["rope_theta"];
                              return r;
                            }()},
                           {"torch_dtype", nullptr},
                           {"dtype", "bfloat16"}});
  CHECK(newer.rope.frequencies(128) == with(Json::object()).rope.frequencies(128));
  CHECK(newer.dtype == DType::BF16);
  CHECK(with({{"model_type", "gemma2"}, {"tie_word_embeddings", nullptr}}).tied);
  CHECK_FALSE(with({{"tie_word_embeddings", nullptr}}).tied);
  CHECK(with({{"gist_token_id", 3}}).gist_token == 3);
  CHECK(with({{"gist_token_id", nullptr}}).gist_token == -1);
  CHECK(with({{"layer_types", {"full_attention", "sliding_attention"}}, {"sliding_window", 9}}).windows ==
        std::vector<int32_t>{0, 9});
  CHECK(with({{"model_type", "qwen2"}, {"use_sliding_window", true}, {"sliding_window", 9}, {"max_window_layers", 1}})
            .windows == std::vector<int32_t>{0, 9});

  // Llama-3.1's own frequencies
  RopeConfig llama3{RopeConfig::Kind::Llama3, 5e5, 8, 1, 4, 8192};
  const std::vector<float> f = llama3.frequencies(128);
  CHECK(f[28] == Approx(0.0032114460).epsilon(1e-6));
  CHECK(f[29] == Approx(0.0021665708).epsilon(1e-6));
  CHECK(f[35] == Approx(9.556212e-5).epsilon(1e-6));
  CHECK(f[63] == Approx(3.0689260e-7).epsilon(1e-6));

  const std::pair<Json, std::string> bad[] = {
      {{{"model_type", "mamba"}}, "model_type 'mamba'"},
      {{{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4}}}}, "rope type 'yarn'"},
      {{{"rope_scaling", {{"rope_type", "longrope"}}}}, "rope type 'longrope'"},
      {{{"rope_scaling", {{"rope_type", "linear"}, {"factor", 0}}}}, "factor"},
      {{{"rope_scaling", {{"low_freq_factor", nullptr}}}}, "low_freq_factor"},
      {{{"partial_rotary_factor", 0.5}}, "partial_rotary_factor"},
      {{{"hidden_act", "relu"}}, "hidden_act 'relu'"},
      {{{"head_dim", 7}}, "heads of 7"},
      {{{"head_dim", 258}}, "heads of 258"},
      {{{"vocab_size", 0}}, "vocab_size"},
      {{{"num_hidden_layers", -1}}, "num_hidden_layers"},
      {{{"num_hidden_layers", 1e30}}, "num_hidden_layers"},
      {{{"rms_norm_eps", 0}}, "rms_norm_eps"},
      {{{"num_key_value_heads", 3}}, "num_key_value_heads"},
      {{{"quantization_config", {{"bits", 4}}}}, "quantized"},
      {{{"layer_types", {"full_attention"}}}, "layer_types"},
      {{{"layer_types", {"full_attention", "chunked_attention"}}}, "chunked_attention"},
      {{{"layer_types", {"full_attention", "sliding_attention"}}}, "sliding_window"},
      {{{"rope_theta", "much"}}, "rope_theta"},
      {{{"gist_token_id", -1}}, "gist_token_id"},
      {{{"gist_token_id", good["vocab_size"]}}, "gist_token_id"},
      {{{"gist_token_id", "<sep>"}}, "gist_token_id"},
      {{{"initializer_range", 0}}, "initializer_range"},
  };
  for (const auto& [patch, part] : bad) {
    const Json& p = patch;
    check_refused([&] { with(p); }, {"config.json", part});
  }
  // Sizes that the weights do not have
  const SafeTensors weights = SafeTensors::open(dir);
  for (const char* key : {"vocab_size", "intermediate_size", "num_hidden_layers"}) {
    Json c = good;
    c[key] = c[key].get<int64_t>() * 2;
    check_refused([&] { Decoder(DecoderConfig::parse(c, "config.json"), weights, {}); }, {"of the same model?"});
  }
  const Decoder d = Decoder::load(dir);
  check_refused([&] { logits(d, {.ids = {{1, 61}}}); }, {"token id 61"});
  check_refused([&] { logits(d, {.ids = {{1}, {}}}); }, {"text 1 has no tokens"});
}

TEST_CASE("adapters that are refused") {
  const Scratch scratch;
  const std::string good = kGolden + "/qwen3/adapter", dir = scratch / "adapter";
  const Json config = read_json(good + "/adapter_config.json");
  const auto write = [&](const Json& patch) {
    fs::remove_all(dir);
    fs::create_directory(dir);
    fs::copy_file(good + "/adapter_model.safetensors", dir + "/adapter_model.safetensors");
    Json c = config;
    c.merge_patch(patch);
    scratch.write("adapter/adapter_config.json", c.dump());
  };
  write(Json::object());
  CHECK(load_adapter(dir).weights.size() == 14);
  const std::pair<Json, std::string> bad[] = {
      {{{"peft_type", "IA3"}}, "peft_type 'IA3'"},
      {{{"use_dora", true}}, "use_dora"},
      {{{"bias", "all"}}, "bias 'all'"},
      {{{"r", 4}}, "of the rank 4"},
      {{{"r", 0}}, "'r'"},
      {{{"modules_to_save", {"lm_head"}}}, "modules_to_save"},
      {{{"rank_pattern", {{"q_proj", 2}}}}, "rank_pattern"},
      {{{"lora_alpha", "x"}}, "lora_alpha"},
  };
  for (const auto& [patch, part] : bad) {
    write(patch);
    check_refused([&] { load_adapter(dir); }, {"adapter", part});
  }
  write(Json::object());
  const auto replace_tensors = [&](auto&& change) {
    const SafeTensors file = SafeTensors::open(good + "/adapter_model.safetensors");
    NamedTensors tensors;
    for (const std::string& name : file.names()) tensors.emplace_back(name, file.get(name));
    change(tensors);
    fs::remove(dir + "/adapter_model.safetensors");
    write_safetensors(dir + "/adapter_model.safetensors", tensors);
  };
  replace_tensors([](NamedTensors& t) { t.pop_back(); });
  check_refused([&] { load_adapter(dir); }, {"only one of lora_A and lora_B"});
  replace_tensors([](NamedTensors& t) { t[0].first = "base_model.model.lm_head.lora_A.weight"; });
  check_refused([&] { load_adapter(dir); }, {"lm_head"});
  replace_tensors([](NamedTensors& t) { t.clear(); });
  check_refused([&] { load_adapter(dir); }, {"no adapter weights"});

  const Adapter adapter = load_adapter(good);
  for (const auto& [model, part] : {std::pair("llama3", "q_proj is"), std::pair("mistral", "is")}) {
    const Decoder d = Decoder::load(kGolden + "/" + model);
    check_refused([&] { stack_adapters({{{&adapter}}}, d.config(), d.options()); }, {part, "trained for"});
  }
}

TEST_CASE("generation settings of a model's folder") {
  const Scratch scratch;
  CHECK(GenerationConfig::load(scratch.path.string()).eos.empty());
  scratch.write("config.json", R"({"eos_token_id": 7})");
  CHECK(GenerationConfig::load(scratch.path.string()).eos == std::vector<int32_t>{7});
  scratch.write(
      "generation_config.json",
      R"({"eos_token_id": [1, 2], "do_sample": true, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1})");
  const GenerationConfig g = GenerationConfig::load(scratch.path.string());
  CHECK(g.eos == std::vector<int32_t>{1, 2});
  CHECK(g.temperature == 0.6f);
  CHECK(g.top_p == 0.9f);
  CHECK(g.top_k == 50);
  REQUIRE(g.warnings.size() == 1);
  CHECK(g.warnings[0].find("repetition_penalty") != std::string::npos);
  scratch.write("generation_config.json", R"({"temperature": 0.6})");
  CHECK(GenerationConfig::load(scratch.path.string()).temperature == 0);
  for (const char* bad :
       {R"({"eos_token_id": "x"})", R"({"eos_token_id": [-1]})", R"({"do_sample": true, "top_p": 2})"}) {
    scratch.write("generation_config.json", bad);
    check_refused([&] { GenerationConfig::load(scratch.path.string()); }, {"generation_config.json"});
  }
}

}  // namespace
}  // namespace t2l
