// --dry-run: the FLOPs it tells are those of the products that a step is seen to make, the memory is near that of a
// run, and nothing is written.
#include <catch2/catch.hpp>

#include "t2l/apply_adapter.h"
#include "t2l/sft.h"
#include "tests/train_world.h"

using namespace t2l;
using namespace test;
namespace fs = std::filesystem;

namespace {

double products_of(const Trace& trace, Device device) {
  double flops = 0;
  for (const Matmul& m : trace.products(device))
    flops += 2.0 * double(m.m) * double(m.n) * double(m.k) * double(m.groups);
  return flops;
}

StepCost::Flops part_of(const StepCost& cost, const std::string& name) {
  for (const StepCost::Flops& f : cost.flops)
    if (f.part == name) return f;
  FAIL(name);
  return {};
}

DecoderConfig small_base() {
  DecoderConfig c = DecoderConfig::load("tests/golden/decoders/mistral");
  c.vocab = 53;
  return c;
}

}  // namespace

TEST_CASE("FLOPs are those of the products that a step makes") {
  for (const bool recompute : {false, true})
    for (const std::string variant : {"L", "M", "S", "Spos", "AR"})
      for (const auto& modules : {std::vector<std::string>{"q_proj", "v_proj"}, {"o_proj", "down_proj"}}) {
        CAPTURE(variant, recompute, modules[0]);
        const DecoderConfig config = small_base();
        Decoder base(config, {DType::F32, Device::CPU, {}, recompute});
        base.initialise(1);
        HypernetConfig h;
        h.shared_head = variant[0] == 'M' || variant[0] == 'S';
        h.autoregressive = variant != "L" && variant != "M";
        h.learnable_positions = variant == "Spos";
        h.layers = config.layers, h.rank = 3, h.latent = 12, h.head_in = 10, h.task_dim = 7;
        BaseStep step{config, DType::F32, recompute, {9, 30, 17}, {}, {}, h.rank, 0.1f};
        for (const std::string& m : modules) {
          h.modules.push_back({m, config.linear(m)->in, config.linear(m)->out});
          step.adapted.push_back(parse_projection(m));
        }
        Hypernet net(h);
        net.parameters().initialise(2);
        net.parameters().commit(Device::CPU);
        SftBatch batch;
        for (const int64_t n : step.lengths) {
          std::vector<int32_t> ids, labels;
          for (int64_t i = 0; i < n; ++i) {
            ids.push_back(int32_t(i * 7 % 53));
            labels.push_back(i < n / 2 ? -100 : ids.back());
          }
          step.responses.push_back(n - n / 2);
          batch.ids.push_back(ids), batch.labels.push_back(labels);
        }
        StepCost cost;
        add_hypernet(cost, net, 3, DType::F32);
        add_base_step(cost, step);

        Tensor task = Tensor::empty({3, 7});
        backend(task).random_normal(task, 0, 1, {3, 0});
        const Hypernet::Training training{1, 1};
        const RandomKey key = step_key(1, 1);
        SftLoss loss;
        double forward = 0, back = 0;
        {
          const Trace trace;
          const std::vector<ModuleAdapters> generated = net.generate(task, &training);
          loss = sft_loss(base, batch, adapters_of(generated, h, 1, DType::F32), &generated, {}, &key);
          forward = products_of(trace, Device::CPU);
        }
        {
          const Trace trace;
          backward(loss.total);
          back = products_of(trace, Device::CPU);
        }
        const auto linear = part_of(cost, "linear layers"), head = part_of(cost, "head"),
                   hyper = part_of(cost, "hypernetwork");
        CHECK(forward == Approx(linear.forward + head.forward + hyper.forward).epsilon(1e-12));
        CHECK(back == Approx(linear.backward + head.backward + hyper.backward).epsilon(1e-12));
        CHECK(cost.tokens == loss.tokens);
        CHECK(cost.response_tokens == loss.response_tokens);

        // What is no matrix product in the trace: adapters and attention, counted out.
        double lora = 0, pairs = 0;
        for (const AdaptedModule& m : h.modules)
          for (int64_t layer = 0; layer < config.layers; ++layer)
            lora += 2.0 * double(layer + 1 < config.layers || m.name == "v_proj" ? 56 : loss.response_tokens) * 3 *
                    double(m.in + m.out);
        CHECK(part_of(cost, "adapters").forward == lora);
        for (size_t layer = 0; layer < config.windows.size(); ++layer)
          for (const int64_t n : step.lengths)
            for (int64_t q = layer + 1 < config.windows.size() ? 0 : n / 2 - 1;
                 q < n - (layer + 1 == config.windows.size()); ++q)
              for (int64_t k = 0; k <= q; ++k) pairs += config.windows[layer] == 0 || q - k < config.windows[layer];
        CHECK(part_of(cost, "attention").forward == 4 * pairs * double(config.heads * config.head_dim));
      }
}

