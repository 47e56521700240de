// Bad configs and bad data: t2l-train says in one line where it is wrong and what to do, before it makes anything.
#include <catch2/catch.hpp>

#include "tests/train_world.h"

using namespace t2l;
using namespace test;
namespace fs = std::filesystem;

namespace {

struct Wrong {
  std::string verb;
  std::vector<std::string> settings;
  std::string place, remedy;  // both must be said
  int status = 1;
};

void check_refused(const World& w, const Wrong& c, const std::string& config = "") {
  CAPTURE(c.verb, c.settings, config);
  const std::string out = w.scratch / "out";
  std::vector<std::string> a = w.arguments(c.verb, out, c.settings);
  if (!config.empty()) a[2] = config;
  const Run r = run_program(w.scratch, "t2l-train", a);
  INFO(r.err);
  CHECK(r.status == c.status);
  CHECK(r.err.starts_with("error: "));
  CHECK(std::count(r.err.begin(), r.err.end(), '\n') == 1);
  CHECK(r.err.find(c.place) != std::string::npos);
  CHECK(r.err.find(c.remedy) != std::string::npos);
  CHECK(r.out.empty());
  CHECK_FALSE(fs::exists(out));
}

}  // namespace

TEST_CASE("bad settings") {
  const World w;
  w.scratch.write("file", "x");
  const std::string plain = read_text_file(w.scratch / "c.yaml");
  const std::vector<Wrong> wrong = {
      {"sft", {"--hypernet_latent_sise=3"}, "hypernet_latent_sise", "did you mean 'hypernet_latent_size'", 2},
      {"sft", {"--lr=1", "--lr=2"}, "--lr", "give it once", 2},
      {"sft", {"steps=3"}, "'steps=3'", "write --key=value", 2},
      {"walk", {}, "'walk'", "say pretrain, lora", 2},
      {"sft", {"--steps=many"}, "command line: 'steps'", "an integer"},
      {"sft", {"--epochs=1.5"}, "command line: 'epochs'", "an integer"},
      {"sft", {"--lora_dropout=1"}, "'lora_dropout'", "from 0 to 0.999"},
      {"sft", {"--shuffle=maybe"}, "'shuffle'", "true or false"},
      {"sft", {"--schedule=square"}, "'schedule'", "one of linear, cosine"},
      {"sft", {"--eval_ds_info=[1]"}, "'eval_ds_info'", "a mapping"},
      {"sft", {"--target_modules=q_proj,z_proj"}, "'target_modules' has 'z_proj'", "there are: q_proj"},
      {"sft", {"--target_modules=q_proj,q_proj"}, "'target_modules'", "name it once"},
      {"sft", {"--variant=S", "--autoreg_gen=false"}, "'variant'", "remove one of them"},
      {"sft", {"--learnable_pos_emb=true"}, "'learnable_pos_emb'", "needs autoreg_gen: true"},
      {"sft", {"--use_one_hot_task_emb=true"}, "'embeddings'", "remove one of them"},
      {"sft", {"--use_inp_as_desc=true"}, "'use_inp_as_desc'", "set use_per_task_emb: false"},
      {"sft", {"--use_per_task_emb=false"}, "'use_per_task_emb'", "use_default_desc"},
      {"sft", {"--p_shots=0.5"}, "'p_shots'", "remove it"},
      {"reconstruct", {"--mt_lora_path=x"}, "'mt_lora_path'", "remove it"},
      {"reconstruct", {"--training_task=sft"}, "'training_task'", "change the verb"},
      {"multitask", {"--use_default_desc=true"}, "'use_default_desc'", "remove it"},
      {"multitask", {"--export_official=" + w.scratch / "x"}, "'export_official'", "a PEFT adapter"},
      {"sft", {"--export_official=" + w.scratch / "my_checkpoint"}, "'export_official'", "name it otherwise"},
      {"sft", {"--export_official=" + w.scratch / "base"}, "--export-official", "give another"},
      {"sft", {"--n_tasks_per_batch=9"}, "--n_tasks_per_batch", "give it once", 2},
      {"sft", {"--grad_accum_steps=9", "--epochs=1"}, "nothing to train", "lower grad_accum_steps"},
      // What is missing.
      {"sft", {"--model_dir=/nowhere/base"}, "/nowhere/base", "give its directory as model_dir"},
      {"sft", {"--model_dir=" + w.scratch / "tasks"}, "tasks", "check the path"},
      {"sft", {"--embeddings=/nowhere.safetensors"}, "/nowhere.safetensors", "check the path"},
      {"sft", {"--embeddings=" + w.scratch / "base/model.safetensors"}, "'task0'", "embed that task"},
      {"sft", {"--init_from=/nowhere"}, "/nowhere", "give that of a trained hypernetwork"},
      {"sft", {"--init_from=" + w.scratch / "base"}, "base", "give the directory of a trained hypernetwork"},
      {"sft", {"--data_order=/nowhere"}, "/nowhere", "check the path"},
      {"sft", {"--data_order=" + w.scratch / "file"}, "file:1", "JSON"},
      {"reconstruct", {"--oracle_dir=/nowhere"}, "/nowhere", "check the path"},
      {"sft", {"--train_ds_names=task0,elsewhere"}, "'elsewhere'", "add it or remove its name"},
  };
  for (const Wrong& c : wrong) check_refused(w, c);
  CHECK_FALSE(fs::exists(w.scratch / "x"));

  const std::vector<std::array<std::string, 3>> files = {
      {plain + "learning_rates: 3\n", "c.yaml", "unknown key 'learning_rates'; did you mean"},
      {plain + "epochs: soon\n", "c.yaml: 'epochs'", "must be an integer"},
      {plain + "oracle_dir: [a]\n", "c.yaml", "occurs twice; remove one"},
      {plain + "data_order: [a]\n", "c.yaml: 'data_order'", "must be a string"},
      {plain + "shuffle: [\n", "c.yaml:", "correct the YAML there"},
      {"- a\n", "c.yaml", "write one `key: value` a line"},
      {plain + "variant: M\nshared_AB_head: false\n", "c.yaml: 'variant'", "remove one of them"}};
  for (const auto& [text, place, remedy] : files) {
    w.scratch.write("c.yaml", text);
    check_refused(w, {"sft", {}, place, remedy});
  }
  check_refused(w, {"sft", {}, "/nowhere.yaml", "check the path"}, "/nowhere.yaml");

  // No --data, no --out; a folder of tasks that is none.
  for (const auto& [arguments, place, remedy, status] :
       {std::tuple{std::vector<std::string>{"sft", "--data", "x"}, "--out", "needed", 2},
        std::tuple{std::vector<std::string>{"sft", "--out", "x"}, "--data", "needed", 2},
        std::tuple{std::vector<std::string>{}, "t2l-train", "say what to learn", 2},
        std::tuple{std::vector<std::string>{"sft", "--data", w.scratch / "file", "--out", w.scratch / "out"}, "--data",
                   "give the folder of tasks", 1}}) {
    const Run r = run_program(w.scratch, "t2l-train", arguments);
    INFO(r.err);
    CHECK(r.status == status);
    CHECK(r.err.find(place) != std::string::npos);
    CHECK(r.err.find(remedy) != std::string::npos);
    CHECK_FALSE(fs::exists(w.scratch / "out"));
  }
}

