#include "t2l/yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <sstream>

namespace t2l {
namespace {

constexpr size_t kMaxBytes = size_t(4) << 20, kMaxDepth = 64;
constexpr size_t kMaxCost = size_t(8) << 20;  // characters and nodes, aliases expanded

bool one_of(std::string_view s, std::initializer_list<std::string_view> words) {
  return std::find(words.begin(), words.end(), s) != words.end();
}

// What PyYAML's resolver makes of a plain scalar (YAML 1.1, yaml/resolver.py), without its octal, hexadecimal, binary
// and base-60 numbers, which stay strings.
Json resolve(const std::string& s) {
  if (one_of(s, {"", "~", "null", "Null", "NULL"})) return nullptr;
  if (one_of(s, {"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})) return true;
  if (one_of(s, {"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})) return false;
  const std::string_view digits = std::string_view(s).substr(s[0] == '+' || s[0] == '-' ? 1 : 0);
  if (digits.empty()) return s;
  if (one_of(digits, {".inf", ".Inf", ".INF"})) return s[0] == '-' ? -INFINITY : INFINITY;
  if (one_of(s, {".nan", ".NaN", ".NAN"})) return NAN;

  const size_t whole = std::min(digits.find_first_not_of("0123456789"), digits.size());
  const std::string_view rest = digits.substr(whole);
  const char* begin = s.data() + (s[0] == '+' ? 1 : 0);
  const char* end = s.data() + s.size();
  if (rest.empty() && (digits.size() == 1 || digits[0] != '0')) {
    int64_t i;
    if (std::from_chars(begin, end, i).ec == std::errc()) return i;
  } else {
    // digits '.' digits [e sign digits]
    if (rest.empty() || rest[0] != '.' || (whole == 0 && rest.size() == 1)) return s;
    const std::string_view exponent = rest.substr(std::min(rest.find_first_not_of("0123456789", 1), rest.size()));
    const bool valid = exponent.size() > 2 && (exponent[0] == 'e' || exponent[0] == 'E') &&
                       (exponent[1] == '+' || exponent[1] == '-') &&
                       exponent.find_first_not_of("0123456789", 2) == std::string_view::npos;
    if (!exponent.empty() && !valid) return s;
  }
  double x = 0;
  const auto [stop, error] = std::from_chars(begin, end, x);
  return error == std::errc() && stop == end ? Json(x) : Json(s);
}

class Builder : public YAML::EventHandler {
 public:
  explicit Builder(const std::string& file) : file_(file) {}
  Json take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override { add(mark, anchor, nullptr, 1); }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& text) override {
    check_tag(mark, tag);
    if (wants_key()) return key(mark, text, tag);
    add(mark, anchor, tag == "!" ? Json(text) : resolve(text), 1 + text.size());
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto it = anchors_.find(anchor);
    if (it == anchors_.end()) wrong(mark, "an alias refers to what contains it");
    charge(mark, it->second.second);
    put(mark, YAML::NullAnchor, it->second.first, it->second.second);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, Json::array());
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, Json::object());
  }
  void OnSequenceEnd() override { close(); }
  void OnMapEnd() override { close(); }

  [[noreturn]] void wrong(const YAML::Mark& mark, const std::string& what) const {
    fail("{}:{}: {}", file_, mark.line + 1, what);
  }

 private:
  struct Open {
    Json value;
    YAML::Mark mark;
    YAML::anchor_t anchor;
    size_t cost = 1;
    std::string key;
    bool has_key = false;
  };

  bool wants_key() const { return !open_.empty() && open_.back().value.is_object() && !open_.back().has_key; }
  void check_tag(const YAML::Mark& mark, const std::string& tag) const {
    if (!tag.empty() && tag != "?" && tag != "!")
      wrong(mark, fmt::format("refuses the tag '{}'; write plain values", printable(tag)));
  }
  void charge(const YAML::Mark& mark, size_t cost) {
    if ((total_ += cost) > kMaxCost) wrong(mark, "holds too much, or its aliases unfold to too much");
  }
  void key(const YAML::Mark& mark, const std::string& text, const std::string& tag) {
    Open& o = open_.back();
    if (text == "<<" && tag != "!") wrong(mark, "merge keys are not supported; write the values out");
    if (o.value.contains(text)) wrong(mark, fmt::format("the key '{}' occurs twice; remove one", printable(text)));
    charge(mark, 1 + text.size());
    o.cost += 1 + text.size();
    o.key = text;
    o.has_key = true;
  }
  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, Json value) {
    check_tag(mark, tag);
    if (wants_key()) wrong(mark, "a key must be a plain value");
    if (open_.size() >= kMaxDepth) wrong(mark, fmt::format("is nested deeper than {} levels", kMaxDepth));
    charge(mark, 1);
    open_.push_back({std::move(value), mark, anchor, 1, {}, false});
  }
  void close() {
    Open o = std::move(open_.back());
    open_.pop_back();
    if (!o.value.is_object() || !o.has_key) return put(o.mark, o.anchor, std::move(o.value), o.cost);
    wrong(o.mark, "a key has no value");
  }
  void add(const YAML::Mark& mark, YAML::anchor_t anchor, Json value, size_t cost) {
    charge(mark, cost);
    put(mark, anchor, std::move(value), cost);
  }
  void put(const YAML::Mark& mark, YAML::anchor_t anchor, Json value, size_t cost) {
    if (wants_key()) wrong(mark, "a key must be a plain value");
    if (anchor != YAML::NullAnchor) {
      charge(mark, cost);  // the anchor's own copy
      anchors_[anchor] = {value, cost};
    }
    if (open_.empty()) {
      root_ = std::move(value);
      return;
    }
    Open& o = open_.back();
    o.cost += cost;
    if (o.value.is_array())
      o.value.push_back(std::move(value));
    else
      o.value[o.key] = std::move(value);
    o.has_key = false;
  }

  const std::string& file_;
  Json root_;
  std::vector<Open> open_;
  std::map<YAML::anchor_t, std::pair<Json, size_t>> anchors_;  // with what a copy costs
  size_t total_ = 0;
};

}  // namespace

Json parse_yaml(std::string_view text, const std::string& file) {
  if (text.size() > kMaxBytes)
    fail("{}: has {} bytes, more than the {} such a file may have", file, text.size(), kMaxBytes);
  if (!valid_utf8(text)) fail("{}: is not UTF-8 text", file);
  const auto control = [](unsigned char c) { return (c < 0x20 && c != '\t' && c != '\n' && c != '\r') || c == 0x7f; };
  if (const auto it = std::find_if(text.begin(), text.end(), control); it != text.end())
    fail("{}:{}: has a control character; it is no YAML text", file, 1 + std::count(text.begin(), it, '\n'));

  // yaml-cpp takes the end of the file for a missing closing quote after a line break, but not the end of a document.
  std::string document(text);
  const size_t last = text.find_last_not_of(" \t");
  if (last != std::string_view::npos && (text[last] == '\n' || text[last] == '\r'))
    document += text.back() == '\n' ? "...\n" : "\n...\n";
  Builder builder(file);
  try {
    std::istringstream in(document);
    YAML::Parser parser(in);
    parser.HandleNextDocument(builder);
    Builder second(file);
    if (parser.HandleNextDocument(second)) fail("{}: holds several documents; give each its own file", file);
  } catch (const YAML::Exception& e) {
    fail("{}:{}: {}; correct the YAML there", file, e.mark.line + 1, printable(e.msg));
  }
  return builder.take();
}

Json read_yaml(const std::string& path) { return parse_yaml(read_text_file(path, kMaxBytes), path); }

}  // namespace t2l