// A sanitizer's own memory would be measured with it.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_CASE("estimated memory is within a quarter of a run's, and grows as that does") {
  const Scratch scratch;
  struct Peak {
    double estimated, measured;  // MiB
  };
  const auto run = [&](int layers, const std::vector<std::string>& more) {
    scratch.write("config.json", Json{{"model_type", "llama"},
                                      {"hidden_size", 256},
                                      {"num_hidden_layers", layers},
                                      {"num_attention_heads", 8},
                                      {"num_key_value_heads", 4},
                                      {"intermediate_size", 768},
                                      {"vocab_size", 8192},
                                      {"rms_norm_eps", 1e-5},
                                      {"rope_theta", 1e4},
                                      {"hidden_act", "silu"},
                                      {"max_position_embeddings", 2048},
                                      {"tie_word_embeddings", true}}
                                     .dump());
    std::vector<std::string> a{"train", "--model", scratch.path.string(), "--random", "--steps", "1", "--json"};
    a.insert(a.end(), more.begin(), more.end());
    const Run r = run_program(scratch, "t2l-bench", a);
    INFO(r.err);
    REQUIRE(r.status == 0);
    const Json report = parse_json(r.out, "stdout");
    return Peak{report["estimated_mib"].get<double>(), report["peak_rss_mib"].get<double>()};
  };
  const std::string lengths = "--lengths=256,256,200,300";
  const Peak few = run(6, {lengths}), many = run(12, {lengths}), half = run(12, {lengths, "--dtype=bf16"}),
             again = run(12, {lengths, "--recompute"});
  // The program itself, and the product that the benchmark times between steps.
  constexpr double kElse = 50;
  for (const Peak& p : {few, many, half, again}) {
    CAPTURE(p.estimated, p.measured);
    CHECK(p.estimated + kElse <= 1.25 * p.measured);
    CHECK(p.estimated + kElse >= p.measured / 1.25);
  }
  CHECK(many.measured - few.measured == Approx(many.estimated - few.estimated).epsilon(0.15));
  CHECK(many.measured - again.measured == Approx(many.estimated - again.estimated).epsilon(0.15));
}
#endif

TEST_CASE("a dry run tells what the run then does, and writes nothing") {
  const World w;
  const auto files = [&] {
    std::vector<std::string> all;
    for (auto& entry : fs::recursive_directory_iterator(w.scratch.path)) all.push_back(entry.path().string());
    std::sort(all.begin(), all.end());
    return all;
  };
  w.train("sft", w.scratch / "none", {"--dry-run"});  // makes the files of its output
  const auto before = files();
  for (const std::string verb : {"sft", "multitask", "lora", "reconstruct"}) {
    CAPTURE(verb);
    const std::string out = w.scratch / verb;
    const std::vector<std::string> settings{"--steps=5", "--grad_accum_steps=2", "--cache_dir=" + w.scratch / "cache"};
    auto with = [&](std::vector<std::string> more) {
      more.insert(more.end(), settings.begin(), settings.end());
      return more;
    };
    const Run text = w.train(verb, out, with({"--dry-run"}));
    CHECK(text.status == 0);
    CHECK(text.out.find("nothing is written") != std::string::npos);
    const Run dry = w.train(verb, out, with({"--dry-run", "--json"}));
    INFO(dry.err);
    REQUIRE(dry.status == 0);
    CHECK(files() == before);

    const Json told = parse_json(dry.out, "stdout");
    REQUIRE(w.train(verb, out, with({"--json"})).status == 0);
    const Json done = parse_json(read_text_file(w.scratch / "stdout"), "stdout");
    CHECK(told["parameters"]["total"] == done["parameters"]);
    CHECK(told["micro_batches"] == done["iterations"]);
    CHECK(told["updates"] == 5);
    CHECK(told["data"]["tasks"] == (verb == "lora" ? 1 : 4));
    CHECK(told["data"]["samples"] == (verb == "reconstruct" ? 0 : verb == "lora" ? 6 : 24));
    int64_t sum = 0;
    for (const auto& [part, n] : told["parameters"].items())
      if (part != "total") sum += n.get<int64_t>();
    CHECK(told["parameters"]["total"] == sum);
    double flops = 0, bytes = 0;
    for (const auto& [part, f] : told["flops_per_micro_batch"].items())
      if (part != "total") flops += f["forward"].get<double>() + f["backward"].get<double>();
    for (const auto& [part, n] : told["memory_bytes"].items())
      if (part != "total") bytes += n.get<double>();
    CHECK(told["flops_per_micro_batch"]["total"] == Approx(flops));
    CHECK(told["memory_bytes"]["total"] == Approx(bytes));
    int64_t tokens = 0, responses = 0;
    const std::vector<Json> rows = rows_of(out + "/metrics.jsonl");
    for (const Json& row : rows) {
      tokens += row["tokens"].get<int64_t>();
      responses += row.value("response_tokens", int64_t(0));
    }
    CHECK(told["micro_batch"]["tokens"] == tokens / int64_t(rows.size()));
    CHECK(told["micro_batch"]["response_tokens"] == responses / int64_t(rows.size()));
    fs::remove_all(out);
    fs::remove_all(w.scratch / "cache");
  }
}
