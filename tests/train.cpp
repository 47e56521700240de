// t2l-train: runs of the official code replayed as a user would (../shared/golden/training), and in a small world of
// its own that a run killed anywhere ends, once resumed, with the bytes of an uninterrupted one.
#include <catch2/catch.hpp>
#include <csignal>
#include <filesystem>

#include "t2l/adapter.h"
#include "t2l/learners.h"
#include "tensor/json.h"
#include "tests/golden_files.h"
#include "tests/support.h"

using namespace t2l;
using namespace test;
namespace fs = std::filesystem;

namespace {

std::vector<Json> rows_of(const std::string& file) { return json_lines(read_text_file(file), file); }
// Without what a clock says.
std::vector<Json> timeless(std::vector<Json> rows) {
  for (Json& row : rows) row.erase("seconds");
  return rows;
}

// A base model with a byte-level tokenizer of letters, four tasks of a few rows, and an adapter for each.
struct World {
  Scratch scratch;
  std::string base = scratch / "base";

  World() {
    scratch.write("base/tokenizer.json", letters_tokenizer({{0, "<pad>"}, {1, "<s>"}, {2, "</s>"}}, nullptr).dump());
    scratch.write("base/tokenizer_config.json",
                  Json{{"bos_token", "<s>"},
                       {"eos_token", "</s>"},
                       {"chat_template",
                        "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
                        "{% elif m.role == 'user' %}{{ bos_token }}{{ m.content }}{% endif %}{% endfor %}"}}
                      .dump());
    Json config = read_json("tests/golden/decoders/mistral/config.json");
    config["vocab_size"] = 60;
    scratch.write("base/config.json", config.dump());
    Decoder d(DecoderConfig::load(base), DecoderOptions{});
    d.initialise(1);
    NamedTensors tensors;
    for (const Decoder::Parameter& p : d.parameters()) {
      Tensor v = p.value->value;
      if (p.shape.rank() > 1) backend(v).scale(v, v, 12, false);  // so that adapters can move its answers
      tensors.emplace_back(p.name, v);
    }
    write_safetensors(base + "/model.safetensors", tensors);

    NamedTensors embeddings;
    for (int t = 0; t < 4; ++t) {
      const std::string name = fmt::format("task{}", t);
      scratch.write("tasks/" + name + "/metadata.yaml",
                    "descriptions:\n- Do it\n- Do that\nuser_prompt_template: '{input}'\nresponse_field: output\n"
                    "system_message: ''\nassistant_prefill: ''\nds_kwargs:\n  path: json\n  split: train\n");
      std::string rows;
      for (int i = 0; i < 6; ++i)
        rows += Json{{"input", std::string(size_t(3 + 5 * ((i + t) % 4)), char('a' + i))},
                     {"output", std::string(size_t(1 + i % 3), char('A' + t))}}
                    .dump() +
                "\n";
      scratch.write("tasks/" + name + "/train.jsonl", rows);
      Tensor e = Tensor::empty({2, 6});
      backend(e).random_normal(e, 0, 1, {7, uint64_t(t)});
      embeddings.emplace_back(name, e);

      std::vector<LoraWeights> weights;
      for (int64_t layer = 0; layer < d.config().layers; ++layer)
        for (const char* module : {"q_proj", "v_proj"}) {
          const BaseModel::Linear l = *d.config().linear(module);
          Tensor a = Tensor::empty({4, l.in}), b = Tensor::empty({l.out, 4});
          backend(a).random_normal(a, 0, 0.1f, {8, uint64_t(t * 100 + layer)});
          backend(b).random_normal(b, 0, 0.1f, {9, uint64_t(t * 100 + layer)});
          weights.push_back({module, layer, a, b});
        }
      fs::create_directories(scratch / ("oracle/" + name));
      write_adapter(scratch / ("oracle/" + name), {"base", 4, 8, true, 0, {"q_proj", "v_proj"}}, weights, {});
    }
    write_safetensors(scratch / "embeddings.safetensors", embeddings);
    scratch.write("c.yaml",
                  fmt::format("model_dir: {0}/base\nemb_model: {0}/embeddings.safetensors\noracle_dir: {0}/oracle\n"
                              "hypernet_latent_size: 16\nhead_in_size: 8\nlora_r: 4\nlora_alpha: 8\nseed: 3\nlr: 0.01\n"
                              "inp_max_len: 64\nneftune_noise_alpha: 5\nbase_dtype: f32\n",
                              scratch.path.string()));
  }

