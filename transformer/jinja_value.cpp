#include "transformer/jinja_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "transformer/jinja_text.h"

namespace t2l::jinja {

// ---- limits ---------------------------------------------------------------------------------------------------------

thread_local Meter* Meter::current_ = nullptr;

Meter::Meter() : outer_(current_) { current_ = this; }
Meter::~Meter() { current_ = outer_; }

void Meter::steps(size_t n) {
  if (!current_) return;
  if (n > current_->steps_) fail("the template takes too long: more than 20 million steps");
  current_->steps_ -= n;
}

void Meter::bytes(size_t n) {
  if (!current_) return;
  if (n > max_value_bytes) fail("the template makes a value of more than {} MiB", max_value_bytes >> 20);
  if (n > current_->bytes_) fail("the template takes too much memory: more than 512 MiB");
  current_->bytes_ -= n;
}

Meter::Depth::Depth() {
  if (++current_->depth_ > max_run_depth) {
    --current_->depth_;
    fail("the template recurses deeper than {} levels", max_run_depth);
  }
}

Meter::Depth::~Depth() { --current_->depth_; }

size_t product(size_t a, size_t b) {
  size_t p;
  return __builtin_mul_overflow(a, b, &p) ? std::numeric_limits<size_t>::max() : p;
}

// ---- values ---------------------------------------------------------------------------------------------------------

Value::Value(std::string text, bool safe) {
  Meter::bytes(text.size() + sizeof(Text));
  const bool ascii = is_ascii(text);
  data_ = std::make_shared<const Text>(Text{std::move(text), ascii, safe});
}

namespace {

std::shared_ptr<const Sequence> make_sequence(Items items, bool group) {
  Meter::bytes(product(items.size(), sizeof(Value)) + sizeof(Sequence));
  int depth = 0;
  for (const Value& v : items) depth = std::max(depth, v.depth());
  if (depth >= max_value_depth) fail("lists within lists, more than {} levels", max_value_depth);
  return std::make_shared<const Sequence>(Sequence{std::move(items), depth + 1, group});
}

}  // namespace

Value Value::list(Items items) { return Value(List{make_sequence(std::move(items), false)}); }
Value Value::tuple(Items items, bool group) { return Value(Tuple{make_sequence(std::move(items), group)}); }
Value::Value(Dict dict) : data_(std::make_shared<const Dict>(std::move(dict))) {}

int Value::depth() const {
  if (is_sequence()) return sequence().depth;
  return is(Kind::Dict) ? dict().depth() : 0;
}

const void* Value::identity() const {
  switch (kind()) {
    case Kind::List:
    case Kind::Tuple: return &sequence();
    case Kind::Dict: return &dict();
    case Kind::Object: return object();
    default: return nullptr;
  }
}

const char* Value::type() const {
  static constexpr const char* names[] = {"Undefined", "NoneType", "bool",  "int", "float",
                                          "str",       "list",     "tuple", "dict"};
  return is(Kind::Object) ? object()->type() : names[data_.index()];
}

const Value& Value::defined() const {
  if (const auto* u = std::get_if<Undefined>(&data_)) fail("{}", u->why ? *u->why : "the value is undefined");
  return *this;
}

bool Value::truth() const {
  switch (kind()) {
    case Kind::Undefined:
    case Kind::None: return false;
    case Kind::Bool: return std::get<bool>(data_);
    case Kind::Int: return integer() != 0;
    case Kind::Float: return real() != 0;
    case Kind::String: return !string().empty();
    case Kind::List:
    case Kind::Tuple: return !items().empty();
    case Kind::Dict: return dict().size() != 0;
    case Kind::Object: return object()->truth();
  }
  return false;
}

namespace {

int sign(bool less_than, bool greater) { return greater - less_than; }

// -1, 0, 1, as exact arithmetic has it; a NaN is below all numbers.
int compare_numbers(const Value& a, const Value& b) {
  if (a.is_integer() && b.is_integer()) return sign(a.integer() < b.integer(), a.integer() > b.integer());
  if (!a.is_integer() && !b.is_integer()) {
    const double x = a.real(), y = b.real();
    if (std::isnan(x) || std::isnan(y)) return sign(std::isnan(x) && !std::isnan(y), std::isnan(y) && !std::isnan(x));
    return sign(x<y, x> y);
  }
  if (!a.is_integer()) return -compare_numbers(b, a);
  const double y = b.real(), bound = std::ldexp(1., 127);
  if (std::isnan(y) || y < -bound) return 1;
  if (y >= bound) return -1;
  const Integer whole = static_cast<Integer>(y);
  if (a.integer() != whole) return sign(a.integer() < whole, a.integer() > whole);
  return sign(0 < y - std::trunc(y), 0 > y - std::trunc(y));
}

int key_rank(const Value& v) {
  switch (v.kind()) {
    case Kind::None: return 0;
    case Kind::Bool:
    case Kind::Int:
    case Kind::Float: return 1;
    case Kind::String: return 2;
    case Kind::Tuple: return 3;
    case Kind::Undefined: return 4;
    case Kind::Object: return 5;
    default: fail("unhashable type: '{}'", v.type());
  }
}

}  // namespace

int compare_keys(const Value& a, const Value& b) {
  Meter::steps(1);
  const int ra = key_rank(a), rb = key_rank(b);
  if (ra != rb) return ra < rb ? -1 : 1;
  switch (ra) {
    case 1: return compare_numbers(a, b);
    case 2: {
      Meter::scan(std::min(a.string().size(), b.string().size()));
      const int c = a.string().compare(b.string());
      return sign(c<0, c> 0);
    }
    case 3: {
      for (size_t i = 0; i < std::min(a.items().size(), b.items().size()); ++i)
        if (const int c = compare_keys(a.items()[i], b.items()[i])) return c;
      return sign(a.items().size() < b.items().size(), a.items().size() > b.items().size());
    }
    case 5: return sign(std::less<>()(a.object(), b.object()), std::less<>()(b.object(), a.object()));
    default: return 0;
  }
}

constexpr size_t few_keys = 8;

const Value* Dict::find(const Value& key) const {
  if (index_.empty()) {
    if (entries_.empty()) compare_keys(key, key);  // even then it must be hashable
    for (const Entry& e : entries_)
      if (compare_keys(e.first, key) == 0) return &e.second;
    return nullptr;
  }
  const auto it = index_.find(key);
  return it == index_.end() ? nullptr : &entries_[it->second].second;
}

void Dict::set(Value key, Value value) {
  depth_ = std::max({depth_, key.depth() + 1, value.depth() + 1});
  if (depth_ > max_value_depth) fail("dicts within dicts, more than {} levels", max_value_depth);
  if (const Value* old = find(key)) {
    *const_cast<Value*>(old) = std::move(value);
    return;
  }
  Meter::bytes(sizeof(Entry) + sizeof(Value) + 64);
  entries_.emplace_back(std::move(key), std::move(value));
  if (entries_.size() == few_keys + 1)
    for (size_t i = 0; i < few_keys; ++i) index_.emplace(entries_[i].first, i);
  if (entries_.size() > few_keys) index_.emplace(entries_.back().first, entries_.size() - 1);
}

Value Object::call(Arguments&) { fail("'{}' object is not callable", type()); }

Cursor::Cursor(Value iterable) : from_(std::move(iterable)) {
  const bool can = from_.is_undefined() || from_.is_string() || from_.is_sequence() || from_.is(Kind::Dict) ||
                   (from_.is(Kind::Object) && from_.object()->iterable());
  if (!can) fail("'{}' object is not iterable", from_.type());
}

bool Cursor::next(Value& item) {
  Meter::steps(1);
  switch (from_.kind()) {
    case Kind::List:
    case Kind::Tuple:
      if (at_ == from_.items().size()) return false;
      item = from_.items()[at_++];
      return true;
    case Kind::Dict:
      if (at_ == from_.dict().size()) return false;
      item = from_.dict().entries()[at_++].first;
      return true;
    case Kind::String: {
      if (at_ == from_.string().size()) return false;
      const size_t begin = at_;
      next_code_point(from_.string(), at_);
      item = Value(std::string_view(from_.string()).substr(begin, at_ - begin));
      return true;
    }
    case Kind::Object: return from_.object()->next(at_++, item);
    default: return false;
  }
}

Items to_items(const Value& iterable) {
  if (iterable.is_sequence()) {
    Meter::bytes(product(iterable.items().size(), sizeof(Value)));
    return iterable.items();
  }
  Items out;
  Cursor cursor(iterable);
  for (Value v; cursor.next(v);) {
    Meter::bytes(sizeof(Value));
    out.push_back(std::move(v));
  }
  return out;
}

std::optional<size_t> length(const Value& v) {
  switch (v.kind()) {
    case Kind::Undefined: return 0;
    case Kind::String:
      return v.text().ascii ? v.string().size() : (Meter::scan(v.string().size()), code_points(v.string()));
    case Kind::List:
    case Kind::Tuple: return v.items().size();
    case Kind::Dict: return v.dict().size();
    case Kind::Object: return v.object()->length();
    default: return {};
  }
}

// ---- printing -------------------------------------------------------------------------------------------------------

std::string repr(Integer x) { return fmt::format("{}", x); }

std::string repr(double x) {
  if (!std::isfinite(x)) return std::isnan(x) ? "nan" : x < 0 ? "-inf" : "inf";
  char buffer[40];
  char* end = std::to_chars(buffer, buffer + sizeof buffer - 1, x, std::chars_format::scientific).ptr;
  *end = '\0';
  const std::string_view s(buffer, static_cast<size_t>(end - buffer));
  const size_t e = s.find('e');
  const int exponent = std::atoi(s.data() + e + 1);
  if (exponent < -4 || exponent >= 16) {
    return fmt::format("{}e{}{:02}", s.substr(0, e), exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  std::string digits(s.substr(0, e)), out = std::signbit(x) ? "-" : "";
  digits.erase(std::remove_if(digits.begin(), digits.end(), [](char c) { return c == '-' || c == '.'; }), digits.end());
  if (exponent < 0) return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  const size_t whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) return out + digits + std::string(whole - digits.size(), '0') + ".0";
  return out + digits.substr(0, whole) + "." + digits.substr(whole);
}

namespace {

void repr_text(std::string& out, std::string_view s) {
  Meter::bytes(s.size());
  const char quote = s.find('\'') != s.npos && s.find('"') == s.npos ? '"' : '\'';
  out += quote;
  for (size_t at = 0; at < s.size();) {
    const char32_t c = next_code_point(s, at);
    if (c == '\\' || c == static_cast<char32_t>(quote)) {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (is_printable(c)) {
      append_code_point(out, c);
    } else {
      const auto n = static_cast<uint32_t>(c);
      out += n < 0x100     ? fmt::format("\\x{:02x}", n)
             : n < 0x10000 ? fmt::format("\\u{:04x}", n)
                           : fmt::format("\\U{:08x}", n);
    }
  }
  out += quote;
}

void repr_to(std::string& out, const Value& v) {
  Meter::Depth depth;
  Meter::steps(1);
  const size_t before = out.size();
  switch (v.kind()) {
    case Kind::Undefined: out += "Undefined"; break;
    case Kind::None: out += "None"; break;
    case Kind::Bool: out += v.truth() ? "True" : "False"; break;
    case Kind::Int: out += repr(v.integer()); break;
    case Kind::Float: out += repr(v.real()); break;
    case Kind::String:
      if (v.text().safe) {
        out += "Markup(";
        repr_text(out, v.string());
        out += ')';
      } else {
        repr_text(out, v.string());
      }
      return;
    case Kind::List:
    case Kind::Tuple: {
      const bool tuple = v.is(Kind::Tuple);
      out += tuple ? '(' : '[';
      for (size_t i = 0; i < v.items().size(); ++i) {
        if (i) out += ", ";
        repr_to(out, v.items()[i]);
      }
      if (tuple && v.items().size() == 1) out += ',';
      out += tuple ? ')' : ']';
      return;
    }
    case Kind::Dict: {
      out += '{';
      for (size_t i = 0; i < v.dict().size(); ++i) {
        if (i) out += ", ";
        repr_to(out, v.dict().entries()[i].first);
        out += ": ";
        repr_to(out, v.dict().entries()[i].second);
      }
      out += '}';
      return;
    }
    case Kind::Object: out += v.object()->repr(); break;
  }
  Meter::bytes(out.size() - before);
}

}  // namespace

std::string repr(const Value& v) {
  std::string out;
  repr_to(out, v);
  return out;
}

std::string to_string(const Value& v) {
  if (v.is_undefined()) return {};
  return v.is_string() ? v.string() : repr(v);
}

std::string escape(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&#34;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return out;
}

// ---- equality and order ---------------------------------------------------------------------------------------------

bool equal(const Value& a, const Value& b) {
  Meter::steps(1);
  if (a.is_number() && b.is_number()) {
    const bool nan = (a.is(Kind::Float) && std::isnan(a.real())) || (b.is(Kind::Float) && std::isnan(b.real()));
    return !nan && compare_numbers(a, b) == 0;
  }
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::String: Meter::scan(a.string().size()); return a.string() == b.string();
    case Kind::List:
    case Kind::Tuple:
      return a.items().size() == b.items().size() &&
             std::equal(a.items().begin(), a.items().end(), b.items().begin(), equal);
    case Kind::Dict:
      if (a.dict().size() != b.dict().size()) return false;
      for (const auto& [key, value] : a.dict().entries()) {
        const Value* other = b.dict().find(key);
        if (!other || !equal(value, *other)) return false;
      }
      return true;
    case Kind::Object:
      return a.object() == b.object() || (a.object()->length() && a.object()->repr() == b.object()->repr());
    default: return true;
  }
}

bool less(const Value& a, const Value& b, const char* operation) {
  Meter::steps(1);
  if (a.is_number() && b.is_number()) return compare_numbers(a, b) < 0 && !(a.is(Kind::Float) && std::isnan(a.real()));
  a.defined();
  b.defined();
  if (a.is_string() && b.is_string()) {
    Meter::scan(std::min(a.string().size(), b.string().size()));
    return a.string() < b.string();  // the order of UTF-8 is that of code points
  }
  if (a.is_sequence() && a.kind() == b.kind()) {
    const size_t n = std::min(a.items().size(), b.items().size());
    for (size_t i = 0; i < n; ++i)
      if (!equal(a.items()[i], b.items()[i])) return less(a.items()[i], b.items()[i], operation);
    return a.items().size() < b.items().size();
  }
  fail("'{}' not supported between '{}' and '{}'", operation, a.type(), b.type());
}

bool contains(const Value& container, const Value& item) {
  if (container.is_string()) {
    if (!item.is_string()) fail("'in <string>' needs a string on its left, not '{}'", item.type());
    Meter::scan(container.string().size() + item.string().size());
    return find(container.string(), item.string()) != View::npos;
  }
  if (container.is(Kind::Dict)) return container.dict().find(item) != nullptr;
  Cursor cursor(container);
  for (Value v; cursor.next(v);)
    if ((v.identity() && v.identity() == item.identity()) || equal(v, item)) return true;
  return false;
}

}  // namespace t2l::jinja
