// The small world on disk: folders of tasks as t2l-train reads them, and the folder of the base model.
#include <filesystem>

#include "tensor/json.h"
#include "tools/demo/world.h"

namespace t2l::world {
namespace {

namespace fs = std::filesystem;

constexpr int kNumbers = 21;  // 0 to 20: what additions and doubling can give

std::string quoted(const std::string& text) { return Json(text).dump(); }  // JSON's strings are YAML's

void write_task(const Task& task, const std::vector<std::string>& descriptions, const std::vector<Row>& train,
                const std::vector<Row>& test, const std::string& folder) {
  const std::string dir = folder + "/" + task.name;
  fs::create_directories(dir);
  std::string metadata = "descriptions:\n";
  for (const std::string& d : descriptions) metadata += "- " + quoted(d) + "\n";
  metadata += "user_prompt_template: \"{input}\"\nresponse_field: output\n";
  metadata += fmt::format("level: {}\nrevealed: {}\n", task.steps.size(), task.revealed);
  write_text_file(dir + "/metadata.yaml", metadata);
  const auto write_rows = [&](const std::string& name, const std::vector<Row>& rows) {
    if (rows.empty()) return;
    std::string text;
    for (const Row& r : rows)
      text += fmt::format("{{\"input\": {}, \"output\": {}}}\n", quoted(r.input), quoted(r.output));
    write_text_file(dir + "/" + name, text);
  };
  write_rows("train.jsonl", train);
  write_rows("test.jsonl", test);
}

Json listed(const std::vector<Task>& tasks, bool reported_only = false) {
  Json out = Json::array();
  for (const Task& t : tasks) {
    if (reported_only && t.test.empty()) continue;
    Json steps = Json::array();
    for (const Primitive& p : t.steps) steps.push_back(p.name());
    out.push_back({{"name", t.name}, {"steps", steps}, {"revealed", t.revealed}});
  }
  return out;
}

// ---- the tokenizer: WordPiece in which every word of the world is one token, and single characters spell the rest
// ----

std::vector<std::string> vocabulary_of(const World& world) {
  std::vector<std::string> out = {"<pad>", "<unk>", "<bos>", "<eos>", "<sep>"};
  for (char c = '!'; c <= '~'; ++c) out.emplace_back(1, c);
  for (char c = '!'; c <= '~'; ++c)
    if (std::isalnum(static_cast<unsigned char>(c))) out.push_back(std::string("##") + c);
  for (int n = 10; n < kNumbers; ++n) out.push_back(std::to_string(n));
  std::set<std::string> known(out.begin(), out.end());
  for (const std::string& word : world.words)
    if (known.insert(word).second) out.push_back(word);
  return out;
}

OrderedJson tokenizer_of(const std::vector<std::string>& vocabulary) {
  OrderedJson vocab = OrderedJson::object(), added = OrderedJson::array();
  for (size_t i = 0; i < vocabulary.size(); ++i) {
    vocab[vocabulary[i]] = i;
    if (i < 5)
      added.push_back({{"id", i},
                       {"content", vocabulary[i]},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", true}});
  }
  const auto token = [](const char* id) { return OrderedJson{{"SpecialToken", {{"id", id}, {"type_id", 0}}}}; };
  const auto text = [](const char* id, int type) { return OrderedJson{{"Sequence", {{"id", id}, {"type_id", type}}}}; };
  const OrderedJson bos = {
      {"id", "<bos>"}, {"ids", OrderedJson::array({2})}, {"tokens", OrderedJson::array({"<bos>"})}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added},
          {"normalizer",
           {{"type", "BertNormalizer"},
            {"clean_text", true},
            {"handle_chinese_chars", true},
            {"strip_accents", true},
            {"lowercase", false}}},
          {"pre_tokenizer", {{"type", "BertPreTokenizer"}}},
          {"post_processor",
           {{"type", "TemplateProcessing"},
            {"single", OrderedJson::array({token("<bos>"), text("A", 0)})},
            {"pair", OrderedJson::array({token("<bos>"), text("A", 0), text("B", 1)})},
            {"special_tokens", {{"<bos>", bos}}}}},
          {"decoder", {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}}},
          {"model",
           {{"type", "WordPiece"},
            {"unk_token", "<unk>"},
            {"continuing_subword_prefix", "##"},
            {"max_input_chars_per_word", 100},
            {"vocab", vocab}}}};
}

// A description is the system's turn, and every example before the last a turn of its own; the text ends only once.
constexpr const char* kChatTemplate =
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ ' ' + message['content'] if message['content'] else '' }}"
    "{% elif message['role'] == 'user' %}{{ ' <sep> ' + message['content'] + ' =' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] }}"
    "{% if loop.last %}{{ ' ' + eos_token }}{% endif %}"
    "{% else %}{{ raise_exception('a turn is of system, user or assistant') }}{% endif %}"
    "{% endfor %}";