  std::vector<std::string> arguments(const std::string& verb, const std::string& out,
                                     const std::vector<std::string>& more = {}) const {
    std::vector<std::string> a{verb,    "--config", scratch / "c.yaml", "--data", scratch / "tasks",
                               "--out", out,        "--quiet"};
    if (verb == "sft" || verb == "multitask")
      a.insert(a.end(), {"--use_hierarchical_sampler=true", "--n_tasks_per_batch=3"});
    if (verb == "reconstruct") a.push_back("--n_tasks_per_batch=3");
    if (verb == "lora") a.insert(a.end(), {"--train_ds_names=task1", "--batch_size=4"});
    a.insert(a.end(), more.begin(), more.end());
    return a;
  }
  Run train(const std::string& verb, const std::string& out, const std::vector<std::string>& more = {}) const {
    return run_program(scratch, "t2l-train", arguments(verb, out, more));
  }
};

}  // namespace

TEST_CASE("each verb learns, and leaves what the other programs read") {
  const World w;
  for (const std::string verb : {"sft", "multitask", "lora", "reconstruct"}) {
    CAPTURE(verb);
    const std::string out = w.scratch / verb;
    const Run r = w.train(verb, out, {"--steps=60", "--grad_accum_steps=1", "--dropout=0", "--lora_dropout=0"});
    INFO(r.err);
    REQUIRE(r.status == 0);
    const std::vector<Json> rows = rows_of(out + "/metrics.jsonl");
    REQUIRE(rows.size() == 60);
    const auto mean = [&](size_t begin) {
      double sum = 0;
      for (size_t i = begin; i < begin + 10; ++i) sum += rows[i]["loss"].get<double>() / 10;
      return sum;
    };
    CHECK(mean(50) < 0.95 * mean(0));
    CHECK(rows[0]["lr"] == 0);
    CHECK(rows[59]["updated"] == true);
    CHECK(fs::exists(out + "/checkpoints/step_60/state.json"));
    if (verb == "sft" || verb == "reconstruct")
      CHECK(load_hypernet(out).net.config().layers == 2);
    else
      CHECK(load_adapter(out).weights.size() == 4);
  }
}

TEST_CASE("a run killed anywhere ends, once resumed, with the bytes of an uninterrupted one") {
  const World w;
  for (const std::string verb : {"sft", "reconstruct", "lora"}) {
    CAPTURE(verb);
    const int steps = verb == "reconstruct" ? 200 : 40;  // enough of them to be interrupted
    const std::vector<std::string> more{fmt::format("--steps={}", steps), "--grad_accum_steps=2", "--save_freq=3"};
    const std::string whole = w.scratch / (verb + "_whole"), parts = w.scratch / (verb + "_parts");
    REQUIRE(w.train(verb, whole, more).status == 0);
    const char* bin = std::getenv("T2L_BIN");
    int kills = 0;
    double patience = 0.02;  // seconds until it is killed, ever longer
    for (;; patience *= 1.3) {
      REQUIRE(patience < 600);
      std::vector<std::string> a = w.arguments(verb, parts, more);
      if (fs::exists(parts)) a.push_back("--resume");
      std::string command = fmt::format("{}/t2l-train", bin ? bin : "build/bin");
      for (const std::string& s : a) command += " " + quoted(s);
      const int status = std::system(
          fmt::format("timeout -s KILL {:.3f} {} --device cpu 2>{}", patience, command, quoted(w.scratch / "stderr"))
              .c_str());
      if (status == 0) break;
      INFO(read_text_file(w.scratch / "stderr"));
      REQUIRE((WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 137));
      ++kills;
    }
    CHECK(kills >= 2);
    CHECK(timeless(rows_of(whole + "/metrics.jsonl")) == timeless(rows_of(parts + "/metrics.jsonl")));
    const std::string file = verb == "lora" ? "/adapter_model.safetensors" : "/hypernet.safetensors";
    CHECK(read_text_file(whole + file) == read_text_file(parts + file));
    const std::string last = fmt::format("/checkpoints/step_{}/optimizer.safetensors", steps);
    CHECK(read_text_file(whole + last) == read_text_file(parts + last));
  }
}

