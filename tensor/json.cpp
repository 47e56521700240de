#include "tensor/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace t2l {
namespace {

// Builds the value as nlohmann's parser, which does not recurse, reports its pieces; refuses what that would accept.
template <class J>
class Builder : public nlohmann::json_sax<J> {
 public:
  using typename nlohmann::json_sax<J>::binary_t;
  Builder(const std::string& file, std::string_view text, int depth) : file_(file), text_(text), most_(depth) {}
  J take() { return std::move(root_); }

  bool null() override { return add(nullptr); }
  bool boolean(bool x) override { return add(x); }
  bool number_integer(int64_t x) override { return add(x); }
  bool number_unsigned(uint64_t x) override { return add(x); }
  bool number_float(double x, const std::string&) override { return add(x); }
  bool string(std::string& s) override { return add(std::move(s)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return open(J::object()); }
  bool start_array(size_t) override { return open(J::array()); }
  bool end_object() override {
    if constexpr (!unique_keys) check_keys(stack_.back()->template get_ref<const typename J::object_t&>());
    return close();
  }
  bool end_array() override { return close(); }
  bool key(std::string& key) override {
    auto& object = stack_.back()->template get_ref<typename J::object_t&>();
    if constexpr (unique_keys) {
      const auto [it, fresh] = object.emplace(std::move(key), nullptr);
      if (!fresh) repeated(it->first);
      slot_ = &it->second;
    } else {  // a vector, whose own emplace() would compare with all before it
      slot_ = &static_cast<std::vector<typename J::object_t::value_type>&>(object)
                   .emplace_back(std::move(key), nullptr)
                   .second;
    }
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& e) override {
    const size_t at = std::min(position ? position - 1 : 0, text_.size());
    const auto line = 1 + std::count(text_.begin(), text_.begin() + ptrdiff_t(at), '\n');
    const size_t start = at ? text_.rfind('\n', at - 1) : std::string_view::npos;  // npos + 1 is 0
    const bool number = e.id == 406;
    fail("{}:{}:{}: {}", file_, line, at - (start + 1) + 1,
         number               ? "a number too large for a double"
         : at >= text_.size() ? "the JSON ends too early; is the file complete?"
                              : "is not valid JSON here; correct it");
  }

 private:
  static constexpr bool unique_keys = std::is_same_v<J, Json>;  // its objects are maps

  [[noreturn]] void repeated(const std::string& key) {
    fail("{}: the key '{}' occurs twice in one object; remove one", file_, printable(key));
  }
  void check_keys(const typename J::object_t& object) {
    std::vector<const std::string*> keys;
    for (const auto& entry : object) keys.push_back(&entry.first);
    std::sort(keys.begin(), keys.end(), [](const auto* a, const auto* b) { return *a < *b; });
    const auto twice =
        std::adjacent_find(keys.begin(), keys.end(), [](const auto* a, const auto* b) { return *a == *b; });
    if (twice != keys.end()) repeated(**twice);
  }

  template <class T>
  J* place(T&& x) {
    if (stack_.empty()) return &(root_ = std::forward<T>(x));
    if (stack_.back()->is_array())
      return &stack_.back()->template get_ref<typename J::array_t&>().emplace_back(std::forward<T>(x));
    return &(*slot_ = std::forward<T>(x));
  }
  template <class T>
  bool add(T&& x) {
    place(std::forward<T>(x));
    return true;
  }
  bool open(J container) {
    if (stack_.size() >= size_t(most_))
      fail("{}: is nested deeper than {} levels; no such file should be", file_, most_);
    stack_.push_back(place(std::move(container)));
    return true;
  }
  bool close() {
    stack_.pop_back();
    return true;
  }

  const std::string& file_;
  std::string_view text_;
  int most_;
  J root_;
  std::vector<J*> stack_;  // the open containers; one is never touched while another within it is open
  J* slot_ = nullptr;      // the value of the last key
};

template <class J>
J parse(std::string_view text, const std::string& file, JsonLimits limits) {
  if (text.size() > limits.bytes)
    fail("{}: has {} bytes, more than the {} such a file may have", file, text.size(), limits.bytes);
  Builder<J> builder(file, text, limits.depth);
  J::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

}  // namespace

Json parse_json(std::string_view text, const std::string& file, JsonLimits limits) {
  return parse<Json>(text, file, limits);
}
OrderedJson parse_ordered_json(std::string_view text, const std::string& file, JsonLimits limits) {
  return parse<OrderedJson>(text, file, limits);
}

Json read_json(const std::string& path, JsonLimits limits) {
  return parse_json(read_text_file(path, limits.bytes), path, limits);
}

Object::Object(const Json& value, std::string where) : value_(&value), where_(std::move(where)) {
  if (!value.is_object()) fail("{}: holds {} where an object with named values belongs", where_, value.type_name());
}

const Json* Object::find(const char* key) const {
  const auto it = value_->find(key);
  return it == value_->end() || it->is_null() ? nullptr : &*it;
}

const Json& Object::need(const char* key) const {
  const Json* x = find(key);
  if (!x) fail("{}: '{}' is missing; add it", where_, key);
  return *x;
}

void Object::wrong(const char* key, const std::string& expected) const {
  const Json& x = need(key);
  const std::string found = x.is_structured() ? x.type_name() : x.dump(-1, ' ', false, Json::error_handler_t::replace);
  fail("{}: '{}' must be {}, not {}", where_, key, expected, printable(found));
}

int64_t Object::get_int(const char* key, int64_t least, int64_t most) const {
  const Json& x = need(key);
  const bool fits = x.is_number_integer() && (!x.is_number_unsigned() || x.get<uint64_t>() <= uint64_t(kMax));
  if (!fits || x.get<int64_t>() < least || x.get<int64_t>() > most)
    wrong(key, least == kMin && most == kMax ? "an integer"
               : most == kMax                ? fmt::format("an integer of at least {}", least)
                                             : fmt::format("an integer from {} to {}", least, most));
  return x.get<int64_t>();
}

double Object::get_float(const char* key) const {
  const Json& x = need(key);
  double value = NAN;
  if (x.is_number()) value = x.get<double>();
  if (x.is_string()) {
    const auto& s = x.get_ref<const std::string&>();
    const char* begin = s.data() + (s.starts_with('+') ? 1 : 0);
    const auto [end, error] = std::from_chars(begin, s.data() + s.size(), value);
    if (error != std::errc() || end != s.data() + s.size()) value = NAN;
  }
  if (!std::isfinite(value)) wrong(key, "a number");
  return value;
}

bool Object::get_bool(const char* key) const {
  const Json& x = need(key);
  if (!x.is_boolean()) wrong(key, "true or false");
  return x.get<bool>();
}

std::string Object::get_string(const char* key) const {
  const Json& x = need(key);
  if (!x.is_string()) wrong(key, "a string");
  return x.get<std::string>();
}

std::vector<std::string> Object::get_strings(const char* key) const {
  const Json& x = need(key);
  if (!x.is_array()) wrong(key, "a list of strings");
  std::vector<std::string> out;
  for (const Json& s : x) {
    if (!s.is_string()) wrong(key, "a list of strings");
    out.push_back(s.get<std::string>());
  }
  return out;
}

Object Object::get_object(const char* key) const { return {need(key), fmt::format("{}: {}", where_, key)}; }

int64_t Object::get_int_or(const char* key, int64_t fallback, int64_t least, int64_t most) const {
  return has(key) ? get_int(key, least, most) : fallback;
}
double Object::get_float_or(const char* key, double fallback) const { return has(key) ? get_float(key) : fallback; }
bool Object::get_bool_or(const char* key, bool fallback) const { return has(key) ? get_bool(key) : fallback; }
std::string Object::get_string_or(const char* key, const std::string& fallback) const {
  return has(key) ? get_string(key) : fallback;
}

}  // namespace t2l
