// t2l-train: runs of the official code replayed as a user would (../shared/golden/training), and in a small world of
// its own that a run killed anywhere ends, once resumed, with the bytes of an uninterrupted one.
#include <catch2/catch.hpp>
#include <csignal>
#include <filesystem>

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
