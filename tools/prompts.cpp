#include "tools/prompts.h"

#include <charconv>
#include <cmath>

namespace t2l {
namespace {

// The value itself, or the elements of a list.
std::vector<Json> one_or_many(const Json& value) {
  if (value.is_array()) return {value.begin(), value.end()};
  return {value};
}

Prompt parse_prompt(std::string_view line, const std::string& where) {
  const Json json = parse_json(line, where);
  const Object o(json, where);
  Prompt p;
  if (int(o.has("text")) + int(o.has("ids")) + int(o.has("messages")) != 1)
    fail("{}: must have exactly one of \"text\", \"ids\" and \"messages\"", where);
  if (o.has("text")) p.text = o.get_string("text");
  if (const Json* ids = o.find("ids")) {
    p.kind = Prompt::Kind::Ids;
    if (!ids->is_array()) fail("{}: \"ids\" must be a list of token ids", where);
    for (const Json& id : *ids) {
      if (!id.is_number_integer() || id < 0 || id > INT32_MAX) fail("{}: \"ids\" must be a list of token ids", where);
      p.ids.push_back(id.get<int32_t>());
    }
  }
  if (o.has("messages")) {
    p.kind = Prompt::Kind::Chat;
    p.messages = parse_ordered_json(line, where).at("messages");  // templates see the order of keys
    p.add_generation_prompt = o.get_bool_or("add_generation_prompt", true);
  }
  if (const Json* adapters = o.find("adapter")) {
    p.has_adapters = true;
    for (const Json& a : one_or_many(*adapters)) {
      if (!a.is_string()) fail("{}: \"adapter\" must be a directory, or a list of them", where);
      p.adapters.emplace_back(a.get<std::string>(), 1.f);
    }
  }
  if (const Json* strengths = o.find("strength")) {
    const std::vector<Json> list = one_or_many(*strengths);
    if (list.size() != p.adapters.size())
      fail("{}: {} strengths for {} adapters; give one for each", where, list.size(), p.adapters.size());
    for (size_t i = 0; i < list.size(); ++i) {
      if (!list[i].is_number() || !std::isfinite(list[i].get<float>()))
        fail("{}: \"strength\" must be a number, or a list of them", where);
      p.adapters[i].second = list[i].get<float>();
    }
  }
  return p;
}

}  // namespace

std::vector<Prompt> parse_prompts(std::string_view text, const std::string& file) {
  std::vector<Prompt> prompts;
  for_lines(text, [&](std::string_view line, int64_t number) {
    if (line.find_first_not_of(" \t\r\v\f") == std::string_view::npos) return;
    const std::string where = fmt::format("{}:{}", file, number);
    try {
      prompts.push_back(parse_prompt(line, where));
    } catch (const Error& e) {
      prompts.emplace_back().error = e.what();
    }
    prompts.back().where = where;
  });
  if (prompts.empty()) fail("{}: holds no prompt", file);
  return prompts;
}

std::vector<int32_t> parse_ids(const std::string& list) {
  std::vector<int32_t> ids;
  for (const char *at = list.data(), *end = at + list.size();;) {
    int32_t id = -1;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc() || id < 0 || (next != end && *next != ','))
      throw UsageError(fmt::format("--ids {}: must be token ids with commas between them", printable(list)));
    ids.push_back(id);
    if (next == end) return ids;
    at = next + 1;
  }
}

}  // namespace t2l
