#include "t2l/task_format.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace t2l {
namespace {

// text.split(separator)[part], for the first two parts.
std::string_view part(std::string_view text, std::string_view separator, int which) {
  const size_t at = text.find(separator);
  if (which == 0) return text.substr(0, at);
  if (at == std::string_view::npos)
    fail("field 'input' has no '{}', as rows of this family have", printable(separator));
  return part(text.substr(at + separator.size()), separator, 0);
}

const Json& field(const Json& row, const char* name) {
  const auto it = row.find(name);
  if (it == row.end() || it->is_null()) fail("has no field '{}'", name);
  return *it;
}

std::string_view text_field(const Json& row, const char* name) {
  const Json& value = field(row, name);
  if (!value.is_string()) fail("field '{}' must be a string", name);
  return value.get_ref<const std::string&>();
}

const Json& list_field(const Json& row, const char* name) {
  const Json& value = field(row, name);
  if (!value.is_array() || value.empty()) fail("field '{}' must be a list that is not empty", name);
  for (const Json& item : value)
    if (!item.is_string()) fail("field '{}' must be a list of strings", name);
  return value;
}

std::string joined(const Json& strings, std::string_view separator) {
  std::string out;
  for (const Json& s : strings) {
    if (&s != &strings.front()) out += separator;
    out += s.get_ref<const std::string&>();
  }
  return out;
}

// What the lol_ family (Super-NaturalInstructions) makes of a definition and its answers.
void set_instruction(Json& row, std::string_view definition, std::string_view problem, const Json& output) {
  std::string task = std::string(definition) + " Please complete the task without any explanation.";
  if (output.size() > 1) task += "\nThe answer should be a comma-separated list of possible completions.";
  row["task_def"] = std::move(task);
  row["problem"] = problem;
  row["answer"] = joined(output, ", ");
}

// preprocessing.py: get_preprocessing_fn
void preprocess(Json& row, const std::string& task) {
  if (task.starts_with("lol_")) {
    const std::string input(text_field(row, "input"));
    const std::string_view definition = part(part(input, "Definition: ", 1), "\n\nPositive Example", 0);
    const std::string_view example = part(input, "Now complete the following example -", 1);
    const Json output = list_field(row, "output");
    set_instruction(row, definition, part(part(example, "Input: ", 1), "\nOutput:", 0), output);
  } else if (task.starts_with("arc_")) {
    Json choices = field(row, "choices");
    if (!choices.is_object()) fail("field 'choices' must be an object");
    const size_t given = list_field(choices, "text").size();
    if (list_field(choices, "label").size() != given) fail("field 'choices' has not as many labels as texts");
    const auto& first = choices["label"][0].get_ref<const std::string&>();
    const bool digits = !first.empty() && first[0] >= '0' && first[0] <= '9';
    for (size_t i = given; i < 4; ++i) {
      choices["text"].push_back("N/A");
      choices["label"].push_back(std::string(1, char((digits ? '1' : 'A') + i)));
    }
    row["choices"] = std::move(choices);
  } else if (task.starts_with("mbpp")) {
    row["assertions"] = joined(list_field(row, "test_list"), "\n");
  } else if (task.find("pwc") != std::string::npos) {
    row["context"] = text_field(row, "input");
    row["query"] = text_field(row, "prompt");
  }
}

bool is_number(std::string_view s) { return !s.empty() && s.find_first_not_of("0123456789") == std::string_view::npos; }

}  // namespace

std::string python_str(const Json& value) {
  switch (value.type()) {
    case Json::value_t::string: return value.get<std::string>();
    case Json::value_t::boolean: return value.get<bool>() ? "True" : "False";
    case Json::value_t::number_integer: return fmt::format("{}", value.get<int64_t>());
    case Json::value_t::number_unsigned: return fmt::format("{}", value.get<uint64_t>());
    case Json::value_t::number_float: {
      std::string s = fmt::format("{}", value.get<double>());
      return s.find_first_of(".en") == std::string::npos ? s + ".0" : s;
    }
    case Json::value_t::null: fail("is null where a text belongs");
    default:
      fail("is a {} where a text belongs; choose one of its values with [..] in the template", value.type_name());
  }
}

