// t2l-eval: scores beside greedy decoding, batches beside single answers, prompts beside the chat template, and the
// program as a user runs it on a small world of its own.
#include "t2l/evaluate.h"

#include <catch2/catch.hpp>
#include <filesystem>
#include <set>

#include "t2l/answer_score.h"
#include "t2l/generate.h"
#include "t2l/stemmer.h"
#include "tests/golden_files.h"
#include "tests/support.h"
#include "transformer/generation.h"

using namespace t2l;
using namespace test;
namespace fs = std::filesystem;

namespace {

// As the small world's base model renders: description, then questions and answers, and an end where `end` says so.
std::string world_template(bool end) {
  return std::string(
             "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
             "{% elif m.role == 'user' %}?{{ m.content }}!{% else %}{{ m.content }}") +
         (end ? "{% if loop.last %}{{ eos_token }}{% endif %}" : "") + "{% endif %}{% endfor %}";
}

std::vector<int32_t> greedy(const Decoder& decoder, const std::vector<int32_t>& prompt, int64_t tokens,
                            const AdapterBatch& adapters, int32_t adapter) {
  GenerationOptions options;
  options.max_new_tokens = tokens;
  return generate(decoder, {prompt}, options, &adapters, {adapter})[0];
}

// A random base model with a tokenizer of letters, random adapters that change its answers, and a task for each, whose
// answers are those of its adapter.
struct World {
  Scratch scratch;
  std::string base = scratch / "base", data = scratch / "data", adapters = scratch / "adapters";
  std::vector<std::string> names = {"count", "copy", "sort"};
  std::optional<Decoder> decoder;

  World() {
    scratch.write("base/tokenizer.json", letters_tokenizer({{0, "<pad>"}, {1, "<s>"}, {2, "</s>"}}, nullptr).dump());
    use_template(world_template(false));
    Json config = read_json("tests/golden/decoders/mistral/config.json");
    config["vocab_size"] = 60;
    config["eos_token_id"] = 2;
    config["max_position_embeddings"] = 300;
    scratch.write("base/config.json", config.dump());
    decoder.emplace(DecoderConfig::load(base), DecoderOptions{});
    decoder->initialise(1);
    NamedTensors tensors;
    for (const Decoder::Parameter& p : decoder->parameters()) {
      Tensor v = p.value->value;
      if (p.shape.rank() > 1) backend(v).scale(v, v, 12, false);
      // So that no answer holds a special token.
      if (p.name == "lm_head.weight") std::fill_n(v.data<float>(), 3 * v.dim(1), 0.f);
      tensors.emplace_back(p.name, v);
    }
    write_safetensors(base + "/model.safetensors", tensors);
    decoder.emplace(Decoder::load(base));

    for (size_t t = 0; t < names.size(); ++t) {
      write_adapter_of(t);
      scratch.write("data/" + names[t] + "/metadata.yaml",
                    fmt::format("descriptions:\n- {0} the letters\n- Please {0} them all\n- the {0}\n- unused words\n"
                                "user_prompt_template: '{{input}}'\nresponse_field: output\nlevel: {1}\n{2}",
                                names[t], t + 1, t == 2 ? "revealed: true\n" : ""));
      const Adapter adapter = load_adapter(adapters + "/" + names[t]);
      for (const char* split : {"train", "test"}) write_rows(t, split, adapter);
    }
  }

  void use_template(const std::string& jinja) const {
    Json config{{"bos_token", "<s>"}, {"eos_token", "</s>"}};
    if (!jinja.empty()) config["chat_template"] = jinja;
    scratch.write("base/tokenizer_config.json", config.dump());
  }

  void write_adapter_of(size_t t) const {
    std::vector<LoraWeights> weights;
    for (int64_t layer = 0; layer < decoder->config().layers; ++layer)
      for (const char* module : {"q_proj", "v_proj"}) {
        const BaseModel::Linear l = *decoder->config().linear(module);
        const Tensor a = Tensor::empty({4, l.in}), b = Tensor::empty({l.out, 4});
        Tensor out_a = a, out_b = b;
        backend(a).random_normal(out_a, 0, 0.3f, {8, t * 100 + uint64_t(layer)});
        backend(b).random_normal(out_b, 0, 0.3f, {9, t * 100 + uint64_t(layer)});
        weights.push_back({module, layer, a, b});
      }
    fs::create_directories(adapters + "/" + names[t]);
    write_adapter(adapters + "/" + names[t], {"base", 4, 8, true, 0, {"q_proj", "v_proj"}}, weights, {});
  }