TEST_CASE("what is refused before anything is trained") {
  const World w;
  const auto refused = [&](const std::string& verb, const std::vector<std::string>& more, const std::string& part,
                           int status = 1) {
    const Run r = w.train(verb, w.scratch / "out", more);
    INFO(r.err);
    CHECK(r.status == status);
    CHECK(r.err.starts_with("error: "));
    CHECK(std::count(r.err.begin(), r.err.end(), '\n') == 1);
    CHECK(r.err.find(part) != std::string::npos);
    CHECK_FALSE(fs::exists(w.scratch / "out"));
  };
  refused("sft", {"--stepz=3"}, "steps", 2);
  refused("sft", {"--gist_mask"}, "gist_mask");
  refused("sft", {"--mt_lora_path=x"}, "mt_lora_path", 2);
  refused("sft", {"--train_ds_names=nowhere"}, "nowhere");
  refused("sft", {"--model_dir=/nowhere/base"}, "/nowhere/base");
  refused("reconstruct", {"--oracle_dir=/nowhere"}, "/nowhere");
  w.scratch.write("tasks/task2/train.jsonl", "{\"input\": \"a\", \"output\": \"b\"}\n{\"input\": \"a\"}\n");
  refused("sft", {}, "train.jsonl:2");

  const World good;
  const std::string out = good.scratch / "out";
  Run r = good.train("lora", out, {"--steps=2", "--json"});
  REQUIRE(r.status == 0);
  const Json report = parse_json(r.out, "stdout");
  CHECK(report["last"]["updated"] == true);
  CHECK(report["iterations"] == 4);
  r = good.train("lora", out, {"--steps=2"});
  CHECK(r.status == 1);
  CHECK(r.err.find("not empty") != std::string::npos);
  r = good.train("lora", out, {"--steps=3", "--resume"});
  CHECK(r.status == 1);
  CHECK(r.err.find("'steps'") != std::string::npos);
  CHECK(std::count(r.err.begin(), r.err.end(), '\n') == 1);
}

TEST_CASE("the schedules") {
  const Schedule linear{.peak = 2, .warmup = 4, .total = 12};
  CHECK(linear(0) == 0);
  CHECK(linear(2) == 1);
  CHECK(linear(4) == 2);
  CHECK(linear(8) == 1);
  CHECK(linear(12) == 0);
  const Schedule cosine{.decay = Schedule::Decay::Cosine, .peak = 2, .warmup = 0, .total = 8};
  CHECK(cosine(0) == 2);
  CHECK(cosine(4) == Approx(1));
  CHECK(cosine(8) == Approx(0).margin(1e-12));
  const Schedule floored{.decay = Schedule::Decay::Cosine, .peak = 2, .floor = 0.25, .warmup = 4, .total = 12};
  CHECK(floored(2) == 1);
  CHECK(floored(8) == Approx(2 * (0.25 + 0.75 / 2)));
  CHECK(floored(12) == Approx(0.5));
  CHECK(Schedule{.peak = 2, .floor = 0.25, .total = 4}(2) == Approx(2 * (0.25 + 0.75 / 2)));
}

TEST_CASE("recomputed blocks give the same bits") {
  const World w;
  for (const std::string verb : {"sft", "multitask"}) {
    const std::string kept = w.scratch / (verb + "_kept"), again = w.scratch / (verb + "_again");
    REQUIRE(w.train(verb, kept, {"--steps=5"}).status == 0);
    REQUIRE(w.train(verb, again, {"--steps=5", "--recompute=true"}).status == 0);
    CHECK(timeless(rows_of(kept + "/metrics.jsonl")) == timeless(rows_of(again + "/metrics.jsonl")));
  }
}
