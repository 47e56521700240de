// t2l-train: runs of the official code replayed as a user would (../shared/golden/training), and in a small world of
// its own that a run killed anywhere ends, once resumed, with the bytes of an uninterrupted one.
#include <catch2/catch.hpp>
#include <csignal>
#include <filesystem>

#include "t2l/apply_adapter.h"
#include "t2l/checkpoint.h"
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

// A base model with a byte-level tokenizer of letters, four tasks of a few rows, and an adapter for each. `model` is
// what its config has otherwise; the longest input takes `longest` tokens.
struct World {
  Scratch scratch;
  std::string base = scratch / "base";

  explicit World(const Json& model = Json::object(), int longest = 18) {
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
    config.merge_patch(model);
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
        rows += Json{{"input", std::string(size_t(3 + (longest - 3) * ((i + t) % 4) / 3), char('a' + i))},
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
    std::vector<std::string> more{fmt::format("--steps={}", steps), "--grad_accum_steps=2", "--save_freq=3"};
    if (verb != "reconstruct")
      more.insert(more.end(), {"--val_freq=4", "--patience=0", "--eval_ds_info={task1: {}, task3: {}}"});
    if (verb == "sft") more.push_back("--train_ds_names=task0,task1,task2");
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
  refused("sft", {"--mt_lora_path=/nowhere/lora"}, "/nowhere/lora");
  refused("sft", {"--learnable_AB_offset"}, "mt_lora_path");
  refused("sft", {"--per_task"}, "per_task");
  refused("hyperdecoders", {"--use_inp_as_desc=false", "--use_per_task_emb"}, "use_inp_as_desc");
  refused("pretrain", {}, "", 2);
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

namespace {

// The rows of a split, in order.
std::vector<Json> of_split(const std::vector<Json>& rows, const std::string& split) {
  std::vector<Json> out;
  for (const Json& row : rows)
    if (row.value("split", "") == split) out.push_back(row);
  return out;
}

// Mean loss of the last `count` rows of a task under an adapter, or none, computed one by one.
double loss_of(const World& w, const std::string& task, size_t count, const std::string& adapter_folder) {
  TrainConfig c = TrainConfig::parse(Verb::Multitask, "", "test");
  c.data = w.scratch / "tasks", c.train_ds_names = {task};
  const SampleEncoder encoder = SampleEncoder::load(w.base, w.base, true, 64);
  const TaskSet set = TaskSet::load(c, &encoder);
  const Decoder base = Decoder::load(w.base);
  std::optional<Adapter> adapter;
  if (!adapter_folder.empty()) adapter = load_adapter(adapter_folder);
  AdapterSum sum;
  if (adapter) sum.push_back({&*adapter});
  double loss = 0;
  const std::vector<Example>& rows = set.tasks[0].train;
  for (size_t i = rows.size() - count; i < rows.size(); ++i) {
    const AdapterBatch batch = stack_adapters({sum}, base.config(), base.options());
    const Tensor logits = base.logits(base.hidden({.ids = {rows[i].ids}}, &batch).value);
    const std::vector<float> z = logits.to_vector<float>();
    const auto vocab = size_t(logits.dim(1));
    double sample = 0;
    const auto n = rows[i].ids.size(), prompt = size_t(rows[i].prompt);
    for (size_t t = prompt; t < n; ++t) {
      double sum_exp = 0;
      for (size_t v = 0; v < vocab; ++v) sum_exp += std::exp(double(z[(t - 1) * vocab + v]));
      sample += std::log(sum_exp) - double(z[(t - 1) * vocab + size_t(rows[i].ids[t])]);
    }
    loss += sample / double(n - prompt) / double(count);
  }
  return loss;
}

}  // namespace

TEST_CASE("validation: splits, their losses, early stopping, and the best parameters at the end") {
  const World w;
  const std::string out = w.scratch / "out";
  // The base model reads the descriptions: one that is not in training needs an encoder.
  const std::vector<std::string> more{
      "--emb_model=",       "--train_ds_names=task0,task1,task2",
      "--val_freq=2",       "--eval_ds_info={task1: {descriptions: [Try it, Try that]}, task3: {}}",
      "--steps=40",         "--lr=3",
      "--patience=2",       "--cache_dir=" + w.scratch / "cache",
      "--save_freq=1",      "--keep_last=1",
      "--also_val_on_train"};
  const Run r = w.train("sft", out, [&] {
    auto a = more;
    a.push_back("--json");
    return a;
  }());
  INFO(r.err);
  REQUIRE(r.status == 0);
  const Json report = parse_json(r.out, "stdout");
  CHECK(report["stopped_early"] == true);
  const std::vector<Json> rows = rows_of(out + "/metrics.jsonl");
  const std::vector<Json> unseen = of_split(rows, "unseen_tasks");
  REQUIRE(unseen.size() >= 3);
  for (const char* split : {"seen", "unseen_descriptions", "train"})
    CHECK(of_split(rows, split).size() == unseen.size());
  // A hypernetwork begins with adapters that change nothing.
  CHECK(unseen[0]["step"] == 0);
  CHECK(unseen[0]["samples"] == 6);
  CHECK(unseen[0]["loss"].get<double>() == Approx(loss_of(w, "task3", 6, "")).epsilon(1e-5));
  CHECK(of_split(rows, "seen")[0]["loss"].get<double>() == Approx(loss_of(w, "task1", 1, "")).epsilon(1e-5));
  // Two validations in a row were worse than the best, which is what is left.
  size_t best = 0;
  for (size_t i = 1; i < unseen.size(); ++i)
    if (unseen[i]["loss"] < unseen[best]["loss"]) best = i;
  CHECK(best + 3 == unseen.size());
  CHECK(report["best"]["updates"] == unseen[best]["step"]);
  CHECK(report["updates"] == unseen.back()["step"]);
  const SafeTensors kept =
      SafeTensors::open(fmt::format("{}/checkpoints/step_{}/parameters.safetensors", out, 2 * best));
  const SafeTensors ended = SafeTensors::open(out + "/hypernet.safetensors");
  for (const std::string& name : kept.names())
    CHECK(kept.get(name).to_vector<float>() == ended.get(name).to_vector<float>());
  // Nothing is left to do for a run that stopped.
  auto again = more;
  again.push_back("--resume");
  REQUIRE(w.train("sft", out, again).status == 0);
  CHECK(timeless(rows_of(out + "/metrics.jsonl")) == timeless(rows));
}

TEST_CASE("reconstruction is judged on unseen descriptions and unseen tasks") {
  const World w;
  const std::string out = w.scratch / "out";
  const Run r = w.train("reconstruct", out,
                        {"--emb_model=", "--train_ds_names=task0,task1,task2", "--steps=4",
                         "--eval_ds_info={task1: {descriptions: [Try it]}, task3: {}}", "--val_freq=2",
                         "--cache_dir=" + w.scratch / "cache"});
  INFO(r.err);
  REQUIRE(r.status == 0);
  const std::vector<Json> rows = rows_of(out + "/metrics.jsonl");
  CHECK(of_split(rows, "unseen_tasks").size() == 3);
  CHECK(of_split(rows, "unseen_tasks")[0]["samples"] == 2);
  CHECK(of_split(rows, "unseen_descriptions").size() == 3);
}

TEST_CASE("an adapter per task, side by side, is what each task's own run gives") {
  const World w;
  std::string order, alone;
  for (int step = 0; step < 8; ++step) {
    std::string line;
    for (int t : {2, 0, 3, 1})
      for (int i = 0; i < 2; ++i) {
        const std::string sample = fmt::format("[\"task{}\", {}, null]", t, (step * 2 + i + t) % 6);
        line += (line.empty() ? "" : ", ") + sample;
        if (t == 3) alone += (i ? ", " : "[") + sample;
      }
    order += "[" + line + "]\n";
    alone += "]\n";
  }
  w.scratch.write("order.jsonl", order);
  w.scratch.write("alone.jsonl", alone);
  for (const bool equally : {true, false}) {
    CAPTURE(equally);
    const std::vector<std::string> common{"--grad_accum_steps=1", "--lora_dropout=0", "--neftune_noise_alpha=0",
                                          "--max_grad_norm=0.01", fmt::format("--equally_weight_sample={}", equally)};
    const auto train = [&](const std::string& out, std::vector<std::string> a) {
      a.insert(a.end(), common.begin(), common.end());
      std::vector<std::string> arguments{
          "lora", "--config", w.scratch / "c.yaml", "--data", w.scratch / "tasks", "--out", out, "--quiet"};
      arguments.insert(arguments.end(), a.begin(), a.end());
      const Run r = run_program(w.scratch, "t2l-train", arguments);
      INFO(r.err);
      REQUIRE(r.status == 0);
    };
    const std::string many = w.scratch / fmt::format("many{}", equally),
                      one = w.scratch / fmt::format("one{}", equally);
    train(many, {"--per_task", "--data_order=" + w.scratch / "order.jsonl"});
    train(one, {"--train_ds_names=task3", "--data_order=" + w.scratch / "alone.jsonl"});
    const Adapter a = load_adapter(many + "/task3"), b = load_adapter(one);
    REQUIRE(a.weights.size() == b.weights.size());
    for (size_t i = 0; i < a.weights.size(); ++i) {
      check_near(a.weights[i].a, b.weights[i].a.to_vector<float>(), 2e-5);
      check_near(a.weights[i].b, b.weights[i].b.to_vector<float>(), 2e-5);
    }
    CHECK(load_adapter(many + "/task0").weights[1].b.to_vector<float>() != a.weights[1].b.to_vector<float>());
  }
}

TEST_CASE("hyperdecoders read each sample's own prompt") {
  const World w;
  const std::string out = w.scratch / "out";
  const Run r = w.train("hyperdecoders", out,
                        {"--emb_model=", "--use_hierarchical_sampler=true", "--n_tasks_per_batch=3", "--steps=60",
                         "--dropout=0", "--lora_dropout=0", "--val_freq=30", "--eval_ds_info={task1: {}, task3: {}}",
                         "--train_ds_names=task0,task1,task2", "--cache_dir=" + w.scratch / "cache"});
  INFO(r.err);
  REQUIRE(r.status == 0);
  const std::vector<Json> rows = rows_of(out + "/metrics.jsonl"), seen = of_split(rows, "train");
  CHECK(of_split(rows, "unseen_tasks").size() == 3);
  CHECK(of_split(rows, "seen").size() == 3);
  double first = 0, last = 0;
  std::vector<double> losses;
  for (const Json& row : rows)
    if (!row.contains("split")) losses.push_back(row["loss"].get<double>());
  for (size_t i = 0; i < 10; ++i) first += losses[i], last += losses[losses.size() - 1 - i];
  CHECK(last < 0.95 * first);
  CHECK(load_hypernet(out).encoder.dim == DecoderConfig::load(w.base).hidden);
}

TEST_CASE("an adapter may be added to all that is generated, and be learnt with it") {
  const World w;
  for (const bool learnt : {false, true}) {
    CAPTURE(learnt);
    const std::string out = w.scratch / fmt::format("out{}", learnt), offset = w.scratch / "oracle/task2";
    const Run r = w.train("sft", out,
                          {"--mt_lora_path=" + offset, fmt::format("--learnable_AB_offset={}", learnt), "--steps=4",
                           "--train_ds_names=task0,task1,task2", "--eval_ds_info={task3: {}}", "--keep_best=false"});
    INFO(r.err);
    REQUIRE(r.status == 0);
    const std::vector<Json> rows = rows_of(out + "/metrics.jsonl");
    CHECK(of_split(rows, "unseen_tasks")[0]["loss"].get<double>() ==
          Approx(loss_of(w, "task3", 6, offset)).epsilon(1e-5));
    const TrainedHypernet t = load_hypernet(out);
    CHECK(t.net.config().offset);
    CHECK_FALSE(t.net.config().head_bias);
    const std::vector<float> a = t.net.parameters().value("AB_offset.A.q_proj").slice(0, 1).to_vector<float>();
    CHECK((a == load_adapter(offset).weights[0].a.to_vector<float>()) == !learnt);

    TEST_CASE("ten steps on the emulated device have the losses of the CPU") {
      const World w({{"hidden_size", 64},
                     {"num_attention_heads", 4},
                     {"num_key_value_heads", 2},
                     {"head_dim", 16},
                     {"intermediate_size", 171},
                     {"vocab_size", 512}},
                    42);
      struct Case {
        std::string verb, setting;
        DType dtype = DType::F32;
      };
      for (const Case& of : {Case{"sft", "--variant=S"}, Case{"sft", "--variant=S", DType::BF16},
                             Case{"reconstruct", "--factorized=true"}, Case{"reconstruct", "--factorized=false"}}) {
        CAPTURE(of.verb, of.setting, name_of(of.dtype));
        Values cpu;
        for (const Device device : devices()) {
          const std::string out = w.scratch / "device_run";
          fs::remove_all(out);
          std::vector<std::string> arguments = w.arguments(of.verb, out, {"--steps=10", of.setting});
          std::replace(arguments.begin(), arguments.end(), std::string("--n_tasks_per_batch=3"),
                       std::string("--n_tasks_per_batch=4"));
          std::vector<Setting> settings = parse_settings({arguments.begin() + 1, arguments.end()});
          std::erase_if(settings, [](const Setting& s) { return s.key == "config"; });
          const TrainConfig c = TrainConfig::load(parse_verb(of.verb), w.scratch / "c.yaml", settings);
          const std::unique_ptr<Learner> learner = make_learner(c, of.dtype, device);
          train(learner->parameters(), plan_of(c, *learner),
                {.forward = [&](int64_t i) { return learner->forward(i); }}, out, {}, false);
          const std::vector<Json> rows = rows_of(out + "/metrics.jsonl");
          REQUIRE(rows.size() == 10);
          Values losses;
          for (const Json& row : rows) {
            losses.push_back(row["loss"].get<float>());
            if (of.verb == "sft") CHECK((row["tokens"] > 50 && row["tokens"] <= 4 * 48));
          }
          CHECK(losses.back() < losses.front());
          if (cpu.empty()) cpu = losses;
          for (size_t i = 0; i < losses.size(); ++i)
            CHECK(losses[i] == Approx(cpu[i]).epsilon(of.dtype == DType::F32 ? 1e-5 : 1e-2));
        }
      }
    }