  // Twelve rows, whose answers are what the model with this adapter says.
  void write_rows(size_t t, const std::string& split, const Adapter& adapter) const {
    const Tokenizer tokenizer = Tokenizer::load(base);
    const AdapterBatch batch = stack_adapters({{{&adapter}}}, decoder->config(), decoder->options());
    std::string rows;
    for (size_t i = 0; i < 12; ++i) {
      const std::string input(1 + i % 5, char((split == "test" ? 'a' : 'm') + int(i)));
      const auto prompt = tokenizer.encode("<s>?" + input + "!", false);
      const auto answer = greedy(*decoder, prompt, 1 + int64_t(i % 4), batch, 0);
      rows += Json{{"input", input}, {"output", tokenizer.decode(answer, true)}}.dump() + "\n";
    }
    scratch.write(fmt::format("data/{}/{}.jsonl", names[t], split), rows);
  }

  std::vector<Json> rows(const std::string& name, const std::string& split) const {
    const std::string file = fmt::format("{}/{}/{}.jsonl", data, name, split);
    return json_lines(read_text_file(file), file);
  }

  std::vector<EvalTask> tasks(const EvalOptions& options) const {
    return load_eval_tasks(data, names, SampleEncoder::load(base, base, true, 1 << 20), {2}, options);
  }
  std::string text_of(const Example& e) const { return Tokenizer::load(base).decode(e.ids, false); }

  Run run(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {"--model", base, "--data", data, "--quiet", "--json"});
    return run_program(scratch, "t2l-eval", arguments);
  }
  Json report(const std::vector<std::string>& arguments) const {
    const Run r = run(arguments);
    INFO(r.err);
    REQUIRE(r.status == 0);
    CHECK(r.err.empty());
    return parse_json(r.out, "stdout");
  }
};

std::vector<double> exact_matches(const Json& report) {
  std::vector<double> out;
  for (const Json& task : report["tasks"]) out.push_back(task["exact_match"]);
  return out;
}

// A hypernetwork of random weights, saved, whose encoder is the base model.
void save_random_hypernet(const World& w, const std::string& directory, bool one_hot) {
  HypernetConfig h;
  h.layers = w.decoder->config().layers;
  h.rank = 4;
  h.latent = 16;
  h.head_in = 8;
  h.task_dim = one_hot ? 2 : w.decoder->config().hidden;
  for (const char* m : {"q_proj", "v_proj"}) {
    const BaseModel::Linear l = *w.decoder->config().linear(m);
    h.modules.push_back({m, l.in, l.out});
  }
  TrainedHypernet t{Hypernet(h), {}, {}, false, {}, "", "ours", "target_modules", 0, {}, {}};
  for (const std::string& name : t.net.parameters().names())
    if (name.starts_with("heads.")) {  // which begin as zeros
      Tensor v = Tensor::empty(t.net.parameters().shape(name));
      backend(v).random_normal(v, 0, 0.3f, {6, stream_of(name)});
      t.net.parameters().load(name, v, "");
    }
  t.net.parameters().initialise(5);
  t.adapter = {w.base, 4, 8, true, 0, {"q_proj", "v_proj"}};
  t.encoder.dim = h.task_dim;
  t.encoder.layer = -2;
  t.encoder.normalise = !one_hot;
  t.one_hot = one_hot;
  if (one_hot) t.tasks = {"sort", "count"};
  fs::create_directories(directory);
  save_hypernet(t, directory);
}

}  // namespace

