#include "transformer/chat_template.h"

#include <filesystem>

#include "transformer/jinja_interpreter.h"
#include "transformer/jinja_text.h"

namespace t2l {
namespace {

using jinja::Dict;
using jinja::Items;
using jinja::Value;

Value to_value(const OrderedJson& json, int depth = 0) {
  if (depth > jinja::max_value_depth) fail("nested deeper than {} levels", jinja::max_value_depth);
  switch (json.type()) {
    case OrderedJson::value_t::boolean: return json.get<bool>();
    case OrderedJson::value_t::number_integer: return json.get<int64_t>();
    case OrderedJson::value_t::number_unsigned: return json.get<uint64_t>();
    case OrderedJson::value_t::number_float: return json.get<double>();
    case OrderedJson::value_t::string: {
      std::string storage;
      return to_valid_utf8(json.get_ref<const std::string&>(), storage);
    }
    case OrderedJson::value_t::array: {
      Items items;
      for (const auto& item : json) items.push_back(to_value(item, depth + 1));
      return Value::list(std::move(items));
    }
    case OrderedJson::value_t::object: {
      Dict dict;
      for (const auto& [key, value] : json.items()) dict.set(Value(key), to_value(value, depth + 1));
      return dict;
    }
    default: return jinja::None{};
  }
}

void add_variables(Dict& dict, const OrderedJson& variables) {
  for (const auto& [key, value] : variables.items()) dict.set(Value(key), to_value(value));
}

// On one line; what a template says in raise_exception() may be anything.
std::string one_line(std::string_view text) {
  std::string out;
  for_code_points(text.substr(0, jinja::offset_of(text, 300)),
                  [&](char32_t c) { append_code_point(out, jinja::is_printable(c) ? c : U' '); });
  return out;
}

OrderedJson special_tokens_in(const Json& config) {
  OrderedJson out = OrderedJson::object();
  for (const char* name :
       {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
    const auto it = config.find(name);
    if (it == config.end()) continue;
    const Json* token = &*it;
    if (token->is_object() && token->contains("content")) token = &token->at("content");
    if (token->is_string()) out[name] = token->get<std::string>();
  }
  return out;
}

// The template in a config's "chat_template"; empty if it has none.
std::string template_in(const Json& config, const std::string& where) {
  const Object object(config, where);
  const Json* given = object.find("chat_template");
  if (!given) return {};
  if (given->is_string()) return given->get<std::string>();
  if (given->is_array()) {
    for (const Json& one : *given) {
      const Object named(one, where + ": chat_template");
      if (named.get_string("name") == "default") return named.get_string("template");
    }
    fail("{}: none of its chat templates is named 'default'", where);
  }
  fail("{}: 'chat_template' must be a string or a list of named templates", where);
}

}  // namespace

ChatTemplate ChatTemplate::parse(std::string source, const std::string& where, const OrderedJson& variables) {
  ChatTemplate out;
  jinja::Syntax syntax = jinja::parse(source, where);
  jinja::check(syntax, where);
  out.syntax_ = std::make_shared<const jinja::Syntax>(std::move(syntax));
  out.where_ = where;
  out.variables_ = variables;
  return out;
}

ChatTemplate ChatTemplate::load(const std::string& model_dir) {
  const auto file = [&](const char* name) { return model_dir + "/" + name; };
  const auto exists = [&](const char* name) { return std::filesystem::exists(file(name)); };
  Json config = Json::object();
  std::string source, where = file("tokenizer_config.json");
  if (exists("tokenizer_config.json")) {
    config = read_json(where);
    source = template_in(config, where);
  }
  if (source.empty() && exists("chat_template.jinja")) {
    where = file("chat_template.jinja");
    source = read_text_file(where, jinja::max_source_bytes);
  }
  if (source.empty() && exists("chat_template.json")) {
    where = file("chat_template.json");
    source = template_in(read_json(where), where);
  }
  if (source.empty())
    fail(
        "{}: has no chat template, neither in tokenizer_config.json nor as chat_template.jinja; use a chat model, or "
        "give plain "
        "text as the prompt",
        model_dir);
  return parse(std::move(source), where, special_tokens_in(config));
}

OrderedJson ChatTemplate::special_tokens(const std::string& model_dir) {
  for (const char* name : {"/tokenizer_config.json", "/special_tokens_map.json"})
    if (std::filesystem::exists(model_dir + name))
      if (OrderedJson tokens = special_tokens_in(read_json(model_dir + name)); !tokens.empty()) return tokens;
  return OrderedJson::object();
}

std::string ChatTemplate::strip(std::string source) {
  return jinja::replace(jinja::replace(source, "    ", "", ~size_t{0}), "\n", "", ~size_t{0});
}

std::string ChatTemplate::render(const OrderedJson& messages, bool add_generation_prompt,
                                 const OrderedJson& variables) const {
  const jinja::Meter meter;
  std::optional<jinja::Interpreter> interpreter;
  try {
    Dict all;
    all.set("tools", jinja::None{});
    all.set("documents", jinja::None{});
    add_variables(all, variables_);
    add_variables(all, variables);
    all.set("messages", to_value(messages));
    all.set("add_generation_prompt", add_generation_prompt);
    interpreter.emplace(*syntax_, all);
    return interpreter->run();
  } catch (const Error& e) {
    fail("{}:{}: {}", where_, interpreter ? interpreter->line() : 1, one_line(e.what()));
  }
}

}  // namespace t2l