void write_base(const World& world, const BaseShape& shape, const std::string& dir) {
  fs::create_directories(dir);
  const auto write = [&](const char* name, const OrderedJson& json) {
    write_text_file(dir + "/" + name, json.dump(2) + "\n");
  };
  const std::vector<std::string> vocabulary = vocabulary_of(world);
  const int heads = shape.hidden / shape.head_dim;
  write("config.json", {{"architectures", OrderedJson::array({"LlamaForCausalLM"})},
                        {"model_type", "llama"},
                        {"vocab_size", vocabulary.size()},
                        {"hidden_size", shape.hidden},
                        {"intermediate_size", shape.intermediate},
                        {"num_hidden_layers", shape.layers},
                        {"num_attention_heads", heads},
                        {"num_key_value_heads", heads},
                        {"head_dim", shape.head_dim},
                        {"hidden_act", "silu"},
                        {"max_position_embeddings", 512},
                        {"rms_norm_eps", 1e-6},
                        {"rope_theta", 10000.0},
                        {"tie_word_embeddings", true},
                        {"attention_bias", false},
                        {"mlp_bias", false},
                        {"initializer_range", 0.04},
                        {"pad_token_id", 0},
                        {"bos_token_id", 2},
                        {"eos_token_id", 3},
                        {"gist_token_id", 4},
                        {"torch_dtype", "float32"}});
  write("generation_config.json",
        {{"bos_token_id", 2}, {"eos_token_id", 3}, {"pad_token_id", 0}, {"do_sample", false}, {"max_new_tokens", 24}});
  write("tokenizer.json", tokenizer_of(vocabulary));
  OrderedJson tokens = {{"bos_token", "<bos>"}, {"eos_token", "<eos>"}, {"pad_token", "<pad>"}, {"unk_token", "<unk>"}};
  tokens["additional_special_tokens"] = OrderedJson::array({"<sep>"});
  write("special_tokens_map.json", tokens);
  OrderedJson config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                        {"model_max_length", 512},
                        {"clean_up_tokenization_spaces", false},
                        {"chat_template", kChatTemplate}};
  config.update(tokens);
  write("tokenizer_config.json", config);
}

}  // namespace

void write_world(const World& world, const BaseShape& base, const std::string& dir) {
  for (const Task& t : world.train) {
    write_task(t, t.descriptions, t.train, {}, dir + "/train");
    if (!t.test.empty()) write_task(t, t.unseen, t.train, t.test, dir + "/test/seen");
  }
  for (const Task& t : world.valid) write_task(t, t.descriptions, t.train, t.test, dir + "/valid");
  for (const Task& t : world.compositions) write_task(t, t.descriptions, t.train, t.test, dir + "/test/compositions");
  for (const Task& t : world.parameters) write_task(t, t.descriptions, t.train, t.test, dir + "/test/parameters");
  write_base(world, base, dir + "/base");
  const Options& o = world.options;
  const OrderedJson index = {{"seed", o.seed},
                             {"rows", o.rows},
                             {"test_rows", o.test_rows},
                             {"descriptions", o.descriptions},
                             {"words", world.words.size()},
                             {"held_out", Json(world.held_out)},
                             {"train", listed(world.train)},
                             {"valid", listed(world.valid)},
                             {"test",
                              {{"compositions", listed(world.compositions)},
                               {"parameters", listed(world.parameters)},
                               {"seen", listed(world.train, true)}}}};
  write_text_file(dir + "/world.json", index.dump(1) + "\n");
}

}  // namespace t2l::world