TEST_CASE("an answer is exact if and only if greedy decoding gives it") {
  const World w;
  std::vector<Adapter> adapters;
  for (const std::string& name : w.names) adapters.push_back(load_adapter(w.adapters + "/" + name));
  std::vector<AdapterSum> sums;
  for (const Adapter& a : adapters) sums.push_back({{&a}});
  const AdapterBatch batch = stack_adapters(sums, w.decoder->config(), w.decoder->options());

  std::vector<Example> examples;
  std::vector<int32_t> adapter_of;
  for (size_t i = 0; i < 120; ++i) {
    Example e;
    for (size_t j = 0; j < 1 + i % 7; ++j) e.ids.push_back(int32_t(random_bits({1, i}, j) % 60));
    e.prompt = int32_t(e.ids.size());
    const auto adapter = int32_t(i * 7 % 3);
    const int64_t n = 1 + int64_t(i % 4);
    const auto answer = greedy(*w.decoder, e.ids, n, batch, adapter);
    e.ids.insert(e.ids.end(), answer.begin(), answer.end());
    if (i % 2) {  // one token is another
      int32_t& id = e.ids[size_t(e.prompt) + i / 2 % size_t(n)];
      id = (id + 1) % 60;
    }
    examples.push_back(e);
    adapter_of.push_back(adapter);
  }
  std::vector<Question> questions;
  for (size_t i = 0; i < examples.size(); ++i) questions.push_back({&examples[i], adapter_of[i]});

  int64_t seen = 0, batches = 0;
  const std::vector<AnswerScore> scores =
      score_answers(*w.decoder, questions, &batch, {.batch_tokens = 100, .progress = [&](int64_t tokens) {
                                                      seen += tokens, ++batches;
                                                      CHECK(tokens <= 100);
                                                    }});
  CHECK(batches > 3);
  int64_t all = 0;
  for (size_t i = 0; i < examples.size(); ++i) {
    const Example& e = examples[i];
    CAPTURE(i);
    CHECK(scores[i].exact() == (i % 2 == 0));
    CHECK(scores[i].tokens == int32_t(e.ids.size()) - e.prompt);
    all += int64_t(e.ids.size()) - 1;
    // Right tokens, each by the whole prefix alone.
    int32_t right = 0;
    for (size_t t = size_t(e.prompt); t < e.ids.size(); ++t)
      right +=
          greedy(*w.decoder, {e.ids.begin(), e.ids.begin() + ptrdiff_t(t)}, 1, batch, adapter_of[i])[0] == e.ids[t];
    CHECK(scores[i].right == right);
  }
  CHECK(seen == all);

  // Together, one by one, and by an adapter alone: the same.
  for (const int64_t batch_tokens : {1, 17, 1 << 20}) {
    const auto again = score_answers(*w.decoder, questions, &batch, {.batch_tokens = batch_tokens});
    for (size_t i = 0; i < scores.size(); ++i) CHECK(again[i].right == scores[i].right);
  }
  for (size_t a = 0; a < 3; ++a) {
    const AdapterBatch one = stack_adapters({sums[a]}, w.decoder->config(), w.decoder->options());
    std::vector<Question> own;
    std::vector<int32_t> want;
    for (size_t i = 0; i < examples.size(); ++i)
      if (adapter_of[i] == int32_t(a)) own.push_back({&examples[i]}), want.push_back(scores[i].right);
    const auto alone = score_answers(*w.decoder, own, &one);
    for (size_t i = 0; i < own.size(); ++i) CHECK(alone[i].right == want[i]);
  }
  for (const Device device : devices()) {
    const Decoder d = Decoder::load(w.base, {DType::F32, device, {}});
    const AdapterBatch there = stack_adapters(sums, d.config(), d.options());
    const auto some = score_answers(d, {questions.begin(), questions.begin() + 24}, &there);
    for (size_t i = 0; i < some.size(); ++i) CHECK(some[i].right == scores[i].right);
  }
  const auto without = score_answers(*w.decoder, questions, nullptr);
  CHECK(std::count_if(without.begin(), without.end(), [](const AnswerScore& s) { return s.exact(); }) < 40);
}

