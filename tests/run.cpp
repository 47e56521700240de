// t2l-run as a user runs it: what it prints and writes, many prompts with an adapter each, its exit status, and that
// bad input gives one line. The models are those of tests/golden/decoders, the tokenizer one of tests/golden.
#include <catch2/catch.hpp>
#include <filesystem>

#include "t2l/apply_adapter.h"
#include "t2l/checkpoint.h"
#include "tensor/json.h"
#include "tests/support.h"
#include "transformer/generation.h"
#include "transformer/tokenizer.h"

using namespace t2l;
using namespace test;
namespace fs = std::filesystem;

namespace {

const std::string kModel = "tests/golden/decoders/llama3";

Run run(const Scratch& scratch, const std::vector<std::string>& arguments, const std::string& input = "") {
  return run_program(scratch, "t2l-run", arguments, input);
}

std::vector<Json> lines(const std::string& text) { return json_lines(text, "stdout"); }

void refused(const Scratch& scratch, std::vector<std::string> arguments, const std::string& names, int status = 1,
             const std::string& input = "") {
  arguments.push_back("--quiet");
  const Run r = run(scratch, arguments, input);
  INFO(r.err);
  CHECK(r.status == status);
  CHECK(r.err.starts_with("error: "));
  CHECK(std::count(r.err.begin(), r.err.end(), '\n') == 1);
  CHECK(r.err.find(names) != std::string::npos);
}

std::string joined(const std::vector<int32_t>& ids) { return fmt::format("{}", fmt::join(ids, ",")); }

// A model with a vocabulary of 61 and a byte-level tokenizer cut down to it: enough to see text come and go.
std::string model_with_tokenizer(const Scratch& scratch) {
  const std::string dir = scratch / "model";
  fs::copy(kModel, dir);
  const Json post{
      {"type", "TemplateProcessing"},
      {"single", Json::array({Json{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}},
                              Json{{"Sequence", {{"id", "A"}, {"type_id", 0}}}}})},
      {"pair", Json::array({Json{{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
                            Json{{"Sequence", {{"id", "B"}, {"type_id", 1}}}}})},
      {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", Json::array({1})}, {"tokens", Json::array({"<s>"})}}}}}};
  const Json tokenizer = letters_tokenizer({{0, "<pad>"}, {1, "<s>"}, {2, "</s>"}, {60, "<end>"}}, post);
  scratch.write("model/tokenizer.json", tokenizer.dump());
  scratch.write("model/tokenizer_config.json",
                Json{{"bos_token", "<s>"},
                     {"chat_template",
                      "{{ bos_token }}{% for m in messages %}{% if m.role == 'robot' %}{{ raise_exception('no robots') "
                      "}}{% endif %}"
                      "{{ m.role }}! {{ m.content }}.{% endfor %}{% if add_generation_prompt %}bot!{% endif %}"}}
                    .dump());
  return dir;
}

}  // namespace

TEST_CASE("ids in, ids out") {
  const Scratch scratch;
  const SafeTensors golden = SafeTensors::open(kModel + "/golden.safetensors");
  const auto ids = golden.get("ids_1").to_vector<int32_t>(), greedy = golden.get("greedy_1").to_vector<int32_t>();
  const std::vector<std::string> base{"--model",          kModel, "--ids",       joined(ids),
                                      "--max-new-tokens", "24",   "--ignore-eos"};
  Run r = run(scratch, base);
  INFO(r.err);
  REQUIRE(r.status == 0);
  CHECK(r.out == joined(greedy) + "\n");
  CHECK(r.err.find("tokens/s") != std::string::npos);

  std::vector<std::string> json = base;
  json.insert(json.end(), {"--json", "--quiet", "--temperature=0"});
  r = run(scratch, json);
  REQUIRE(r.status == 0);
  CHECK(r.err.empty());
  const Json report = parse_json(r.out, "stdout");
  CHECK(report["ids"] == greedy);
  CHECK_FALSE(report.contains("text"));
  CHECK(report["dtype"] == "f32");
  CHECK(report["prompt_tokens"] == ids.size());

  // An end token ends it, and is the last id.
  Json config = read_json(kModel + "/generation_config.json");
  config["eos_token_id"] = {59, greedy[3]};
  fs::copy(kModel, scratch / "model");
  scratch.write("model/generation_config.json", config.dump());
  r = run(scratch, {"--model", scratch / "model", "--ids", joined(ids)});
  const auto end = std::find(greedy.begin(), greedy.end(), greedy[3]);
  CHECK(r.out == joined({greedy.begin(), end + 1}) + "\n");
}

TEST_CASE("logits and adapters") {
  const Scratch scratch;
  const SafeTensors golden = SafeTensors::open(kModel + "/golden.safetensors");
  const auto ids = golden.get("ids_2").to_vector<int32_t>();
  const std::string adapter = kModel + "/adapter", out = scratch / "logits.safetensors";
  const std::vector<std::string> base{"--model", kModel, "--ids", joined(ids), "--logits", out};
  const auto logits = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    const Run r = run(scratch, more);
    INFO(r.err);
    REQUIRE(r.status == 0);
    return SafeTensors::open(out).get("logits").clone();
  };
  check_near(logits({}), values(golden.get("logits_2")), 5e-6);
  check_near(logits({"--adapter", adapter}), values(golden.get("adapted_2")), 5e-6);
  check_near(logits({"--adapter", adapter, "--strength=0"}), values(golden.get("logits_2")), 5e-6);
  check_near(logits({"--adapter", adapter, "--adapter", adapter, "--strength", "0.25", "--strength=0.75"}),
             values(golden.get("adapted_2")), 5e-6);

  // A different adapter per sequence, rows that fail among them.
  std::string prompts;
  for (int i = 0; i < 3; ++i) {
    const auto row = golden.get(fmt::format("ids_{}", i)).to_vector<int32_t>();
    prompts += Json{{"ids", row}, {"adapter", adapter}}.dump() + "\n\n";
    prompts += Json{{"ids", row}}.dump() + "\n";
    prompts += Json{{"ids", row}, {"adapter", {adapter, adapter}}, {"strength", {2, -1}}}.dump() + "\n";
    prompts += i == 1 ? "{\"ids\": [99]}\nno JSON\n{\"ids\": [1], \"adapter\": \"/nowhere\"}\n{\"text\": \"a\"}\n" : "";
  }
  const Run r = run(scratch, {"--model", kModel, "--prompts", "-", "--logits", out, "--quiet"}, prompts);
  CHECK(r.status == 1);
  CHECK(r.err.find("4 of 13 prompts failed, the first: ") != std::string::npos);
  const SafeTensors all = SafeTensors::open(out);
  CHECK(all.names().size() == 9);
  for (int i = 0, row = 0; i < 3; ++i) {
    const Values adapted = values(golden.get(fmt::format("adapted_{}", i)));
    check_near(all.get(fmt::format("logits_{}", row)), adapted, 5e-6);
    check_near(all.get(fmt::format("logits_{}", row + 1)), values(golden.get(fmt::format("logits_{}", i))), 5e-6);
    check_near(all.get(fmt::format("logits_{}", row + 2)), adapted, 5e-6);
    row += i == 1 ? 7 : 3;
  }
  const Run text = run(scratch, {"--model", kModel, "--prompts", "-", "--max-new-tokens", "4", "--quiet"}, prompts);
  CHECK(text.status == 1);
  const std::vector<Json> rows = lines(text.out);
  REQUIRE(rows.size() == 13);
  for (const int bad : {6, 7, 8, 9}) CHECK(rows[size_t(bad)].contains("error"));
  CHECK(rows[0]["ids"] == rows[2]["ids"]);
  CHECK(rows[0]["ids"].size() <= 4);
}

TEST_CASE("text, chats and embeddings") {
  const Scratch scratch;
  const std::string model = model_with_tokenizer(scratch);
  const Tokenizer tokenizer = Tokenizer::load(model);
  Run r = run(scratch, {"--model", model, "--tokenize", "--prompt", "ab c"});
  CHECK(r.out == "1,3,4,59,5\n");
  r = run(scratch, {"--model", model, "--tokenize", "--prompt", "ab c", "--no-special-tokens", "--json"});
  CHECK(parse_json(r.out, "stdout")["ids"] == std::vector<int>{3, 4, 59, 5});
  r = run(scratch, {"--model", model, "--render", "--chat", "hi"});
  CHECK(r.out == "<s>user! hi.bot!\n");
  r = run(scratch, {"--model", model, "--render", "--chat", "hi", "--system", "so", "--json"});
  CHECK(parse_json(r.out, "stdout")["text"] == "<s>system! so.user! hi.bot!");
  const std::string chats = R"({"messages": [{"role": "user", "content": "é"}], "add_generation_prompt": false})"
                            "\n"
                            R"({"messages": [{"role": "robot", "content": "x"}]})"
                            "\n"
                            R"({"text": "a"})"
                            "\n";
  r = run(scratch, {"--model", model, "--render", "--prompts", "-"}, chats);
  CHECK(r.status == 1);
  std::vector<Json> rows = lines(r.out);
  REQUIRE(rows.size() == 3);
  CHECK(rows[0]["text"] == "<s>user! é.");
  CHECK(r.out.find("\\u00e9") != std::string::npos);
  CHECK(rows[1]["error"].get<std::string>().find("no robots") != std::string::npos);
  CHECK(rows[2]["error"].get<std::string>().find("--render is for chats") != std::string::npos);
  // The template writes the special tokens itself: they are not added again.
  r = run(scratch, {"--model", model, "--tokenize", "--chat", "hi"});
  CHECK(r.out == joined(tokenizer.encode("<s>user! hi.bot!", false)) + "\n");

  // Streamed text is the decoded text.
  const std::vector<std::string> generate{"--model",          model, "--prompt",    "ab c",
                                          "--max-new-tokens", "12",  "--ignore-eos"};
  r = run(scratch, generate);
  REQUIRE(r.status == 0);
  std::vector<std::string> json = generate;
  json.push_back("--json");
  const Json report = parse_json(run(scratch, json).out, "stdout");
  CHECK(report["ids"].size() == 12);
  CHECK(report["text"].get<std::string>() + "\n" == r.out);
  CHECK(report["text"] == tokenizer.decode(report["ids"].get<std::vector<int32_t>>(), true));
  // Seeds: the same text again, and another one.
  std::vector<std::string> sampled = json;
  sampled.insert(sampled.end(), {"--temperature=3", "--top-p=0.9", "--top-k=40", "--seed=5"});
  const Json first = parse_json(run(scratch, sampled).out, "stdout");
  CHECK(parse_json(run(scratch, sampled).out, "stdout")["ids"] == first["ids"]);
  sampled.back() = "--seed=6";
  CHECK(parse_json(run(scratch, sampled).out, "stdout")["ids"] != first["ids"]);

  // The last token's hidden state, after the final norm.
  r = run(scratch, {"--model", model, "--prompt", "ab c", "--embed", scratch / "e.safetensors"});
  REQUIRE(r.status == 0);
  const Decoder decoder = Decoder::load(model);
  const NoGrad no_grad;
  const Tensor hidden = decoder.hidden({.ids = {{1, 3, 4, 59, 5}}}).value;
  check_near(SafeTensors::open(scratch / "e.safetensors").get("embedding"), values(hidden.slice(4, 5)), 1e-6);
}

TEST_CASE("an adapter generated on the fly is the one that t2l-gen writes") {
  const Scratch scratch;
  const std::string net = "tests/golden/hypernet/L_sft";
  // The base model's shapes, with weights of its own.
  const DecoderConfig config = [&] {
    Json c = read_json(net + "/base/config.json");
    c.update({{"vocab_size", 61}, {"rms_norm_eps", 1e-6}, {"hidden_act", "silu"}});
    scratch.write("base/config.json", c.dump());
    return DecoderConfig::load(scratch / "base");
  }();
  Decoder base(config, DecoderOptions{});
  base.initialise(3);
  NamedTensors tensors;
  for (const Decoder::Parameter& p : base.parameters()) tensors.emplace_back(p.name, p.value->value);
  write_safetensors(scratch / "base/model.safetensors", tensors);
  const std::string embedder = scratch / "encoder";
  {
    // Any encoder of the right width: a decoder whose hidden size is the task dimension.
    Json c = read_json(kModel + "/config.json");
    const TrainedHypernet trained = load_hypernet(net, {.module_order = {}, .base = scratch / "base"});
    const int64_t dim = trained.net.config().task_dim;
    c.update({{"hidden_size", dim}, {"head_dim", 8}});
    model_with_tokenizer(scratch);
    fs::copy(scratch / "model", embedder);
    scratch.write("encoder/config.json", c.dump());
    Decoder d(DecoderConfig::load(embedder), DecoderOptions{});
    d.initialise(4);
    NamedTensors weights;
    for (const Decoder::Parameter& p : d.parameters()) weights.emplace_back(p.name, p.value->value);
    fs::remove(embedder + "/model.safetensors");
    write_safetensors(embedder + "/model.safetensors", weights);
  }
  const std::vector<std::string> common{"--hypernet", net, "--task", "add the numbers", "--encoder", embedder};
  std::vector<std::string> gen = common;
  gen.insert(gen.end(), {"--base", scratch / "base", "--out", scratch / "adapter"});
  Run r = run_program(scratch, "t2l-gen", gen);
  INFO(r.err);
  REQUIRE(r.status == 0);
  const auto logits = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--model", scratch / "base", "--ids", "5,17,3,29", "--logits", scratch / "l"});
    const Run made = run(scratch, arguments);
    INFO(made.err);
    REQUIRE(made.status == 0);
    return values(SafeTensors::open(scratch / "l").get("logits"));
  };
  const Values with = logits(common);
  CHECK(with == logits({"--adapter", scratch / "adapter"}));
  CHECK(with != logits({}));
}

TEST_CASE("bad use and bad files") {
  const Scratch scratch;
  const std::string model = model_with_tokenizer(scratch);
  refused(scratch, {"--prompt", "x"}, "--model is missing", 2);
  refused(scratch, {"--model", model}, "exactly one of", 2);
  refused(scratch, {"--model", model, "--prompt", "x", "--ids", "1"}, "exactly one of", 2);
  refused(scratch, {"--model", model, "--ids", "1,x"}, "--ids 1,x", 2);
  refused(scratch, {"--model", model, "--ids", "1,"}, "--ids 1,", 2);
  refused(scratch, {"--model", model, "--prompt", "x", "--temperature", "-1"}, "--temperature", 2);
  refused(scratch, {"--model", model, "--prompt", "x", "--temperature", "nan"}, "--temperature", 2);
  refused(scratch, {"--model", model, "--prompt", "x", "--top-p", "0"}, "--top-p", 2);
  refused(scratch, {"--model", model, "--prompt", "x", "--max-new-tokens", "0"}, "--max-new-tokens", 2);
  refused(scratch, {"--model", model, "--prompt", "x", "--strength", "1"}, "--strength", 2);
  refused(scratch,
          {"--model", model, "--prompt", "x", "--adapter", model + "/adapter", "--strength", "1", "--strength", "2"},
          "2 --strength for 1 adapters", 2);
  refused(scratch, {"--model", model, "--prompt", "x", "--hypernet", "y"}, "go together", 2);
  refused(scratch, {"--model", model, "--tokenize", "--prompt", "x", "--adapter", "y"}, "no effect", 2);
  refused(scratch, {"--model", "/nowhere/at all", "--prompt", "x"}, "/nowhere/at all");
  refused(scratch, {"--model", model, "--ids", "61"}, "token id 61");
  refused(scratch, {"--model", model, "--prompt", "x", "--adapter", "/nowhere"}, "/nowhere");
  refused(scratch, {"--model", kModel, "--prompt", "x"}, "tokenizer.json");
  refused(scratch, {"--model", kModel, "--chat", "x"}, "tokenizer.json");
  refused(scratch, {"--model", model, "--prompts", "-", "--render"}, "holds no prompt");
  refused(scratch, {"--model", model, "--prompt", "x", "--adapter", "tests/golden/decoders/qwen3/adapter"},
          "trained for");
  scratch.write("model/config.json", R"({"model_type": "llama"})");
  refused(scratch, {"--model", model, "--ids", "1"}, "config.json");
  scratch.write("model/config.json", "{");
  refused(scratch, {"--model", model, "--ids", "1"}, "config.json");
}
