// What training reads: options, tasks and samples against the recordings of the official code, batches, embeddings.
#include <zlib.h>

#include <catch2/catch.hpp>
#include <map>
#include <set>

#include "t2l/dataset.h"
#include "t2l/embedding_table.h"
#include "tensor/safetensors.h"
#include "tests/golden_files.h"
#include "tests/support.h"

namespace t2l {
namespace {

namespace fs = std::filesystem;
using namespace test;

// The official code's relative paths begin in the folder it runs in.
struct WorkingDirectory {
  fs::path before = fs::current_path();
  explicit WorkingDirectory(const std::string& to) { fs::current_path(to); }
  ~WorkingDirectory() { fs::current_path(before); }
};

std::string read_gzipped(const std::string& path) {
  gzFile file = gzopen(path.c_str(), "rb");
  REQUIRE(file);
  std::string text;
  char buffer[1 << 16];
  for (int n; (n = gzread(file, buffer, sizeof buffer)) > 0;) text.append(buffer, size_t(n));
  gzclose(file);
  return text;
}

template <class F>
void for_json_lines(const std::string& text, F&& f) {
  for_lines(text, [&](std::string_view line, int64_t) {
    if (!line.empty()) f(Json::parse(line));
  });
}

TrainConfig config_of(Verb verb, const std::string& yaml, const std::vector<std::string>& arguments = {}) {
  return TrainConfig::parse(verb, yaml, "c.yaml", parse_settings(arguments));
}

std::vector<TaskSize> sizes(const TaskSet& set) {
  std::vector<TaskSize> out;
  for (const Task& t : set.tasks) out.push_back({t.name, int64_t(t.train.size()), int64_t(t.descriptions.size())});
  return out;
}

// ---- recordings of the official code, where they are
// ------------------------------------------------------------------

Verb verb_of(const std::string& name) {
  return name.starts_with("sft")     ? Verb::Sft
         : name.starts_with("recon") ? Verb::Reconstruct
         : name == "lora"            ? Verb::Lora
                                     : Verb::Multitask;
}

TEST_CASE("batches of recorded runs come out as the official code made them") {
  const std::string root = shared_folder() + "/golden/training";
  if (!fs::exists(root + "/world")) return skip("no ../shared/golden/training");
  const WorkingDirectory world(root + "/world");
  int batches = 0, runs = 0;
  for (const std::string& folder : folders_with("..", "case.json")) {
    const std::string name = fs::path(folder).filename().string();
    INFO(name);
    const TrainConfig config = TrainConfig::load(
        verb_of(name), folder + "/config.yaml",
        parse_settings({"--data", "tasks", "--out", "nowhere", "--device", "cpu", "--quiet", "--data_order=d",
                        "--embeddings=embeddings.safetensors", "--init_from=init", "--dump_grads=g", "--dropout=0",
                        "--lora_dropout=0", "--base_dtype=f32", "--compat=official"}));
    std::optional<SampleEncoder> encoder;
    if (config.verb != Verb::Reconstruct)
      encoder = SampleEncoder::load(config.model_dir, config.model_dir, true, config.inp_max_len);
    const TaskSet set = TaskSet::load(config, encoder ? &*encoder : nullptr);
    Sampler sampler(sampler_options(config), sizes(set));
    sampler.replay(folder + "/data_order.jsonl");
    CHECK(sampler.recorded() == 50);
    CHECK(sampler.batches_per_epoch() * config.epochs == 50);
    ++runs;
    if (config.verb == Verb::Reconstruct) continue;

    const SafeTensors want = SafeTensors::open(folder + "/batches.safetensors");
    std::optional<EmbeddingTable> table;
    if (config.use_per_task_emb) {
      std::vector<std::string> names;
      for (const Task& t : set.tasks) names.push_back(t.name);
      table = EmbeddingTable::load(config.embeddings, names, config.n_descs_per_ds);
    }
    for (int step = 0; want.contains(fmt::format("step{}.input_ids", step + 1)); ++step, ++batches) {
      INFO("step " << step + 1);
      const auto get = [&](const char* what) {
        const SafeTensors::Info& info = want.info(fmt::format("step{}.{}", step + 1, what));
        REQUIRE(info.bytes.size() % 8 == 0);
        std::vector<int64_t> values(info.bytes.size() / 8);
        std::memcpy(values.data(), info.bytes.data(), info.bytes.size());
        return std::pair(values, info.shape);
      };
      const auto [ids, shape] = get("input_ids");
      const auto [mask, mask_shape] = get("attention_mask");
      const auto [labels, labels_shape] = get("labels");
      const Batch batch = sampler.batch(step);
      REQUIRE(int64_t(batch.size()) == shape[0]);
      for (size_t i = 0; i < batch.size(); ++i) {
        const Example& example = set.tasks[size_t(batch[i].task)].train[size_t(batch[i].row)];
        const std::vector<int32_t> of_example = example.labels();
        std::vector<int32_t> want_ids, want_labels;
        for (auto t = i * size_t(shape[1]); t < (i + 1) * size_t(shape[1]); ++t)
          if (mask[t]) want_ids.push_back(int32_t(ids[t])), want_labels.push_back(int32_t(labels[t]));
        CHECK(example.ids == want_ids);
        CHECK(of_example == want_labels);
      }
      // Both round the sum of squares, the root and the quotient: a few units of 6e-8.
      if (table) check_near(table->gather(batch), values(want.get(fmt::format("step{}.task_embs", step + 1))), 2.5e-7);
    }
  }
  CHECK(runs == 12);
  CHECK(batches == 24);
}

TEST_CASE("pairs are cut as the official tokenise function cuts them") {
  const std::string folder = shared_folder() + "/golden/tokenizers/llama_legacy";
  if (!fs::exists(folder)) return skip("no ../shared/golden/tokenizers");
  const Tokenizer tokenizer = Tokenizer::load(folder);
  const OrderedJson tokens = ChatTemplate::special_tokens(folder);
  int cases = 0;
  for_json_lines(read_gzipped(folder + "/truncation.jsonl.gz"), [&](const Json& c) {
    const auto chat = c["is_intx_model"].get<bool>() ? std::optional(ChatTemplate::parse("x", "x")) : std::nullopt;
    const SampleEncoder encoder(tokenizer, chat, true, tokens, true, c["inp_max_len"]);
    const Example example = encoder.encode(c["prompt"].get<std::string>(), c["response"].get<std::string>());
    CHECK(example.ids == c["ids"].get<std::vector<int32_t>>());
    CHECK(example.labels() == c["labels"].get<std::vector<int32_t>>());
    ++cases;
  });
  CHECK(cases == 120);
}

TEST_CASE("official configs, tasks and chat templates are read") {
  const std::string official = shared_folder() + "/data/official";
  if (!fs::exists(official)) return skip("no ../shared/data/official");
  const TrainConfig all = TrainConfig::load(Verb::Sft, official + "/configs/hyper_lora_decontam_lol_tasks.yaml");
  CHECK(all.train_ds_names.size() == 479);
  CHECK(all.grad_accum_steps == 64);
  CHECK(all.lr == 1e-5);
  CHECK(all.use_hierarchical_sampler);
  CHECK(all.eval_ds_info.size() == 31);
  const TrainConfig one = TrainConfig::load(Verb::Lora, official + "/configs/lora_gsm8k.yaml");
  CHECK(one.train_ds_names == std::vector<std::string>{"gsm8k"});
  CHECK(one.save_freq == 5000);
  CHECK_FALSE(one.equally_weight_sample);
  // As scripts/train_t2l_mistral.sh passes them, and train_mt_lora_baselines.sh.
  const TrainConfig run = TrainConfig::load(
      Verb::Sft, official + "/configs/hyper_lora_decontam_lol_tasks.yaml",
      parse_settings({"--model_dir=mistralai/Mistral-7B-Instruct-v0.2", "--emb_model=Alibaba-NLP/gte-large-en-v1.5",
                      "--warmup_frac=0.2", "--lr=2.5e-5", "--n_tasks_per_batch=8", "--n_points_per_task=1",
                      "--grad_accum_steps=1", "--epochs=20000", "--n_descs_per_ds=128", "--n_train_ds=479",
                      "--exp_setup=hyper_lora", "--encoder_type=linear", "--l2_reg_generated_w=1e-3",
                      "--label_smoothing=0.1", "--neftune_noise_alpha=5", "--weight_decay=1e-2"}));
  CHECK(run.lr == 2.5e-5);
  CHECK(run.grad_accum_steps == 1);
  CHECK(TrainConfig::load(Verb::Multitask, official + "/configs/hyper_lora_decontam_lol_tasks.yaml",
                          parse_settings({"--exp_setup=mt_lora", "--use_per_task_emb=False"}))
            .train_ds_names.size() == 479);

  int tasks = 0;
  for (const std::string& folder : folders_with(official + "/tasks", "metadata.yaml")) {
    const std::string name = fs::path(folder).filename().string();
    const TaskFormat format = TaskFormat::parse(read_yaml(folder + "/metadata.yaml"), name, folder);
    CHECK(format.descriptions.size() >= 199);
    ++tasks;
  }
  CHECK(tasks == 511);

  int templates = 0;
  const Conversation conversation{"", "Why?", "So.", "So."};
  for (const char* name :
       {"mistralai/Mistral-7B-Instruct-v0.2", "meta-llama/Llama-3.1-8B-Instruct", "google/gemma-2-2b-it"}) {
    const std::string file = fmt::format("{}/chat_templates/{}/chat_template.jinja", official, name);
    const OrderedJson tokens = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
    const SampleEncoder encoder(
        Tokenizer::parse(read_json("tests/golden/tokenizer_legacy.json")["tokenizer"].dump(), "t"),
        ChatTemplate::parse(ChatTemplate::strip(read_text_file(file)), file, tokens), true, tokens, true, 512);
    const auto [prompt, response] = encoder.render(conversation);
    INFO(prompt << response);
    if (!templates++) {
      CHECK(prompt == "<s> [INST] \n\nWhy? [/INST]");
      CHECK(response == " So.</s>");
    }
    CHECK(prompt.find("Why?") != std::string::npos);
    CHECK(response.find("So.") != std::string::npos);
    CHECK(response.find("<s>") == std::string::npos);
  }
}

// ---- the committed recording
// ------------------------------------------------------------------------------------------

const Json& golden() {
  static const Json json = read_json("tests/golden/training_data.json");
  return json;
}

Tokenizer golden_tokenizer() {
  return Tokenizer::parse(read_json("tests/golden/tokenizer_legacy.json")["tokenizer"].dump(), "tokenizer");
}

OrderedJson golden_tokens() { return {{"bos_token", "<s>"}, {"eos_token", "</s>"}}; }

SampleEncoder golden_encoder(bool chat = true, bool completion = true, int64_t most = 512, bool official = true) {
  std::optional<ChatTemplate> templ;
  if (chat)
    templ = ChatTemplate::parse(ChatTemplate::strip(golden()["template"].get<std::string>()), "T", golden_tokens());
  return {golden_tokenizer(), templ, official, golden_tokens(), completion, most};
}

void write_task(const Scratch& scratch, const std::string& name, const Json& task) {
  std::string rows;
  for (const Json& row : task["rows"]) rows += row.get<std::string>() + "\n\n";  // blank lines are no rows
  scratch.write("tasks/" + name + "/metadata.yaml", task["metadata"].get<std::string>());
  scratch.write("tasks/" + name + "/train.jsonl", rows);
}

TEST_CASE("small tasks of every family become the official code's samples") {
  const Scratch scratch;
  for (const auto& [name, task] : golden()["tasks"].items()) write_task(scratch, name, task);
  int samples = 0;
  for (const Json& c : golden()["cases"]) {
    INFO(c["task"] << " " << c["chat"] << " " << c["completion"] << " " << c["inp_max_len"]);
    const TrainConfig config =
        config_of(Verb::Sft, "", {"--data", scratch / "tasks", "--train_ds_names", c["task"].get<std::string>()});
    const SampleEncoder encoder = golden_encoder(c["chat"], c["completion"], c["inp_max_len"]);
    int64_t reported = 0, all = 0;
    const TaskSet set =
        TaskSet::load(config, &encoder, false, false, [&](int64_t n, int64_t of) { reported = n, all = of; });
    REQUIRE(set.tasks.size() == 1);
    const Task& task = set.tasks[0];
    CHECK(task.descriptions.size() == 3);
    REQUIRE(task.train.size() == c["ids"].size());
    CHECK(reported == int64_t(task.train.size()));
    CHECK(all == reported);
    for (size_t i = 0; i < task.train.size(); ++i, ++samples) {
      CHECK(task.train[i].ids == c["ids"][i].get<std::vector<int32_t>>());
      CHECK(task.train[i].labels() == c["labels"][i].get<std::vector<int32_t>>());
    }
  }
  CHECK(samples == 126);
}

TEST_CASE("a template of the model's own is used without its default system message") {
  const std::string own =
      "{% if messages[0].role != 'system' %}{{ bos_token }}[default]{% endif %}"
      "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}";
  const auto rendered = [&](const std::string& source, const Conversation& c) {
    const SampleEncoder encoder(golden_tokenizer(), ChatTemplate::parse(source, "T", golden_tokens()), false,
                                golden_tokens(), true, 512);
    return encoder.render(c);
  };
  CHECK(rendered(own, {"s", "u", "a", "a"}) == std::pair<std::string, std::string>("[system]s[user]u", "[assistant]a"));
  CHECK(rendered(own, {"", "u", "a", "a"}) == std::pair<std::string, std::string>("[system][user]u", "[assistant]a"));
  const std::string no_system =
      "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}" +
      std::string("[{{ m.role }}]{{ m.content }}{% endfor %}");
  CHECK(rendered(no_system, {"", "u", "a", "a"}) == std::pair<std::string, std::string>("[user]u", "[assistant]a"));
  check_refused([&] { rendered(no_system, {"s", "u", "a", "a"}); }, {"no"});
}

TEST_CASE("Super-NaturalInstructions files are tasks") {
  const Scratch scratch;
  Json task = {{"Definition", {"Name the colour."}}, {"Instances", Json::array()}};
  for (int i = 0; i < 20; ++i)
    task["Instances"].push_back(
        {{"input", fmt::format("thing {}", i)}, {"output", i % 2 ? Json::array({"red"}) : Json::array({"a", "b"})}});
  scratch.write("tasks/task007_colours.json", task.dump());
  const SampleEncoder encoder = golden_encoder();
  const TrainConfig config = config_of(Verb::Sft, "", {"--data", scratch / "tasks"});
  const TaskSet set = TaskSet::load(config, &encoder, false, true);
  REQUIRE(set.tasks.size() == 1);
  CHECK(set.tasks[0].name == "task007_colours");
  CHECK(set.tasks[0].descriptions == std::vector<std::string>{"Name the colour."});
  CHECK(set.tasks[0].train.size() == 16);
  CHECK(set.tasks[0].valid.size() == 2);
  CHECK(set.tasks[0].test.size() == 2);
  const std::string definition = "Name the colour. Please complete the task without any explanation.";
  const auto sample = [&](int i, const std::string& added, const std::string& answer) {
    return encoder.encode(Conversation{"", fmt::format("{}{}\n\nthing {}", definition, added, i), answer, answer}).ids;
  };
  CHECK(set.tasks[0].train[0].ids ==
        sample(0, "\nThe answer should be a comma-separated list of possible completions.", "a, b"));
  CHECK(set.tasks[0].test[1].ids == sample(19, "", "red"));
}

TEST_CASE("rows are divided between training and validation as the official code does it") {
  const Scratch scratch;
  const auto rows = [](int from, int to) {
    std::string text;
    for (int i = from; i < to; ++i) text += fmt::format("{{\"q\": \"{}\", \"a\": \"yes\"}}\n", i);
    return text;
  };
  const std::string metadata = "user_prompt_template: '{q}'\nresponse_field: a\ndescriptions: [d0, d1]\n";
  for (const char* name : {"seen", "other", "lol_1"})
    scratch.write(fmt::format("tasks/{}/metadata.yaml", name), metadata);
  scratch.write("tasks/sliced/metadata.yaml", metadata + "ds_kwargs: {split: 'train[:40%]'}\n");
  scratch.write("tasks/seen/train.jsonl", rows(0, 25));
  scratch.write("tasks/other/train.jsonl", rows(0, 7));
  scratch.write("tasks/other/valid.jsonl", rows(0, 3));
  scratch.write("tasks/sliced/train.jsonl", rows(0, 25));
  scratch.write("tasks/lol_1/metadata.yaml", metadata);
  scratch.write("tasks/lol_1/train.jsonl", "never read");
  scratch.write(
      "tasks/lol_1/valid.jsonl",
      R"({"input": "Definition: d\n\nPositive Example Now complete the following example -Input: i\nOutput:",)"
      R"( "output": ["o"], "q": "", "a": ""})"
      "\n");
  const SampleEncoder encoder = golden_encoder();
  const TrainConfig config =
      config_of(Verb::Sft,
                "train_ds_names: [seen, other, sliced]\nn_descs_per_ds: 1\n"
                "eval_ds_info: {seen: {descriptions: [e]}, lol_1: {}, gsm8k: {descriptions: [never looked at]}}\n",
                {"--data", scratch / "tasks"});
  const TaskSet set = TaskSet::load(config, &encoder);
  REQUIRE(set.tasks.size() == 3);
  REQUIRE(set.unseen.size() == 1);
  const auto& [seen, other, sliced] = std::tie(set.tasks[0], set.tasks[1], set.tasks[2]);
  CHECK(seen.train.size() == 22);  // 22.5, half to even
  CHECK(seen.valid.size() == 3);
  CHECK(seen.valid[0].ids == encoder.encode(Conversation{"", "22", "yes", "yes"}).ids);
  CHECK(seen.unseen_descriptions == std::vector<std::string>{"e"});
  CHECK(seen.descriptions == std::vector<std::string>{"d0"});
  CHECK(other.train.size() == 7);
  CHECK(other.valid.size() == 3);
  CHECK(sliced.train.size() == 10);
  CHECK(set.unseen[0].name == "lol_1");
  CHECK(set.unseen[0].train.empty());
  CHECK(set.unseen[0].valid.size() == 1);
}

TEST_CASE("ranges of rows are those of `datasets`") {
  const auto range = [](const std::string& text, int64_t rows) {
    const RowRange r = RowRange::parse(text);
    return std::pair(r.begin.row(rows), r.end.row(rows));
  };
  const auto expected = [](int64_t begin, int64_t end) { return std::pair(begin, end); };
  CHECK(range("train", 7) == expected(0, 7));
  CHECK(range("train[:5]", 7) == expected(0, 5));
  CHECK(range("train[2:]", 7) == expected(2, 7));
  CHECK(range("train[:10000]", 7) == expected(0, 7));
  CHECK(range("train[-3:-1]", 7) == expected(4, 6));
  CHECK(range("train[-10%:]", 40) == expected(36, 40));
  CHECK(range("train[:90%]", 24) == expected(0, 22));  // 21.6
  CHECK(range("train[:90%]", 25) == expected(0, 22));  // 22.5, half to even
  CHECK(range("train[:90%]", 15) == expected(0, 14));  // 13.5
  CHECK(range("train[90%:]", 27) == expected(24, 27));
  for (const char* bad : {"", "[1:2]", "train[1]", "train[1:2", "train[a:]", "train[:101%]", "train[:99999999999999]"})
    check_refused([&] { RowRange::parse(bad); }, {"range of rows"});
}

TEST_CASE("samples carry their own descriptions") {
  const Scratch scratch;
  scratch.write("tasks/t/metadata.yaml", "user_prompt_template: \"{q}\\n\\nmore {q}\"\nresponse_field: a\n");
  scratch.write("tasks/t/train.jsonl", R"({"q": "one", "a": "yes", "context": "about one"})");
  const SampleEncoder encoder = golden_encoder();
  const auto text = [&](Verb verb, const std::string& option, bool chat) {
    const TrainConfig config =
        config_of(verb, "use_per_task_emb: false\n" + option + ": true\n", {"--data", scratch / "tasks"});
    return TaskSet::load(config, &encoder, chat).tasks[0].train[0].text;
  };
  CHECK(text(Verb::Hyperdecoders, "use_inp_as_desc", false) == "one\n\nmore one");
  CHECK(text(Verb::Hyperdecoders, "use_inp_as_desc", true) == "<s>[system]  [user] one\n\nmore one ");
  CHECK(text(Verb::Sft, "use_default_desc", true) == "one");
  CHECK(text(Verb::Sft, "use_per_sample_desc", false) == "about one");
}

TEST_CASE("bad data is named by file and line") {
  const SampleEncoder encoder = golden_encoder();
  const auto refused = [&](const std::string& metadata, const std::string& rows, const std::vector<std::string>& parts,
                           const std::string& name = "t", const std::vector<std::string>& more = {}) {
    const Scratch scratch;
    scratch.write("tasks/" + name + "/metadata.yaml", metadata);
    if (rows != "none") scratch.write("tasks/" + name + "/train.jsonl", rows);
    std::vector<std::string> arguments = {"--data", scratch / "tasks"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    INFO(metadata << rows);
    check_refused([&] { TaskSet::load(config_of(Verb::Sft, "", arguments), &encoder); }, parts);
  };
  const std::string good = "user_prompt_template: '{q}'\nresponse_field: a\ndescriptions: [d]\n";
  const std::string row = "{\"q\": \"x\", \"a\": \"y\"}\n";
  refused(good, row + "\n" + row + "{\"q\": \"x\"}\n" + row, {"train.jsonl:4", "'a'", "response_field"});
  refused(good, row + "not json\n", {"train.jsonl:2", "JSON"});
  refused(good, row + "[1]\n", {"train.jsonl:2", "object"});
  refused(good, row + "{\"q\": \"x\", \"a\": null}\n", {"train.jsonl:2", "'a'"});
  refused(good, row + "{\"q\": [1], \"a\": 1}\n", {"train.jsonl:2", "'q'", "array"});
  refused(good, row + "{\"a\": \"x\"}\n", {"train.jsonl:2", "'q'"});
  refused(good, row + "{\"q\": \"\xff\", \"a\": \"x\"}\n", {"train.jsonl:2"});
  refused(good, row + "{\"q\": 1e999, \"a\": \"x\"}\n", {"train.jsonl:2", "too large"});
  refused(good, "", {"train.jsonl", "no row"});
  refused(good, "\n \n", {"train.jsonl", "no row"});
  refused(good, "none", {"train.jsonl", "open"});
  refused("response_field: a\ndescriptions: [d]\n", row, {"metadata.yaml", "user_prompt_template"});
  refused("user_prompt_template: '{q}'\ndescriptions: [d]\n", row, {"metadata.yaml", "response_field"});
  refused("user_prompt_template: '{q}'\nresponse_field: a\n", row, {"'t'", "descriptions"});
  refused("user_prompt_template: '{q'\nresponse_field: a\ndescriptions: [d]\n", row,
          {"metadata.yaml", "user_prompt_template", "character 1"});
  refused("user_prompt_template: '{q!r}'\nresponse_field: a\ndescriptions: [d]\n", row, {"metadata.yaml", "{{"});
  refused(good + "ds_kwargs: {split: 'train[5:'}\n", row, {"metadata.yaml", "ds_kwargs", "train[5:"});
  refused(good + "ds_kwargs: {split: '../../x'}\n", row, {"metadata.yaml", "ds_kwargs"});
  refused(good + "ds_kwargs: {split: 'train[1:]'}\n", row, {"train.jsonl", "no row"});
  refused(good, "{\"input\": \"x\", \"output\": [\"y\"]}\n", {"train.jsonl:1", "Definition: "}, "lol_9");
  refused(good, "{\"input\": \"Definition: x\", \"output\": []}\n", {"train.jsonl:1"}, "lol_9");
  refused(good, "{\"choices\": {\"text\": [\"a\"], \"label\": []}}\n", {"train.jsonl:1", "label"}, "arc_x");
  refused(good, row, {"train_ds_names", "'u'", "metadata.yaml"}, "t", {"--train_ds_names=u"});
  refused(good, row, {"train_ds_names", "name"}, "t", {"--train_ds_names=../tasks/t"});
  refused(good, row, {"eval_ds_info", "'u'"}, "t", {"--eval_ds_info={u: {}}"});
  check_refused(
      [&] {
        TaskSet::load(config_of(Verb::Sft, "", {"--data", "/nowhere"}), &encoder);
      },
      {"/nowhere", "--data"});
  check_refused([&] { TaskSet::load(config_of(Verb::Sft, ""), &encoder); }, {"--data"});
  const Scratch empty;
  check_refused(
      [&] {
        TaskSet::load(config_of(Verb::Sft, "", {"--data", empty.path.string()}), &encoder);
      },
      {"no task"});
  empty.write(
      "a.json",
      R"({"Definition": ["d"], "Instances": [{"input": "x", "output": ["y"]}, {"input": 3, "output": ["z"]}]})");
  check_refused(
      [&] {
        TaskSet::load(config_of(Verb::Sft, "", {"--data", empty.path.string()}), &encoder);
      },
      {"a.json", "Instances[1]", "'input'"});
  // Of many bad rows, the first is named, whatever the threads do.
  std::string many;
  for (int i = 0; i < 3000; ++i) many += i < 700 ? row : "{}\n";
  refused(good, many, {"train.jsonl:701:"});
}

TEST_CASE("format strings mean what Python's do") {
  const Json row =
      Json::parse(R"({"a": "x{}", "n": 3, "f": 2.0, "e": 1e-7, "t": true, "l": ["p", {"k": "q"}], "1": "one"})");
  const auto format = [&](const std::string& s) { return FormatString::parse(s).format(row); };
  CHECK(format("") == "");
  CHECK(format("{a} {n}{f} {e} {t}") == "x{} 32.0 1e-07 True");
  CHECK(format("{{a}} {{{a}}}") == "{a} {x{}}");
  CHECK(format("{l[0]} {l[1][k]}") == "p q");
  for (const char* bad : {"{", "}", "{}", "{0}", "{a:>3}", "{a!s}", "{a.b}", "{a[}", "{a[]}", "{a[0]b}", "{a}}", "{{a}",
                          "{l[99999999999999999999]}"})
    check_refused([&] { format(bad); }, {"character"});
  for (const char* bad : {"{zz}", "{l[2]}", "{l[-1]}", "{a[0]}", "{l[k]}", "{n[0]}"})
    check_refused([&] { format(bad); }, {"field"});
  check_refused([&] { format("{l}"); }, {"'l'", "array"});
}

// ---- options
// ----------------------------------------------------------------------------------------------------------

TEST_CASE("options come from the verb, the file and the command line") {
  const TrainConfig lora = config_of(Verb::Lora, "");
  CHECK(lora.lr == 8e-5);
  CHECK(lora.grad_accum_steps == 2);
  CHECK(lora.save_freq == TrainConfig::kNever);
  const TrainConfig c = config_of(Verb::Sft,
                                  "lr: 1e-5  # a string to PyYAML\nepochs: 7\nn_descs_per_ds: null\nsave_freq: 1" +
                                      std::string(100, '0') + "\ntrain_ds_names: [a, b]\nnotes: whatever\n",
                                  {"--epochs", "9", "--dry-run", "--shuffle=False", "--target_modules=q_proj,o_proj",
                                   "--eval_ds_info={\"x\": {}}", "--variant=S", "--n_train_ds=None"});
  CHECK(c.lr == 1e-5);
  CHECK(c.epochs == 9);
  CHECK(c.n_descs_per_ds == 0);
  CHECK(c.save_freq == TrainConfig::kNever);
  CHECK(c.dry_run);
  CHECK_FALSE(c.shuffle);
  CHECK(c.target_modules == std::vector<std::string>{"q_proj", "o_proj"});
  CHECK(c.eval_ds_info.contains("x"));
  CHECK(c.shared_AB_head);
  CHECK(c.autoreg_gen);
  CHECK(c.weight_decay == 1e-2);
  CHECK(config_of(Verb::Sft, "emb_model: e.safetensors").embeddings == "e.safetensors");
  CHECK(config_of(Verb::Sft, "emb_model: e.safetensors", {"--embeddings=f"}).embeddings == "f");
}

TEST_CASE("options are written back, and a change is named") {
  for (const Verb verb :
       {Verb::Pretrain, Verb::Lora, Verb::Multitask, Verb::Reconstruct, Verb::Sft, Verb::Hyperdecoders}) {
    CHECK(parse_verb(name_of(verb)) == verb);
    const TrainConfig c =
        config_of(verb, "",
                  {"--lr=3e-7", "--model_dir=a \"b\"\n\\ é", "--seed=9007199254740993", "--delta_w_scaling=1e10",
                   "--eval_ds_info={a: {descriptions: ['x: y']}}", "--additional_eval_descs=p,q"});
    INFO(c.yaml());
    const TrainConfig back = config_of(verb, c.yaml());
    CHECK(back.changed_key(c) == "");
    CHECK(back.yaml() == c.yaml());
    CHECK(back.seed == 9007199254740993);
    CHECK(back.model_dir == c.model_dir);
    CHECK(config_of(verb, c.yaml(), {"--lr=3e-6"}).changed_key(c) == "lr");
    CHECK(config_of(verb, c.yaml(), {"--quiet", "--out=elsewhere", "--threads=3"}).changed_key(c) == "");
    CHECK(TrainConfig::help(verb).find("n_tasks_per_batch") != std::string::npos);
  }
}

TEST_CASE("bad options are refused in one line") {
  const auto refused = [](Verb verb, const std::string& yaml, const std::vector<std::string>& parts,
                          const std::vector<std::string>& arguments = {}) {
    INFO(yaml);
    check_refused([&] { config_of(verb, yaml, arguments); }, parts);
  };
  refused(Verb::Sft, "n_task_per_batch: 3", {"c.yaml", "'n_task_per_batch'", "did you mean 'n_tasks_per_batch'"});
  refused(Verb::Sft, "learning_rate: 3", {"c.yaml", "did you mean"});
  refused(Verb::Sft, std::string(900, 'x') + ": 3", {"c.yaml", "did you mean"});
  refused(Verb::Sft, "lr: fast", {"c.yaml", "'lr'", "number", "fast"});
  refused(Verb::Sft, "lr: .nan", {"c.yaml", "'lr'"});
  refused(Verb::Sft, "lr: -1", {"c.yaml", "'lr'", "from 0"});
  refused(Verb::Sft, "epochs: 1.5", {"c.yaml", "'epochs'", "integer", "1.5"});
  refused(Verb::Sft, "epochs: null", {"c.yaml", "'epochs'"});
  refused(Verb::Sft, "batch_size: 0", {"c.yaml", "'batch_size'", "from 1"});
  refused(Verb::Sft, "shuffle: maybe", {"c.yaml", "'shuffle'", "true or false"});
  refused(Verb::Sft, "train_ds_names: [1]", {"c.yaml", "'train_ds_names'", "list of strings"});
  refused(Verb::Sft, "eval_ds_info: [1]", {"c.yaml", "'eval_ds_info'", "mapping"});
  refused(Verb::Sft, "schedule: square", {"c.yaml", "'schedule'", "linear, cosine"});
  refused(Verb::Sft, "encoder_type: vq", {"c.yaml", "'encoder_type'", "linear"});
  refused(Verb::Sft, "exp_setup: hyper_vera", {"c.yaml", "'exp_setup'", "hyper_lora"});
  refused(Verb::Sft, "- a", {"c.yaml", "array"});
  refused(Verb::Sft, "lr: 1\nlr: 2", {"c.yaml:2", "twice"});
  refused(Verb::Sft, "training_task: recon", {"c.yaml", "'training_task'", "verb"});
  refused(Verb::Sft, "variant: L\nshared_AB_head: true", {"c.yaml", "'variant'", "shared_AB_head"});
  refused(Verb::Sft, "use_inp_as_desc: true", {"c.yaml", "'use_inp_as_desc'", "use_per_task_emb: false"});
  refused(Verb::Sft, "use_per_task_emb: false", {"c.yaml", "'use_per_task_emb'", "use_inp_as_desc"});
  refused(Verb::Sft, "learnable_pos_emb: true", {"c.yaml", "'learnable_pos_emb'", "autoreg_gen"});
  refused(Verb::Sft, "gist_mask: true", {"c.yaml", "'gist_mask'", "pretrain"});
  refused(Verb::Sft, "train_ds_names: [a, a]", {"c.yaml", "'train_ds_names'", "twice"});
  refused(Verb::Hyperdecoders, "use_one_hot_task_emb: true", {"c.yaml", "'use_one_hot_task_emb'", "use_per_task_emb"});
  refused(Verb::Hyperdecoders, "embeddings: f", {"c.yaml", "'embeddings'", "emb_model"});
  refused(Verb::Reconstruct, "mt_lora_path: x", {"c.yaml", "'mt_lora_path'", "sft"});
  refused(Verb::Multitask, "use_inp_as_desc: true", {"c.yaml", "'use_inp_as_desc'", "multitask"});
  refused(Verb::Lora, "train_ds_names: [a, b]", {"c.yaml", "'train_ds_names'", "multitask"});
  refused(Verb::Sft, "", {"command line", "'lr'"}, {"--lr=x"});
  refused(Verb::Sft, "", {"command line", "'shuffle'"}, {"--shuffle=perhaps"});
  refused(Verb::Sft, "", {"did you mean 'lr'"}, {"--lt=1"});
  refused(Verb::Sft, "", {"--lr", "twice"}, {"--lr=1", "--lr=2"});
  refused(Verb::Sft, "", {"--lr", "no value"}, {"--lr"});
  refused(Verb::Sft, "", {"'lr'", "--key=value"}, {"lr"});
  check_refused([] { parse_verb("train"); }, {"'train'", "multitask"});
}

// ---- batches
// ----------------------------------------------------------------------------------------------------------

std::vector<TaskSize> some_tasks(int64_t n) {
  std::vector<TaskSize> out;
  for (int64_t i = 0; i < n; ++i) out.push_back({fmt::format("t{}", i), 5 + i % 7, 1 + i % 4});
  return out;
}

TEST_CASE("the hierarchical sampler visits tasks once an epoch and draws evenly") {
  SamplerOptions o;
  o.kind = SamplerOptions::Kind::Hierarchical;
  o.tasks_per_batch = 4, o.points_per_task = 3, o.seed = 5;
  const auto tasks = some_tasks(11);
  const Sampler sampler(o, tasks);
  REQUIRE(sampler.batches_per_epoch() == 2);
  std::map<int32_t, int> of_task;
  std::map<std::pair<int32_t, int32_t>, int> of_row, of_description;
  constexpr int kEpochs = 4000;
  for (int e = 0; e < kEpochs; ++e) {
    std::set<int32_t> met;
    for (int b = 0; b < 2; ++b) {
      const Batch batch = sampler.batch(e * 2 + b);
      REQUIRE(batch.size() == 12);
      for (size_t i = 0; i < batch.size(); ++i) {
        const auto [task, row, description] = batch[i];
        REQUIRE(row >= 0);
        REQUIRE(row < tasks[size_t(task)].rows);
        REQUIRE(description >= 0);
        REQUIRE(description < tasks[size_t(task)].descriptions);
        REQUIRE(task == batch[i / 3 * 3].task);
        met.insert(task);
        ++of_task[task], ++of_row[{task, row}], ++of_description[{task, description}];
      }
    }
    REQUIRE(met.size() == 8);  // three of eleven are left out
  }
  const auto even = [](double got, double expected) { CHECK(std::abs(got - expected) < 5 * std::sqrt(expected)); };
  const double each = kEpochs * 24. / 11;
  for (const auto& [task, n] : of_task) even(n / 3., each / 3);  // three samples come together
  for (const auto& [key, n] : of_row) even(n, each / double(tasks[size_t(key.first)].rows));
  for (const auto& [key, n] : of_description) even(n, each / double(tasks[size_t(key.first)].descriptions));
  CHECK(of_row.size() == 5 + 6 + 7 + 8 + 9 + 10 + 11 + 5 + 6 + 7 + 8);

  // Any iteration by itself, and another seed.
  const Sampler again(o, tasks);
  CHECK(again.batch(77) == sampler.batch(77));
  CHECK(again.batch(3) == sampler.batch(3));
  o.seed = 6;
  CHECK(Sampler(o, tasks).batch(77) != sampler.batch(77));
}

TEST_CASE("the plain sampler visits every row once an epoch") {
  SamplerOptions o;
  o.batch_size = 7;
  const auto tasks = some_tasks(5);  // 35 rows and
  const Sampler sampler(o, {tasks.begin(), tasks.begin() + 4});
  REQUIRE(sampler.batches_per_epoch() == 4);  // 26 in all
  std::vector<Batch> epochs;
  for (int e = 0; e < 3; ++e) {
    std::set<std::pair<int32_t, int32_t>> met;
    Batch all;
    for (int b = 0; b < 4; ++b) {
      const Batch batch = sampler.batch(e * 4 + b);
      CHECK(batch.size() == (b == 3 ? 5u : 7u));
      for (const Sample& s : batch) met.emplace(s.task, s.row), all.push_back(s);
    }
    CHECK(met.size() == 26);
    epochs.push_back(all);
  }
  CHECK(epochs[0] != epochs[1]);
  CHECK(epochs[1] != epochs[2]);

  o.shuffle = false;
  const Sampler ordered(o, tasks);
  CHECK(ordered.batch(0)[6] == Sample{1, 1, 1});
  CHECK(ordered.batch(5) == ordered.batch(0));
  o.descriptions = SamplerOptions::Descriptions::OfSample;
  CHECK(Sampler(o, tasks).batch(0)[6] == Sample{1, 1, 1});
  CHECK(Sampler(o, tasks).batch(0)[4] == Sample{0, 4, 4});
  o.descriptions = SamplerOptions::Descriptions::None;
  CHECK(Sampler(o, tasks).batch(0)[6] == Sample{1, 1, -1});
}

TEST_CASE("reconstruction visits tasks with different descriptions of each") {
  SamplerOptions o;
  o.kind = SamplerOptions::Kind::Reconstruct;
  o.tasks_per_batch = 4, o.descriptions_per_task = 2;
  const auto tasks = some_tasks(9);
  const Sampler sampler(o, tasks);
  REQUIRE(sampler.batches_per_epoch() == 3);
  for (int e = 0; e < 20; ++e) {
    std::set<Sample, decltype([](const Sample& a, const Sample& b) {
               return std::pair(a.task, a.description) < std::pair(b.task, b.description);
             })>
        met;
    for (int b = 0; b < 3; ++b)
      for (const Sample& s : sampler.batch(e * 3 + b)) met.insert(s);
    CHECK(met.size() == 1 + 2 + 2 + 2 + 1 + 2 + 2 + 2 + 1);  // a task may have only one
  }
  // Tasks of one batch choose independently: two with four descriptions begin alike in a quarter of the batches.
  o.tasks_per_batch = 2;
  const Sampler two(o, {{"a", 0, 4}, {"b", 0, 4}});
  int alike = 0;
  for (int b = 0; b < 1000; ++b) {
    const Batch batch = two.batch(b);
    REQUIRE(batch.size() == 4);
    alike += batch[0].description == batch[2].description;
  }
  CHECK(std::abs(alike - 250) < 70);
  o.tasks_per_batch = 100, o.descriptions_per_task = 0;
  CHECK(Sampler(o, tasks).batches_per_epoch() == 1);
  CHECK(Sampler(o, tasks).batch(4).size() == 1 + 2 + 3 + 4 + 1 + 2 + 3 + 4 + 1);
}

TEST_CASE("samplers are as the options say") {
  using Source = SamplerOptions::Descriptions;
  CHECK(sampler_options(config_of(Verb::Lora, "")).descriptions == Source::None);
  CHECK(sampler_options(config_of(Verb::Hyperdecoders, "")).descriptions == Source::OfSample);
  CHECK(sampler_options(config_of(Verb::Sft, "use_one_hot_task_emb: true")).descriptions == Source::None);
  const SamplerOptions sft = sampler_options(config_of(Verb::Sft, ""));
  CHECK(sft.kind == SamplerOptions::Kind::Hierarchical);
  CHECK(sft.descriptions == Source::OfTask);
  const SamplerOptions validation = validation_options(config_of(Verb::Sft, ""));
  CHECK(validation.kind == SamplerOptions::Kind::Plain);
  CHECK(validation.batch_size == 64);
  CHECK_FALSE(validation.shuffle);
}

TEST_CASE("samplers refuse what cannot be sampled") {
  SamplerOptions o;
  o.kind = SamplerOptions::Kind::Hierarchical;
  check_refused([&] { Sampler(o, some_tasks(3)).batch(0); }, {"8 tasks", "3", "n_tasks_per_batch"});
  check_refused([&] { Sampler(o, {}); }, {"no task"});
  check_refused([&] { Sampler(o, {{"empty", 0, 1}}); }, {"'empty'", "row"});
  check_refused([&] { Sampler(o, {{"mute", 1, 0}}); }, {"'mute'", "description"});
}

TEST_CASE("recorded orders are replayed, and checked") {
  SamplerOptions o;
  const auto replayed = [&](const std::string& text) {
    Sampler s(o, some_tasks(3));
    s.replay(text, "order.jsonl");
    return s;
  };
  const Sampler s = replayed("[[\"t1\", 5, 1], [\"t0\", 0, 0]]\n\n[[\"t2\", 6, 2]]\n");
  CHECK(s.recorded() == 2);
  CHECK(s.batch(0) == Batch{{1, 5, 1}, {0, 0, 0}});
  CHECK(s.batch(1) == Batch{{2, 6, 2}});
  check_refused([&] { s.batch(2); }, {"order.jsonl", "2 batches", "epochs or steps"});
  const std::string good = "[[\"t0\", 0, 0]]\n";
  for (const char* bad : {"[[\"t9\", 0, 0]]", "[[\"t0\", 5, 0]]", "[[\"t0\", -1, 0]]", "[[\"t0\", 0, 1]]",
                          "[[\"t0\", 0, null]]", "[[\"t0\", 0]]", "[[0, 0, 0]]", "[]", "{}", "[1]", "x",
                          "[[\"t0\", 0.5, 0]]", "[[\"t0\", 18446744073709551615, 0]]"})
    check_refused([&] { replayed(good + bad); }, {"order.jsonl:2"});
  check_refused([&] { replayed(""); }, {"order.jsonl", "no batch"});
  o.descriptions = SamplerOptions::Descriptions::None;
  CHECK(replayed("[[\"t0\", 0, null]]").batch(0) == Batch{{0, 0, -1}});
  o.kind = SamplerOptions::Kind::Reconstruct;
  o.descriptions = SamplerOptions::Descriptions::OfTask;
  CHECK(replayed("[[\"t2\", 2]]").batch(0) == Batch{{2, -1, 2}});
  check_refused([&] { replayed("[[\"t2\", 3]]"); }, {"order.jsonl:1", "description 3"});
}

// ---- embeddings
// -------------------------------------------------------------------------------------------------------

TEST_CASE("embeddings come from a file, normalised") {
  const Scratch scratch;
  const std::string file = scratch / "e.safetensors";
  write_safetensors(file, {{"a", Tensor::from<float>(Values{3, 4, 0, 0, 5, 12}, {2, 3})},
                           {"b", Tensor::from<float>(Values{0, 0, 2}, {1, 3})},
                           {"c", Tensor::from<float>(Values{1, 2}, {1, 2})},
                           {"d", Tensor::from<float>(Values{1, INFINITY, 2}, {1, 3})}});
  const EmbeddingTable table = EmbeddingTable::load(file, {"b", "a"}, 0);
  CHECK(table.dim() == 3);
  CHECK(table.size(0) == 1);
  CHECK(table.size(1) == 2);
  const double r = std::sqrt(3.0);
  check_near(table.gather({{1, 0, 1}, {0, 9, 0}, {1, 0, 0}}),
             {0, float(5 * r / 13), float(12 * r / 13), 0, 0, float(r), float(.6 * r), float(.8 * r), 0}, 1e-7);
  CHECK(EmbeddingTable::load(file, {"a"}, 1).size(0) == 1);
  check_refused([&] { EmbeddingTable::load(file, {"a", "z"}, 0); }, {"e.safetensors", "'z'"});
  check_refused([&] { EmbeddingTable::load(file, {"a", "c"}, 0); }, {"e.safetensors", "'c'", "width 2"});
  check_refused([&] { EmbeddingTable::load(file, {"d"}, 0); }, {"e.safetensors", "'d'", "finite"});

  const EmbeddingTable one_hot = EmbeddingTable::one_hot(3);
  CHECK(values(one_hot.gather({{2, 0, -1}, {0, 1, -1}})) == Values{0, 0, 1, 1, 0, 0});
}

TEST_CASE("embedding work is kept by content") {
  const Scratch scratch;
  std::vector<std::string> asked;
  const CachedEncoder encoder{"encoder 1", scratch / "cache", [&](const std::vector<std::string>& texts) {
                                Values out;
                                for (const std::string& t : texts) {
                                  asked.push_back(t);
                                  out.push_back(float(t.size()));
                                  out.push_back(1);
                                }
                                return Tensor::from<float>(out, {int64_t(texts.size()), 2});
                              }};
  const std::vector<std::vector<std::string>> texts = {{"x", "yy", "x"}, {"yy"}};
  const auto check = [&](const CachedEncoder& e, const std::vector<std::string>& expected) {
    asked.clear();
    int64_t done = 0, all = 0;
    const EmbeddingTable table =
        EmbeddingTable::encode(texts, e, false, [&](int64_t n, int64_t of) { done = n, all = of; });
    CHECK(done == 4);
    CHECK(all == 4);
    CHECK(table.size(0) == 3);
    CHECK(values(table.gather({{0, 0, 2}, {0, 0, 1}, {1, 0, 0}})) == Values{1, 1, 2, 1, 2, 1});
    CHECK(asked == expected);
  };
  check(encoder, {"x", "yy", "yy"});
  check(encoder, {});
  CachedEncoder other = encoder;
  other.identity = "encoder 2";
  check(other, {"x", "yy", "yy"});
  int files = 0;
  for (const auto& entry : fs::directory_iterator(scratch / "cache/embeddings")) {
    write_text_file(entry.path().string(), "damaged");
    ++files;
  }
  CHECK(files == 4);
  check(encoder, {"x", "yy", "yy"});
  for (const auto& entry : fs::directory_iterator(scratch / "cache/embeddings")) {
    std::string bytes = read_text_file(entry.path().string());
    if (const size_t at = bytes.find("encoder 1"); at != std::string::npos) bytes[at + 8] = '9';
    write_text_file(entry.path().string(), bytes);  // what a collision of names would look like
  }
  check(encoder, {"x", "yy", "yy"});
  check(encoder, {});
  other.directory = "/proc/nowhere";  // cannot be written
  check(other, {"x", "yy", "yy"});

  scratch.write("encoder/config.json", "{}");
  const std::string before = encoder_identity(scratch / "encoder", {}, {});
  EncoderSpec spec;
  spec.prefix = "p";
  CHECK(encoder_identity(scratch / "encoder", spec, {}) != before);
  scratch.write("encoder/config.json", "[]");
  CHECK(encoder_identity(scratch / "encoder", {}, {}) != before);
}

}  // namespace
}  // namespace t2l