TEST_CASE("prompts are the chat template's") {
  const World w;
  w.use_template(world_template(true));
  const auto plain = w.tasks({});
  REQUIRE(plain.size() == 3);
  CHECK(plain[0].questions.size() == 1);
  CHECK(plain[1].level == 2);
  CHECK(plain[2].revealed);
  for (size_t i = 0; i < 12; ++i) {
    const Json row = w.rows("copy", "test")[i];
    const Example& e = plain[1].questions[0][i];
    CHECK(w.text_of(e) ==
          fmt::format("<s>?{}!{}</s>", row["input"].get<std::string>(), row["output"].get<std::string>()));
    CHECK(size_t(e.prompt) == 3 + row["input"].get<std::string>().size());
  }
  CHECK(w.tasks({.examples = 5})[0].questions[0].size() == 5);

  const auto described = w.tasks({.examples = 2, .descriptions = 3, .description_first = true});
  CHECK(described[0].descriptions ==
        std::vector<std::string>{"count the letters", "Please count them all", "the count"});
  REQUIRE(described[0].questions.size() == 3);
  CHECK(w.text_of(described[0].questions[1][0]).starts_with("<s>Please count them all.?a!"));

  const auto shots = w.tasks({.shots = 2, .descriptions = 1, .description_first = true, .seed = 4});
  std::set<std::string> prompts;
  const std::vector<Json> train = w.rows("sort", "train");
  for (const Example& e : shots[2].questions[0]) {
    std::string text = w.text_of(e);
    REQUIRE(text.starts_with("<s>sort the letters.?"));
    text = text.substr(text.find('?'));
    std::set<std::string> inputs;
    for (int i = 0; i < 2; ++i) {
      const auto row = std::find_if(train.begin(), train.end(), [&](const Json& r) {
        return text.starts_with("?" + r["input"].get<std::string>() + "!" + r["output"].get<std::string>() + "?");
      });
      REQUIRE(row != train.end());
      const auto input = (*row)["input"].get<std::string>();
      text.erase(0, 2 + input.size() + (*row)["output"].get<std::string>().size());
      inputs.insert(input);
      prompts.insert(input);
    }
    CHECK(inputs.size() == 2);
    CHECK(text.ends_with("</s>"));
  }
  CHECK(prompts.size() > 4);  // others for each question
  CHECK(w.tasks({.shots = 2, .seed = 4})[0].questions[0][3].ids ==
        w.tasks({.shots = 2, .seed = 4})[0].questions[0][3].ids);
  CHECK(w.tasks({.shots = 2, .seed = 5})[0].questions[0][3].ids !=
        w.tasks({.shots = 2, .seed = 4})[0].questions[0][3].ids);
  // A question of the training rows is not among its own examples.
  const auto own = w.tasks({.split = "train", .shots = 11});
  for (size_t i = 0; i < 12; ++i) {
    const auto input = "?" + w.rows("copy", "train")[i]["input"].get<std::string>() + "!";
    const std::string text = w.text_of(own[1].questions[0][i]);
    CHECK(text.find(input) == text.rfind(input));
  }

  // What a template opens the answer with is given; what it puts behind the end is not asked for.
  w.use_template(
      "{{ bos_token }}{% for m in messages %}{{ m.role }}, {{ m.content }}{% if m.role == 'assistant' %}"
      "{{ eos_token }}{% endif %} {% endfor %}{% if add_generation_prompt %}assistant, {% endif %}");
  const Example opened = w.tasks({})[0].questions[0][0];
  CHECK(w.text_of(opened) ==
        "<s>system,  user, a assistant, " + w.rows("count", "test")[0]["output"].get<std::string>() + "</s>");
  CHECK(opened.ids.size() - size_t(opened.prompt) == 2);

  // A model without a template reads text; one whose template knows no system turn has the description in the user's.
  w.use_template("");
  const auto text = w.tasks({.examples = 1, .shots = 1, .descriptions = 1, .description_first = true});
  const std::string said = w.text_of(text[0].questions[0][0]);
  const auto text_of_row = [](const Json& r) { return r["input"].get<std::string>() + r["output"].get<std::string>(); };
  const auto train_rows = w.rows("count", "train");
  CHECK(std::any_of(train_rows.begin(), train_rows.end(), [&](const Json& shot) {  // this tokenizer knows no line break
    return said == "<s>count the letters." + text_of_row(shot) + text_of_row(w.rows("count", "test")[0]) + "</s>";
  }));
  w.use_template(
      "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}"
      "{% endfor %}{{ eos_token }}");
  const auto merged = w.tasks({.examples = 1, .descriptions = 1, .description_first = true});
  CHECK(w.text_of(merged[0].questions[0][0]).starts_with("count the letters.a"));
}

TEST_CASE("descriptions of other tasks and of random words") {
  const World w;
  using Describe = EvalOptions::Describe;
  const auto own = w.tasks({.descriptions = 4});
  const auto other = w.tasks({.descriptions = 4, .describe = Describe::Other, .seed = 1});
  for (size_t t = 0; t < 3; ++t) {
    CHECK(other[t].descriptions != own[t].descriptions);
    CHECK((other[t].descriptions == own[(t + 1) % 3].descriptions ||
           other[t].descriptions == own[(t + 2) % 3].descriptions));
  }
  const auto words = [](const std::vector<EvalTask>& tasks) {
    std::multiset<std::string> all;
    for (const EvalTask& t : tasks)
      for (const std::string& d : t.descriptions)
        for (size_t begin = 0; begin < d.size();) {
          const size_t end = std::min(d.find(' ', begin), d.size());
          all.insert(d.substr(begin, end - begin));
          begin = end + 1;
        }
    return all;
  };
  const auto random = w.tasks({.descriptions = 4, .describe = Describe::Random, .seed = 1});
  CHECK(words(random) == words(own));
  for (size_t t = 0; t < 3; ++t)
    for (size_t d = 0; d < 4; ++d) {
      const auto spaces = [](const std::string& s) { return std::count(s.begin(), s.end(), ' '); };
      CHECK(spaces(random[t].descriptions[d]) == spaces(own[t].descriptions[d]));
    }
  CHECK(random[0].descriptions != own[0].descriptions);
  CHECK(w.tasks({.descriptions = 4, .describe = Describe::Random, .seed = 1})[1].descriptions ==
        random[1].descriptions);
  CHECK(w.tasks({.descriptions = 4, .describe = Describe::Random, .seed = 2})[1].descriptions !=
        random[1].descriptions);
}