FormatString FormatString::parse(std::string_view text) {
  FormatString out;
  Piece piece;
  for (size_t i = 0; i < text.size();) {
    const auto wrong = [&](const char* what) {
      fail("'{}' at character {}: {}", printable(text.substr(i, 40)), i + 1, what);
    };
    const char c = text[i];
    if (c != '{' && c != '}') {
      const size_t end = std::min(text.find_first_of("{}", i), text.size());
      piece.text += text.substr(i, end - i);
      i = end;
      continue;
    }
    if (i + 1 < text.size() && text[i + 1] == c) {
      piece.text += c;
      i += 2;
      continue;
    }
    if (c == '}') wrong("a single }; write }} for the character");
    const size_t end = text.find('}', i);
    if (end == std::string_view::npos) wrong("a { without }; write {{ for the character");
    std::string_view path = text.substr(i + 1, end - i - 1);
    piece.name = path;
    if (path.find_first_of("{!:.") != std::string_view::npos)
      wrong("only {field} and {field[index]} are supported; write {{ for the character {");
    const size_t bracket = std::min(path.find('['), path.size());
    if (bracket == 0 || is_number(path.substr(0, bracket))) wrong("a field needs a name; write {{ for the character {");
    piece.path.emplace_back(std::string(path.substr(0, bracket)));
    for (path.remove_prefix(bracket); !path.empty();) {
      const size_t close = path.find(']');
      if (path[0] != '[' || close == std::string_view::npos || close == 1) wrong("an index is written [3] or [key]");
      const std::string_view index = path.substr(1, close - 1);
      int64_t number = 0;
      if (!is_number(index))
        piece.path.emplace_back(std::string(index));
      else if (std::from_chars(index.data(), index.data() + index.size(), number).ec == std::errc())
        piece.path.emplace_back(number);
      else
        wrong("the index is too large");
      path.remove_prefix(close + 1);
    }
    out.pieces_.push_back(std::move(piece));
    piece = {};
    i = end + 1;
  }
  if (!piece.text.empty()) out.pieces_.push_back(std::move(piece));
  return out;
}

std::string FormatString::format(const Json& row) const {
  std::string out;
  for (const Piece& piece : pieces_) {
    out += piece.text;
    if (piece.path.empty()) continue;
    const Json* at = &row;
    for (const Step& step : piece.path) {
      const Json* next = nullptr;
      if (const auto* key = std::get_if<std::string>(&step); key && at->is_object()) {
        if (const auto it = at->find(*key); it != at->end()) next = &*it;
      } else if (const auto* index = std::get_if<int64_t>(&step)) {
        if (at->is_array() && size_t(*index) < at->size()) next = &(*at)[size_t(*index)];
        // An object's key may look like a number: {scores[1]}.
        if (at->is_object())
          if (const auto it = at->find(std::to_string(*index)); it != at->end()) next = &*it;
      }
      if (!next) fail("has no field '{}', which a template of its task asks for", printable(piece.name));
      at = next;
    }
    try {
      out += python_str(*at);
    } catch (const Error& e) {
      fail("field '{}' {}", printable(piece.name), e.what());
    }
  }
  return out;
}

int64_t RowRange::Bound::row(int64_t rows) const {
  // datasets rounds percents to the closest row, half to even.
  const int64_t at = percent ? int64_t(std::nearbyint(double(value) * double(rows) / 100)) : value;
  return std::clamp(at < 0 ? at + rows : at, int64_t(0), rows);
}

