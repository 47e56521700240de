// t2l-train: runs of the official code replayed as a user would (../shared/golden/training), and in a small world of
// its own that a run killed anywhere ends, once resumed, with the bytes of an uninterrupted one.
#include <catch2/catch.hpp>
#include <csignal>
#include <filesystem>

#include "t2l/apply_adapter.h"
#include "t2l/checkpoint.h"
#include "tests/train_world.h"

using namespace t2l;
using namespace test;
namespace fs = std::filesystem;

namespace {

// Without what a clock says.
std::vector<Json> timeless(std::vector<Json> rows) {
  for (Json& row : rows) row.erase("seconds");
  return rows;
}

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
  }
}

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
      train(learner->parameters(), plan_of(c, *learner), {.forward = [&](int64_t i) { return learner->forward(i); }},
            out, {}, false);
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