TEST_CASE("adapters are measured on their tasks") {
  const World w;
  const Json report = w.report({"--adapters", w.adapters});
  CHECK(exact_matches(report) == std::vector<double>{1, 1, 1});
  CHECK(report["mean"] == Json{{"tasks", 3}, {"exact_match", 1}, {"token_accuracy", 1}});
  CHECK(report["tasks"][0]["name"] == "copy");  // sorted
  CHECK(report["tasks"][0]["level"] == 2);
  CHECK(report["tasks"][0]["revealed"] == false);
  CHECK(report["tasks"][0]["examples"] == 12);
  CHECK(report["adapters"] == 3);
  CHECK(report["dtype"] == "f32");
  CHECK(report["groups"]["level"].size() == 3);
  CHECK(report["groups"]["revealed"]["true"]["tasks"] == 1);
  CHECK(report["groups"]["revealed"]["false"]["tasks"] == 2);
  CHECK(report["tokens_per_second"] > 0);
  for (const char* stage : {"data", "load", "adapters", "score"}) CHECK(report["seconds"].contains(stage));

  const Json base = w.report({});
  for (const double x : exact_matches(base)) CHECK(x < 0.6);
  const Json one = w.report({"--adapter", w.adapters + "/copy", "--batch-tokens", "20"});
  CHECK(exact_matches(one)[0] == 1);
  CHECK(exact_matches(one)[1] < 0.6);
  const Json two = w.report({"--adapters", w.adapters, "--tasks", "sort,copy", "--examples", "3"});
  CHECK(two["tasks"].size() == 2);
  CHECK(two["tasks"][0]["name"] == "sort");
  CHECK(two["tasks"][1]["examples"] == 3);
  // Prompts that the answers were not made for.
  CHECK(exact_matches(w.report({"--adapters", w.adapters, "--shots=1"})) != exact_matches(report));
  const Json told = w.report({"--adapters", w.adapters, "--with-description", "--descriptions=2"});
  CHECK(told["tasks"][0]["descriptions"].size() == 2);
  CHECK(told["tasks"][0]["exact_match"] ==
        Approx((told["tasks"][0]["descriptions"][0].get<double>() + told["tasks"][0]["descriptions"][1].get<double>()) /
               2));

  const Run table = run_program(w.scratch, "t2l-eval", {"--model", w.base, "--data", w.data, "--adapters", w.adapters});
  CHECK(table.status == 0);
  for (const char* part : {"copy ", "100.0 %", "mean of tasks (3)", "level 2 (1)", "input reveals the task (1)"})
    CHECK(table.out.find(part) != std::string::npos);
  CHECK(table.err.find("tokens/s") != std::string::npos);
}