RowRange RowRange::parse(const std::string& text) {
  RowRange out;
  const auto wrong = [&] {
    fail("'{}' is no range of rows; write like train, train[:500] or train[10%:]", printable(text));
  };
  const size_t bracket = std::min(text.find('['), text.size());
  out.split = text.substr(0, bracket);
  if (out.split.empty() || out.split.find_first_of("/\\.") != std::string::npos) wrong();
  if (bracket == text.size()) return out;
  const size_t colon = text.find(':', bracket);
  if (text.back() != ']' || colon == std::string::npos) wrong();
  const auto bound = [&](std::string s, Bound& b) {
    if (s.empty()) return;
    b = {};
    if (s.back() == '%') {
      b.percent = true;
      s.pop_back();
    }
    const auto [stop, error] = std::from_chars(s.data(), s.data() + s.size(), b.value);
    const int64_t most = b.percent ? 100 : int64_t(1) << 40;
    if (error != std::errc() || stop != s.data() + s.size() || b.value > most || b.value < -most) wrong();
    if (b.percent && b.value < 0) b.value += 100;
  };
  bound(text.substr(bracket + 1, colon - bracket - 1), out.begin);
  bound(text.substr(colon + 1, text.size() - colon - 2), out.end);
  return out;
}

TaskFormat TaskFormat::parse(const Json& metadata, const std::string& name, const std::string& where) {
  const Object o(metadata, where);
  TaskFormat out;
  out.family = name;
  if (o.has("descriptions")) out.descriptions = o.get_strings("descriptions");
  const auto get = [&](const char* key, bool needed) {
    const std::string text = needed ? o.get_string(key) : o.get_string_or(key, "");
    try {
      return FormatString::parse(text);
    } catch (const Error& e) {
      fail("{}: '{}': {}", where, key, e.what());
    }
  };
  out.system = get("system_message", false);
  out.user = get("user_prompt_template", true);
  out.prefill = get("assistant_prefill", false);
  out.postfill = get("assistant_postfill", false);
  out.response_field = o.get_string("response_field");
  out.level = o.get_int_or("level", 0, 0, 1 << 20);
  if (o.has("ds_kwargs")) try {
      out.rows = RowRange::parse(o.get_object("ds_kwargs").get_string_or("split", "train"));
    } catch (const Error& e) {
      fail("{}: 'ds_kwargs': {}", where, e.what());
    }
  return out;
}

TaskFormat TaskFormat::of_instructions(const Json& task, const std::string& where) {
  const Object o(task, where);
  TaskFormat out;
  const Json* definition = o.find("Definition");
  if (definition && definition->is_string())
    out.descriptions = {definition->get<std::string>()};
  else
    out.descriptions = o.get_strings("Definition");
  if (out.descriptions.empty()) fail("{}: 'Definition' is empty", where);
  out.user = FormatString::parse("{task_def}\n\n{problem}");
  out.response_field = "answer";
  const Json* instances = o.find("Instances");
  if (!instances || !instances->is_array())
    fail("{}: has no list 'Instances'; is it a Super-NaturalInstructions task?", where);
  return out;
}

Json TaskFormat::instance(const Json& task, size_t i, const std::string& where) {
  const std::string place = fmt::format("{}: Instances[{}]", where, i);
  const Json& instance = task.at("Instances").at(i);
  if (!instance.is_object()) fail("{}: is no object", place);
  const Json& definition = task.at("Definition");
  Json row = Json::object();
  try {
    const std::string_view input = text_field(instance, "input");
    set_instruction(row, definition.is_string() ? definition.get<std::string>() : joined(definition, "\n"), input,
                    list_field(instance, "output"));
  } catch (const Error& e) {
    fail("{}: {}", place, e.what());
  }
  return row;
}

Conversation TaskFormat::format(Json row) const {
  if (!row.is_object()) fail("is {} where an object with named fields belongs", row.type_name());
  preprocess(row, family);
  const auto it = row.find(response_field);
  if (it == row.end() || it->is_null())
    fail("has no field '{}', which its task names as response_field", printable(response_field));
  Conversation out;
  try {
    out.response = python_str(*it);
  } catch (const Error& e) {
    fail("field '{}' {}", printable(response_field), e.what());
  }
  out.system = system.format(row);
  out.user = user.format(row);
  out.assistant = prefill.format(row) + out.response + postfill.format(row);
  return out;
}

}  // namespace t2l