TEST_CASE("bad data") {
  const World w;
  const std::string rows = "tasks/task2/train.jsonl", metadata = "tasks/task2/metadata.yaml";
  const std::string good_rows = read_text_file(w.scratch / rows), good_metadata = read_text_file(w.scratch / metadata);
  const auto without = [&](const std::string& part) {
    std::string text = good_metadata;
    const size_t at = text.find(part);
    REQUIRE(at != std::string::npos);
    return text.erase(at, part.size());
  };
  struct Bad {
    std::string file, text, place, remedy;
  };
  const std::vector<Bad> bad = {
      {rows, "", "task2/train.jsonl", "needs at least one"},
      {rows, "\n\n", "task2/train.jsonl", "needs at least one"},
      {rows, good_rows + "{\"input\": \n", "task2/train.jsonl:7", "is the file complete?"},
      {rows, good_rows + "input: a\n", "task2/train.jsonl:7", "correct it"},
      {rows, good_rows + "[1]\n", "task2/train.jsonl:7", "an object with named fields belongs"},
      {rows, good_rows + "{\"input\": \"a\", \"input\": \"b\"}\n", "task2/train.jsonl:7", "input"},
      {rows, good_rows + "{\"input\": \"a\"}\n", "task2/train.jsonl:7", "response_field"},
      {rows, good_rows + "{\"input\": \"a\", \"output\": null}\n", "task2/train.jsonl:7", "response_field"},
      {rows, good_rows + "{\"output\": \"a\"}\n", "task2/train.jsonl:7", "which a template of its task asks for"},
      {rows, good_rows + "{\"input\": \"\xff\", \"output\": \"a\"}\n", "task2/train.jsonl:7", "correct it"},
      {metadata, without("response_field: output\n"), "task2/metadata.yaml: 'response_field'", "add it"},
      {metadata, without("descriptions:\n- Do it\n- Do that\n"), "task2", "add some to its metadata.yaml"},
      {metadata, without("'{input}'"), "task2/metadata.yaml", "user_prompt_template"},
      {metadata, good_metadata + "a: [\n", "task2/metadata.yaml:", "correct the YAML there"},
  };
  for (const std::string verb : {"sft", "multitask"})
    for (const Bad& b : bad) {
      if (verb == "multitask" && b.remedy.starts_with("add some")) continue;  // it needs no descriptions
      CAPTURE(b.file, b.text);
      w.scratch.write(b.file, b.text);
      check_refused(w, {verb, {}, b.place, b.remedy});
      w.scratch.write(rows, good_rows);
      w.scratch.write(metadata, good_metadata);
    }
  fs::remove(w.scratch / rows);
  check_refused(w, {"sft", {}, "task2/train.jsonl", "check the path"});
  w.scratch.write(rows, good_rows);
  write_text_file(w.scratch / "oracle/task1/adapter_config.json", "{");
  check_refused(w, {"reconstruct", {}, "task1/adapter_config.json", "is the file complete?"});
  fs::remove_all(w.scratch / "oracle/task1");
  check_refused(w, {"reconstruct", {}, "oracle/task1", "check the path"});
}