TEST_CASE("a hypernetwork is measured as the adapters that t2l-gen writes of it") {
  const World w;
  const std::string net = w.scratch / "net";
  save_random_hypernet(w, net, false);
  const Json report = w.report({"--hypernet", net, "--descriptions=2"});
  CHECK(report["adapters"] == 6);
  bool differ = false;
  for (size_t d = 0; d < 2; ++d) {
    std::string list;
    for (const std::string& name : w.names) {
      const char* form[] = {"{} the letters", "Please {} them all"};
      list += Json{{"name", name}, {"description", fmt::format(fmt::runtime(form[d]), name)}}.dump() + "\n";
    }
    const std::string out = w.scratch / fmt::format("gen{}", d);
    const Run r = run_program(w.scratch, "t2l-gen",
                              {"--hypernet", net, "--base", w.base, "--tasks", "-", "--out", out, "--quiet"}, list);
    INFO(r.err);
    REQUIRE(r.status == 0);
    const Json each = w.report({"--adapters", out});
    for (size_t t = 0; t < 3; ++t) CHECK(each["tasks"][t]["exact_match"] == report["tasks"][t]["descriptions"][d]);
    differ |= each["mean"]["token_accuracy"] != w.report({})["mean"]["token_accuracy"];
  }
  CHECK(differ);
  CHECK(w.report({"--hypernet", net})["adapters"] == 9);
  CHECK(w.report({"--hypernet", net, "--descriptions=9"})["tasks"][0]["descriptions"].size() == 4);
  CHECK(w.report({"--hypernet", net, "--describe=other", "--seed=3"})["tasks"] ==
        w.report({"--hypernet", net, "--describe=other", "--seed=3"})["tasks"]);
  w.report({"--hypernet", net, "--describe=random", "--with-description", "--shots=2"});

  // Each question's own prompt: as if it were the only description of the only question.
  const Json own = w.report({"--hypernet", net, "--describe=input"});
  int64_t questions = 0;
  for (const Json& t : own["tasks"]) questions += t["examples"].get<int64_t>();
  CHECK(own["adapters"] == questions);
  CHECK(own["tokens"] == w.report({})["tokens"]);
  std::vector<EvalTask> tasks = w.tasks({.describe = EvalOptions::Describe::Input});
  REQUIRE(tasks[0].variants() == w.tasks({})[0].questions[0].size());
  for (size_t v = 0; v < tasks[0].variants(); ++v) {
    REQUIRE(tasks[0].questions_of(v).size() == 1);
    const Example& e = tasks[0].questions_of(v)[0];
    CHECK(w.text_of(e).starts_with(tasks[0].descriptions[v]));
  }

  save_random_hypernet(w, w.scratch / "one_hot", true);
  CHECK(w.report({"--hypernet", w.scratch / "one_hot", "--tasks=count,sort"})["adapters"] == 2);
  const Run refused = w.run({"--hypernet", w.scratch / "one_hot"});
  CHECK(refused.status == 1);
  CHECK(refused.err.find("'copy'") != std::string::npos);
  CHECK(w.run({"--hypernet", w.scratch / "one_hot", "--describe=other"}).status == 2);
}

TEST_CASE("Super-NaturalInstructions files are divided into splits") {
  const World w;
  Json instances = Json::array();
  for (int i = 0; i < 25; ++i)
    instances.push_back({{"input", std::string(1, char('a' + i))}, {"output", Json::array({"x", "y"})}});
  const Json task{{"Definition", "Say x."}, {"Instances", instances}};
  w.scratch.write("data/sni.json", task.dump());
  const TaskSource source = TaskSource::open(w.data, "sni", "--data");
  const auto inputs = [&](const std::string& split, size_t most) {
    std::string all;
    for (const Conversation& c : source.read(split, most)) all += c.user.back();
    return all;
  };
  CHECK(inputs("train", 0) == "abcdefghijklmnopqrst");
  CHECK(inputs("train", 3) == "abc");
  CHECK(inputs("valid", 0) == "uv");
  CHECK(inputs("test", 0) == "wxy");
  CHECK(source.read("test")[0].response == "x, y");
  const Json report = w.report({"--tasks=sni", "--shots=1", "--with-description"});
  CHECK(report["tasks"][0]["examples"] == 3);
  CHECK_FALSE(report["tasks"][0].contains("level"));
  CHECK(w.run({"--tasks=sni", "--shots=9"}).err.find("trained for 300") != std::string::npos);
  Json few = task;
  while (few["Instances"].size() > 9) few["Instances"].erase(9);
  w.scratch.write("data/sni.json", few.dump());
  CHECK(TaskSource::open(w.data, "sni", "--data").read("train").size() == 9);
  check_refused([&] { TaskSource::open(w.data, "sni", "--data").read("test"); }, {"sni.json", "no test rows"});
}

TEST_CASE("what is refused") {
  const World w;
  const auto refused = [&](const std::vector<std::string>& arguments, const std::string& part, int status = 1) {
    const Run r = w.run(arguments);
    INFO(r.err);
    CHECK(r.status == status);
    CHECK(r.out.empty());
    CHECK(r.err.starts_with("error: "));
    CHECK(std::count(r.err.begin(), r.err.end(), '\n') == 1);
    CHECK(r.err.find(part) != std::string::npos);
  };
  refused({"--adapter", "x", "--hypernet", "y"}, "at most one of", 2);
  refused({"--adapter", "x", "--adapters", "y"}, "at most one of", 2);
  refused({"--encoder", "x"}, "--encoder", 2);
  refused({"--describe", "other"}, "--describe", 2);
  refused({"--describe", "input"}, "--hypernet", 2);
  refused({"--with-description", "--describe", "nobody"}, "nobody", 2);
  refused({"--descriptions", "2"}, "--descriptions", 2);
  refused({"--with-description", "--descriptions", "0"}, "--descriptions", 2);
  refused({"--split", "dev"}, "--split dev", 2);
  refused({"--examples", "0"}, "--examples", 2);
  refused({"--shots", "-1"}, "--shots", 2);
  refused({"--batch-tokens", "0"}, "--batch-tokens", 2);
  refused({"--tasks", "copy,,sort"}, "separated by commas", 2);
  refused({"--tasks", "copy,copy"}, "twice", 2);
  refused({"--tasks", "nowhere"}, "nowhere");
  refused({"--tasks", ".."}, "..");
  refused({"--split", "valid"}, "valid.jsonl");
  refused({"--shots", "13"}, "--shots");
  refused({"--adapter", "/nowhere"}, "/nowhere");
  refused({"--adapter", "tests/golden/decoders/qwen3/adapter"}, "trained for");
  fs::remove_all(w.adapters + "/sort");
  refused({"--adapters", w.adapters}, w.adapters + "/sort");
  w.scratch.write("data/copy/test.jsonl", "{\"input\": \"a\", \"output\": \"b\"}\n{\"input\": \"a\"}\n");
  refused({}, "test.jsonl:2");
  w.scratch.write("data/copy/test.jsonl", "\n");
  refused({}, "test.jsonl");
  w.scratch.write("data/copy/metadata.yaml", "user_prompt_template: '{input}'\nresponse_field: output\n");
  refused({"--with-description"}, "no descriptions");
  w.scratch.write("data/copy/metadata.yaml", "user_prompt_template: '{input}'\nresponse_field: output\nlevel: x\n");
  refused({}, "level");

  CHECK(run_program(w.scratch, "t2l-eval", {"--data", w.data}).status == 2);
  CHECK(run_program(w.scratch, "t2l-eval", {"--model", w.base}).status == 2);
  const Run r = run_program(w.scratch, "t2l-eval", {"--model", w.base, "--data", "/nowhere"});
  CHECK(r.status == 1);
  CHECK(r.err.find("/nowhere") != std::string::npos);
}

TEST_CASE("words have Porter's stems, with NLTK's extensions") {
  const std::pair<const char*, const char*> words[] = {{"caresses", "caress"},
                                                       {"ponies", "poni"},
                                                       {"ties", "tie"},
                                                       {"cats", "cat"},
                                                       {"agreed", "agre"},
                                                       {"feed", "feed"},
                                                       {"plastered", "plaster"},
                                                       {"bled", "bled"},
                                                       {"motoring", "motor"},
                                                       {"sing", "sing"},
                                                       {"conflated", "conflat"},
                                                       {"troubled", "troubl"},
                                                       {"sized", "size"},
                                                       {"hopping", "hop"},
                                                       {"falling", "fall"},
                                                       {"hissing", "hiss"},
                                                       {"failing", "fail"},
                                                       {"filing", "file"},
                                                       {"happy", "happi"},
                                                       {"enjoy", "enjoy"},
                                                       {"relational", "relat"},
                                                       {"conditional", "condit"},
                                                       {"digitizer", "digit"},
                                                       {"radically", "radic"},
                                                       {"vietnamization", "vietnam"},
                                                       {"operator", "oper"},
                                                       {"hopefulness", "hope"},
                                                       {"sensibility", "sensibl"},
                                                       {"triplicate", "triplic"},
                                                       {"electrical", "electr"},
                                                       {"goodness", "good"},
                                                       {"revival", "reviv"},
                                                       {"allowance", "allow"},
                                                       {"replacement", "replac"},
                                                       {"adoption", "adopt"},
                                                       {"communism", "commun"},
                                                       {"probate", "probat"},
                                                       {"cease", "ceas"},
                                                       {"controll", "control"},
                                                       {"roll", "roll"},
                                                       {"dying", "die"},
                                                       {"skies", "sky"},
                                                       {"innings", "inning"},
                                                       {"dies", "die"},
                                                       {"studied", "studi"},
                                                       {"tied", "tie"},
                                                       {"hopefully", "hope"},
                                                       {"biology", "biolog"},
                                                       {"by", "by"},
                                                       {"yyyy", "yyyi"},
                                                       {"1ed", "1ed"}};
  for (const auto& [word, stem] : words) {
    CAPTURE(word);
    CHECK(porter_stem(word) == stem);
  }
}

TEST_CASE("answers as texts") {
  CHECK(exact_answer(" The  cat.", "the cat"));
  CHECK(exact_answer("**1,000**", "1000.0"));
  CHECK(exact_answer("\uff11\u0662", "12"));
  CHECK(exact_answer("\u201cΟΔΟΣ\u201d", "οδος"));
  CHECK(exact_answer("+", " + "));
  CHECK_FALSE(exact_answer("+", "-"));
  CHECK_FALSE(exact_answer("1e5", "100000"));
  CHECK_FALSE(exact_answer("1,00", "100"));
  CHECK_FALSE(exact_answer("", "a"));
  CHECK(exact_answer("", ""));
  CHECK(rouge_l("the dog runs home", "the cats run home") == Approx(0.75));
  CHECK(rouge_l("A b. c", "a b c d e f") == Approx(2 * 1 * 0.5 / 1.5));
  CHECK(rouge_l("studies", "study") == 1);
  CHECK(rouge_l("", "study") == 0);
  CHECK(rouge_l("北京", "北京") == 1);
  CHECK(rouge_l("北", "北京") == 0);
  std::string many;
  for (int i = 0; i < 40000; ++i) many += "a ";
  check_refused([&] { rouge_l(many, "a"); }, {"40000 words", "32768"});

  const std::string shared = shared_folder() + "/golden/scoring";
  if (!fs::exists(shared)) return skip("no golden scores in ../shared");
  const Scratch scratch;
  for (const std::string kind : {"exact", "rouge"}) {
    REQUIRE(std::system(
                fmt::format("zcat {}/{}.jsonl.gz >{}", quoted(shared), kind, quoted(scratch / "rows")).c_str()) == 0);
    const Run r = run_program(scratch, "t2l-eval", {"score", "--kind", kind, "--outputs", scratch / "rows", "--quiet"});
    INFO(r.err);
    REQUIRE(r.status == 0);
    const std::vector<Json> scored = json_lines(r.out, "stdout");
    CHECK(scored.size() == 2000);
    for (const Json& row : scored) {
      const Json& intended = row["intended"];
      CHECK(row["score"].get<double>() ==
            Approx((kind == "exact" ? intended["score"] : intended["rougeL"]["fmeasure"]).get<double>()));
    }
  }
  REQUIRE(std::system(fmt::format("zcat {}/stems.tsv.gz >{}", quoted(shared), quoted(scratch / "stems")).c_str()) == 0);
  for_lines(read_text_file(scratch / "stems"), [&](std::string_view line, int64_t) {
    const size_t tab = line.find('\t');
    CHECK(porter_stem(std::string(line.substr(0, tab))) == line.substr(tab + 1));
  });
}

TEST_CASE("answers made elsewhere are scored") {
  const Scratch scratch;
  const auto score = [&](const std::vector<std::string>& more, const std::string& input) {
    std::vector<std::string> a{"score", "--outputs", "-", "--quiet"};
    a.insert(a.end(), more.begin(), more.end());
    return run_program(scratch, "t2l-eval", a, input);
  };
  const std::string rows =
      "{\"output\": \"The cat.\", \"reference\": \"the cat\", \"id\": 7}\n\n"
      "{\"output\": \"dog\", \"reference\": [\"cat\", \"dog\"]}\n{\"output\": \"a\", \"reference\": \"b\"}\n";
  Run r = score({"--kind=exact"}, rows);
  INFO(r.err);
  CHECK(r.out ==
        "{\"output\":\"The cat.\",\"reference\":\"the cat\",\"id\":7,\"score\":1.0}\n"
        "{\"output\":\"dog\",\"reference\":[\"cat\",\"dog\"],\"score\":1.0}\n"
        "{\"output\":\"a\",\"reference\":\"b\",\"score\":0.0}\n");
  const Json report = parse_json(score({"--kind=rouge", "--json"}, rows).out, "stdout");
  CHECK(report["examples"] == 3);
  CHECK(report["mean"] == Approx(2. / 3));
  CHECK(report["rows"][1]["score"] == 1);
  const auto refused = [&](const std::vector<std::string>& more, const std::string& input, const std::string& part,
                           int status) {
    r = score(more, input);
    INFO(r.err);
    CHECK(r.status == status);
    CHECK(r.out.empty());
    CHECK(std::count(r.err.begin(), r.err.end(), '\n') == 1);
    CHECK(r.err.find(part) != std::string::npos);
  };
  refused({"--kind=number"}, rows, "not built yet", 2);
  refused({}, rows, "--kind", 2);
  refused({"--kind=exact"}, "\n", "no answer", 1);
  refused({"--kind=exact"}, rows + "{\"output\": 3, \"reference\": \"b\"}\n", "standard input:5", 1);
  refused({"--kind=exact"}, rows + "{\"output\": \"3\", \"reference\": []}\n", "standard input:5", 1);
  refused({"--kind=exact"}, "{\"output\": \"3\"}\n", "reference", 1);
}
