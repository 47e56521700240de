// Jinja's filters. Those that Jinja makes generators of are lazy here too: what fails, fails when it is
// reached.
#include <algorithm>
#include <cmath>
#include <set>

#include "tensor/file.h"
#include "transformer/jinja_interpreter.h"
#include "transformer/jinja_text.h"

namespace t2l::jinja {
namespace {

size_t size_of(const Value& v, const char* what) {
  const Integer n = to_int(v, what);
  if (n < 0) fail("{} must not be negative", what);
  return static_cast<size_t>(std::min(n, Integer{1} << 40));
}

// "a.b.0": items of items, by name or number.
std::vector<Value> attribute_path(const Value& attribute) {
  if (attribute.is_none()) return {};
  if (!attribute.is_string()) return {attribute};
  std::vector<Value> path;
  for (const View part : split(attribute.string(), ".", ~size_t{0})) {
    const bool number = !part.empty() && part.find_first_not_of("0123456789") == View::npos;
    path.push_back(number ? Value(parse_int(part, 10).value_or(0)) : Value(part));
  }
  return path;
}

using Getter = std::function<Value(const Value&)>;
Getter getter(Interpreter& in, const Value& attribute, bool ignore_case = false, const Value& fallback = None{}) {
  return [&in, path = attribute_path(attribute), ignore_case, fallback](const Value& v) {
    Value found = v;
    for (const Value& part : path) {
      Value next = in.item(found, part);
      found = next.is_undefined() && !fallback.is_none() ? fallback : std::move(next);
    }
    return ignore_case && found.is_string() ? Value(lower(found.string())) : found;
  };
}

// By several attributes, "a,b.c": a list of what they are.
Getter sort_key(Interpreter& in, const Value& attribute, bool ignore_case) {
  std::vector<Getter> getters;
  if (attribute.is_string()) {
    for (const View part : split(attribute.string(), ",", ~size_t{0}))
      getters.push_back(getter(in, Value(part), ignore_case));
  } else {
    getters.push_back(getter(in, attribute, ignore_case));
  }
  return [getters](const Value& v) {
    Items keys;
    for (const Getter& g : getters) keys.push_back(g(v));
    return Value::list(std::move(keys));
  };
}

Value sorted(const Items& items, const Getter& key, bool reverse) {
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& v : items) keyed.emplace_back(key(v), v);
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& x, const auto& y) {
    return reverse ? less(y.first, x.first) : less(x.first, y.first);
  });
  Items out;
  for (auto& [k, v] : keyed) out.push_back(std::move(v));
  return Value::list(std::move(out));
}

Value extreme(Interpreter& in, const Value& self, const Bound& a, bool greatest) {
  const Getter key = getter(in, a.or_none(1), !a.truth(0));
  Cursor cursor(self);
  Value best, best_key;
  bool any = false;
  for (Value v; cursor.next(v); any = true) {
    Value k = key(v);
    if (any && !(greatest ? less(best_key, k) : less(k, best_key))) continue;
    best = v;
    best_key = std::move(k);
  }
  return any ? best : Value::undefined("no item is the least or greatest: the sequence is empty");
}

Value sum(Interpreter& in, const Value& self, const Bound& a) {
  const Getter key = getter(in, a.or_none(0));
  Value total = a[1] ? *a[1] : Value(0);
  if (total.is_string()) fail("sum() cannot add strings; use join");
  Cursor cursor(self);
  for (Value v; cursor.next(v);) total = apply(Operator::Add, total, key(v));
  return total;
}

Value join(Interpreter& in, const Value& self, const Bound& a) {
  const std::string separator = a[0] ? to_string(*a[0]) : "";
  const Getter key = getter(in, a.or_none(1));
  std::string out;
  Cursor cursor(self);
  bool first = true;
  for (Value v; cursor.next(v); first = false) {
    const Value k = key(v);
    const std::string other = k.is_string() ? "" : to_string(k);
    const std::string& text = k.is_string() ? k.string() : other;
    Meter::bytes(separator.size() + text.size());
    if (!first) out += separator;
    out += text;
  }
  return out;
}

// The function map() applies: a filter, or an attribute.
Getter mapping(Interpreter& in, Arguments& a) {
  if (a.positional.empty()) {
    const Bound b = bind("map", "attribute default?", a);
    return getter(in, *b[0], false, b.or_none(1));
  }
  Arguments rest = a;
  const Value name = rest.positional[0];
  rest.positional.erase(rest.positional.begin());
  if (!name.is_string()) fail("map() needs the name of a filter");
  return [&in, name, rest](const Value& v) {
    Arguments again = rest;
    return in.filter(name.string(), v, again);
  };
}

Value map(Interpreter& in, const Value& self, const Bound& a) {
  if (!self.truth()) return in.generate([](Value&) { return false; });
  return in.generate(
      [&in, cursor = std::optional<Cursor>(), self, arguments = a.all, function = Getter()](Value& v) mutable {
        if (!function) {
          function = mapping(in, arguments);
          cursor.emplace(self);
        }
        if (!cursor->next(v)) return false;
        v = function(v);
        return true;
      });
}

// select, reject, and by attribute
Value select(Interpreter& in, const Value& self, const Bound& a, bool wanted, bool by_attribute) {
  if (!self.truth()) return in.generate([](Value&) { return false; });
  return in.generate([&in, cursor = std::optional<Cursor>(), self, rest = a.all, wanted, by_attribute,
                      attribute = Getter(), test = Value()](Value& v) mutable {
    if (!cursor) {
      auto& positional = rest.positional;
      if (by_attribute && positional.empty()) fail("selectattr and rejectattr need the name of an attribute");
      attribute = getter(in, by_attribute ? positional[0] : Value(None{}));
      if (by_attribute) positional.erase(positional.begin());
      if (!positional.empty()) {
        test = positional[0];
        if (!test.is_string()) fail("a test's name must be a string");
        positional.erase(positional.begin());
      }
      cursor.emplace(self);
    }
    while (cursor->next(v)) {
      const Value subject = attribute(v);
      Arguments again = rest;
      if ((test.is_undefined() ? subject.truth() : in.test(test.string(), subject, again)) == wanted) return true;
    }
    return false;
  });
}

Value unique(Interpreter& in, const Value& self, const Bound& a) {
  struct Less {
    bool operator()(const Value& x, const Value& y) const { return compare_keys(x, y) < 0; }
  };
  auto seen = std::make_shared<std::set<Value, Less>>();
  return in.generate([key = getter(in, a.or_none(1), !a.truth(0)), cursor = Cursor(self), seen](Value& v) mutable {
    while (cursor.next(v)) {
      Value k = key(v);
      compare_keys(k, k);  // the first, too, must be hashable
      if (seen->insert(std::move(k)).second) return true;
    }
    return false;
  });
}

Value batch(Interpreter& in, const Value& self, const Bound& a) {
  const size_t size = size_of(*a[0], "the size of a batch");
  return in.generate(
      [cursor = Cursor(self), size, fill = a.or_none(1), held = std::optional<Value>()](Value& v) mutable {
        Items out;
        if (held) out.push_back(*std::exchange(held, {}));
        for (Value item; cursor.next(item);) {
          if (out.size() == size && !(size == 0 && out.empty())) {
            held = item;
            v = Value::list(std::move(out));
            return true;
          }
          if (size == 0 && out.empty()) {
            held = item;
            v = Value::list({});
            return true;
          }
          out.push_back(item);
        }
        if (out.empty()) return false;
        if (!fill.is_none() && out.size() < size) {
          Meter::bytes(product(size - out.size(), sizeof(Value)));
          out.resize(size, fill);
        }
        v = Value::list(std::move(out));
        return true;
      });
}

Value slice(Interpreter& in, const Value& self, const Bound& a) {
  const Items items = to_items(self);
  const size_t count = size_of(*a[0], "the number of slices");
  return in.generate([items, count, fill = a.or_none(1), i = size_t{0}, at = size_t{0}](Value& v) mutable {
    if (count == 0) fail("division by zero");
    if (i == count) return false;
    const size_t extra = items.size() % count, n = items.size() / count + (i < extra);
    Items out(items.begin() + static_cast<ptrdiff_t>(at), items.begin() + static_cast<ptrdiff_t>(at + n));
    if (!fill.is_none() && i >= extra) out.push_back(fill);
    at += n;
    ++i;
    v = Value::list(std::move(out));
    return true;
  });
}

Value group_by(Interpreter& in, const Value& self, const Bound& a) {
  const bool case_sensitive = a.truth(2);
  const Getter key = getter(in, *a[0], !case_sensitive, a.or_none(1)), shown = getter(in, *a[0], false, a.or_none(1));
  const Value all = sorted(to_items(self), key, false);
  Items groups, members;
  const auto close = [&] {
    if (members.empty()) return;
    Value name = shown(members[0]);
    groups.push_back(Value::tuple({std::move(name), Value::list(std::exchange(members, {}))}, true));
  };
  for (const Value& v : all.items()) {
    if (!members.empty() && !equal(key(members[0]), key(v))) close();
    members.push_back(v);
  }
  close();
  return Value::list(std::move(groups));
}

Value dict_sort(const Value& self, const Bound& a) {
  if (!self.is(Kind::Dict)) fail("dictsort needs a mapping, not '{}'", self.defined().type());
  const std::string by = a[1] ? to_string(*a[1]) : "key";
  if (by != "key" && by != "value") fail("dictsort sorts by 'key' or by 'value'");
  Items pairs;
  for (const auto& [key, value] : self.dict().entries()) pairs.push_back(Value::tuple({key, value}));
  const auto key = [&](const Value& pair) {
    const Value& v = pair.items()[by == "value"];
    return !a.truth(0) && v.is_string() ? Value(lower(v.string())) : v;
  };
  return sorted(pairs, key, a.truth(2));
}

Value reverse(Interpreter& in, const Value& self) {
  if (self.is_string()) return subscript(self, clip_slice(None{}, None{}, -1, *length(self)));
  if (self.is_undefined()) return Value::list({});
  Items items = to_items(self);
  std::reverse(items.begin(), items.end());
  if (self.is(Kind::Object) && !length(self)) return Value::list(std::move(items));
  return in.generate([list = Value::list(std::move(items)), i = size_t{0}](Value& v) mutable {
    if (i == list.items().size()) return false;
    v = list.items()[i++];
    return true;
  });
}

Value last(const Value& self) {
  if (self.is(Kind::Object) && !length(self)) fail("'{}' object is not reversible", self.type());
  const Items items = to_items(self);
  return items.empty() ? Value::undefined("no last item: the sequence is empty") : items.back();
}

Value first(const Value& self) {
  Cursor cursor(self);
  Value v;
  return cursor.next(v) ? v : Value::undefined("no first item: the sequence is empty");
}

Value indent(const Value& self, const Bound& a) {
  if (!self.is_string()) fail("indent needs a string, not '{}'", self.defined().type());
  const bool named = a[0] && a[0]->is_string();
  const size_t width =
      named || !a[0] ? 4
                     : static_cast<size_t>(std::clamp(to_int(*a[0], "an indentation"), Integer{0}, Integer{1} << 40));
  if (!named) Meter::bytes(width);
  const std::string indentation = named ? a[0]->string() : std::string(width, ' ');
  const bool first_too = a.truth(1), blank = a.truth(2);
  const std::string text = self.string() + "\n";
  const auto lines = split_lines(text);
  Meter::bytes(product(lines.size(), indentation.size()) + self.string().size());
  std::string out = first_too ? indentation : "";
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i) out += '\n';
    if (i && (blank || !lines[i].empty())) out += indentation;
    out += lines[i];
  }
  return out;
}

Value truncate(const Value& self, const Bound& a) {
  const auto n = length(self);
  const size_t limit = a[0] ? size_of(*a[0], "a length") : 255,
               leeway = a[3] && !a[3]->is_none() ? size_of(*a[3], "the leeway") : 5;
  const std::string end = a[2] ? to_string(*a[2]) : "...";
  const size_t end_size = code_points(end);
  if (limit < end_size) fail("truncate to {} characters, fewer than the {} of its end", limit, end_size);
  if (n && *n <= limit + leeway) return self;
  if (!self.is_string()) fail("truncate needs a string, not '{}'", self.type());
  std::string kept = self.string().substr(0, offset_of(self.string(), limit - end_size));
  if (!a.truth(1)) kept.erase(std::min(kept.rfind(' '), kept.size()));
  return kept + end;
}

// Words begin behind white space and opening brackets.
Value title_filter(const Value& self) {
  const std::string text = to_string(self);
  std::string out, word;
  const auto close = [&] {
    const size_t head = offset_of(word, 1);
    out += upper(word.substr(0, head)) + lower(word.substr(head));
    word.clear();
  };
  for_code_points(text, [&](char32_t c) {
    if (c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || is_python_space(c)) {
      close();
      append_code_point(out, c);
    } else {
      append_code_point(word, c);
    }
  });
  close();
  return out;
}

Value word_count(const Value& self) {
  size_t words = 0;
  bool inside = false;
  for_code_points(to_string(self), [&](char32_t c) {
    const bool part = c == '_' || is_alnum(c);
    words += part && !inside;
    inside = part;
  });
  return words;
}

Value to_int_filter(const Value& self, const Bound& a) {
  const Value fallback = a[0] ? *a[0] : Value(0);
  self.defined();
  if (self.is_integer()) return self.integer();
  std::optional<double> real;
  if (self.is(Kind::Float)) {
    if (std::isinf(self.real())) fail("cannot convert infinity to an integer");
    real = self.real();
  } else if (self.is_string()) {
    const Integer base = a[1] ? to_int(*a[1], "a base") : 10;
    if (base == 0 || (base >= 2 && base <= 36))
      if (const auto n = parse_int(self.string(), static_cast<int>(base))) return *n;
    real = parse_float(self.string());
  }
  return real && std::isfinite(*real) ? Value(truncated(*real)) : fallback;
}

Value to_float_filter(const Value& self, const Bound& a) {
  self.defined();
  if (self.is_number()) return self.real();
  const auto x = self.is_string() ? parse_float(self.string()) : std::nullopt;
  return x ? Value(*x) : a[0] ? *a[0] : Value(0.);
}

Value round_filter(const Value& self, const Bound& a) {
  const Integer precision = a[0] ? to_int(*a[0], "a precision") : 0;
  const std::string method = a[1] ? to_string(*a[1]) : "common";
  if (!self.is_number()) fail("round needs a number, not '{}'", self.defined().type());
  if (precision < -300 || precision > 300) fail("round to {} digits", precision);
  const int digits = static_cast<int>(precision);
  const double x = self.real(), scale = std::pow(10., digits);
  if (method == "ceil") return std::ceil(x * scale) / scale;
  if (method == "floor") return std::floor(x * scale) / scale;
  if (method != "common") fail("round's method must be common, ceil or floor");
  if (self.is_integer() && digits >= 0) return self.integer();
  if (self.is_integer()) {
    if (digits < -37) return 0;
    Integer unit = 1;
    for (int i = 0; i < -digits; ++i) unit *= 10;
    const Integer n = self.integer(), down = n / unit * unit - (n % unit < 0 ? unit : 0), rest = n - down;
    const bool up = rest * 2 > unit || (rest * 2 == unit && (down / unit) % 2 != 0);
    return up ? down + unit : down;
  }
  if (!std::isfinite(x)) return x;
  if (digits < 0) return std::nearbyint(x / std::pow(10., -digits)) * std::pow(10., -digits);
  return std::strtod(fmt::format("{:.{}f}", x, digits).c_str(), nullptr);  // correctly rounded, as CPython does it
}

Value file_size(const Value& self, const Bound& a) {
  static constexpr const char* units[] = {"k", "M", "G", "T", "P", "E", "Z", "Y"};
  const bool binary = a.truth(0);
  const auto given = self.is_number()   ? std::optional(self.real())
                     : self.is_string() ? parse_float(self.string())
                                        : std::nullopt;
  if (!given) fail("filesizeformat needs a number, not '{}'", self.defined().type());
  const double base = binary ? 1024 : 1000, bytes = *given;
  if (bytes == 1) return "1 Byte";
  if (bytes < base) return repr(truncated(bytes)) + " Bytes";
  double unit = base * base;
  size_t i = 0;
  for (; i < 7 && !(bytes < unit); ++i) unit *= base;
  const std::string prefix = binary && i == 0 ? "K" : units[i];
  return fmt::format("{:.1f} {}{}B", base * bytes / unit, prefix, binary ? "i" : "");
}

std::string url_quote(const Value& v, bool query) {
  std::string out;
  for (const char c : to_string(v)) {
    const bool plain = (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z' && c > 0) ||
                       (c && std::string_view("_.-~").find(c) != View::npos);
    if (plain || (c == '/' && !query)) {
      out += c;
    } else if (c == ' ' && query) {
      out += '+';
    } else {
      out += fmt::format("%{:02X}", static_cast<uint8_t>(c));
    }
  }
  return out;
}

Value url_encode(const Value& self) {
  if (self.is_string() || self.is_number() || self.is_none()) return url_quote(self, false);
  Items pairs;
  if (self.is(Kind::Dict)) {
    for (const auto& [key, value] : self.dict().entries()) pairs.push_back(Value::tuple({key, value}));
  } else {
    pairs = to_items(self);
  }
  std::string out;
  for (const Value& pair : pairs) {
    const Items two = to_items(pair);
    if (two.size() != 2) fail("urlencode takes pairs of a name and a value");
    out += (out.empty() ? "" : "&") + url_quote(two[0], true) + "=" + url_quote(two[1], true);
  }
  return out;
}

Value xml_attributes(const Value& self, const Bound& a) {
  if (!self.is(Kind::Dict)) fail("xmlattr needs a mapping, not '{}'", self.defined().type());
  std::string out;
  for (const auto& [key, value] : self.dict().entries()) {
    if (value.is_none() || value.is_undefined()) continue;
    if (!key.is_string() || key.string().find_first_of(" \t\n\r\f\v/>=") != std::string::npos)
      fail("xmlattr: '{}' is no name", printable(to_string(key)));
    out += fmt::format("{}{}=\"{}\"", out.empty() ? "" : " ", escape(key.string()), escape(to_string(value)));
  }
  return (a.truth(0, true) && !out.empty() ? " " : "") + out;
}

Value to_json_filter(const Value& self, const Bound& a) {
  JsonStyle style;
  style.ascii = a.truth(0);
  if (a[1] && !a[1]->is_none()) {
    if (a[1]->is_string()) {
      style.indent = a[1]->string();
    } else {
      const Integer n = std::clamp(to_int(*a[1], "indent"), Integer{0}, Integer{1} << 30);
      Meter::bytes(static_cast<size_t>(n));
      style.indent = std::string(static_cast<size_t>(n), ' ');
    }
  }
  if (a[2] && !a[2]->is_none()) {
    const Items two = to_items(*a[2]);
    if (two.size() != 2 || !two[0].is_string() || !two[1].is_string()) fail("tojson: separators must be two strings");
    style.comma = two[0].string();
    style.colon = two[1].string();
  }
  style.sort = a.truth(3);
  return to_json(self, style);
}

Value absolute(const Value& self) {
  if (self.is_integer()) return self.integer() < 0 ? negate(self) : Value(self.integer());
  if (self.is(Kind::Float)) return std::fabs(self.real());
  fail("abs needs a number, not '{}'", self.defined().type());
}

Value format_filter(const Value& self, const Bound& a) {
  if (!a.all.positional.empty() && !a.all.named.empty()) fail("format takes arguments with or without names, not both");
  if (a.all.named.empty()) return format_percent(to_string(self), Value::tuple(a.all.positional));
  Dict named;
  for (const auto& [name, value] : a.all.named) named.set(Value(name), value);
  return format_percent(to_string(self), named);
}

Value escaped(const Value& v) { return v.is_string() && v.text().safe ? v : Value(escape(to_string(v)), true); }

Value attribute_filter(Interpreter& in, const Value& self, const Bound& a) {
  self.defined();
  const auto own = in.own_attribute(self, to_string(*a[0]));
  return own ? *own : Value::undefined(fmt::format("there is no attribute '{}'", printable(to_string(*a[0]))));
}

Value default_filter(const Value& self, const Bound& a) {
  if (!self.is_undefined() && !(a.truth(1) && !self.truth())) return self;
  return a[0] ? *a[0] : Value("");
}

Value items_filter(Interpreter& in, const Value& self) {
  if (self.is_undefined()) return Value::list({});
  if (!self.is(Kind::Dict)) fail("items needs a mapping, not '{}'", self.type());
  return in.generate([self, i = size_t{0}](Value& v) mutable {
    if (i == self.dict().size()) return false;
    const auto& [key, value] = self.dict().entries()[i++];
    v = Value::tuple({key, value});
    return true;
  });
}

Value length_filter(const Value& self) {
  const auto n = length(self);
  if (!n) fail("object of type '{}' has no length", self.type());
  return *n;
}

Value pretty_print(const Value& self) {
  const std::string s = repr(self);
  if (s.size() > 60 || (self.is(Kind::Dict) && self.dict().size() > 1)) fail("pprint is not supported; use tojson");
  return s;
}

Value random_item(Interpreter& in, const Value& self) {
  if (!self.is_string() && !self.is_sequence() && !self.is_undefined())
    fail("random needs a sequence, not '{}'", self.defined().type());
  const Items items = to_items(self);
  return items.empty() ? Value::undefined("no random item: the sequence is empty")
                       : items[(in.random() >> 8) % items.size()];
}

Value replace_filter(const Value& self, const Bound& a) {
  const size_t limit =
      a[2] && !a[2]->is_none() && to_int(*a[2], "a count") >= 0 ? size_of(*a[2], "a count") : ~size_t{0};
  return replace(to_string(self), to_string(*a[0]), to_string(*a[1]), limit);
}

Value trim(const Value& self, const Bound& a) {
  std::optional<View> set;
  if (a[0] && !a[0]->is_none()) {
    if (!a[0]->is_string()) fail("trim takes a string of characters");
    set = a[0]->string();
  }
  return strip(self.is_string() ? self.string() : to_string(self), set);
}

[[noreturn]] Value unsupported(const char* name) { fail("the filter {} is not supported", name); }

const Table& filters() {
  static const Table table = [] {
    Table t = {
        BUILTIN("abs", "", absolute(self)),
        BUILTIN("attr", "name", attribute_filter(in, self, a)),
        BUILTIN("batch", "linecount fill_with?", batch(in, self, a)),
        BUILTIN("capitalize", "", capitalize(to_string(self))),
        BUILTIN("center", "width?", pad(to_string(self), a[0] ? size_of(*a[0], "a width") : 80, ' ', 1)),
        BUILTIN("default", "default_value? boolean?", default_filter(self, a)),
        BUILTIN("dictsort", "case_sensitive? by? reverse?", dict_sort(self, a)),
        BUILTIN("escape", "", escaped(self)),
        BUILTIN("filesizeformat", "binary?", file_size(self, a)),
        BUILTIN("first", "", first(self)),
        BUILTIN("float", "default?", to_float_filter(self, a)),
        BUILTIN("forceescape", "", Value(escape(to_string(self)), true)),
        BUILTIN("format", "*", format_filter(self, a)),
        BUILTIN("groupby", "attribute default? case_sensitive?", group_by(in, self, a)),
        BUILTIN("indent", "width? first? blank?", indent(self, a)),
        BUILTIN("int", "default? base?", to_int_filter(self, a)),
        BUILTIN("items", "", items_filter(in, self)),
        BUILTIN("join", "d? attribute?", join(in, self, a)),
        BUILTIN("last", "", last(self)),
        BUILTIN("length", "", length_filter(self)),
        BUILTIN("list", "", Value::list(to_items(self))),
        BUILTIN("lower", "", lower(to_string(self))),
        BUILTIN("map", "*", map(in, self, a)),
        BUILTIN("max", "case_sensitive? attribute?", extreme(in, self, a, true)),
        BUILTIN("min", "case_sensitive? attribute?", extreme(in, self, a, false)),
        BUILTIN("pprint", "", pretty_print(self)),
        BUILTIN("random", "", random_item(in, self)),
        BUILTIN("reject", "*", select(in, self, a, false, false)),
        BUILTIN("rejectattr", "*", select(in, self, a, false, true)),
        BUILTIN("replace", "old new count?", replace_filter(self, a)),
        BUILTIN("reverse", "", reverse(in, self)),
        BUILTIN("round", "precision? method?", round_filter(self, a)),
        BUILTIN("safe", "", Value(to_string(self), true)),
        BUILTIN("select", "*", select(in, self, a, true, false)),
        BUILTIN("selectattr", "*", select(in, self, a, true, true)),
        BUILTIN("slice", "slices fill_with?", slice(in, self, a)),
        BUILTIN("sort", "reverse? case_sensitive? attribute?",
                sorted(to_items(self), sort_key(in, a.or_none(2), !a.truth(1)), a.truth(0))),
        BUILTIN("string", "", self.is_string() ? self : Value(to_string(self))),
        BUILTIN("sum", "attribute? start?", sum(in, self, a)),
        BUILTIN("title", "", title_filter(self)),
        BUILTIN("tojson", "ensure_ascii? indent? separators? sort_keys?", to_json_filter(self, a)),
        BUILTIN("trim", "chars?", trim(self, a)),
        BUILTIN("truncate", "length? killwords? end? leeway?", truncate(self, a)),
        BUILTIN("unique", "case_sensitive? attribute?", unique(in, self, a)),
        BUILTIN("upper", "", upper(to_string(self))),
        BUILTIN("urlencode", "", url_encode(self)),
        BUILTIN("wordcount", "", word_count(self)),
        BUILTIN("xmlattr", "autospace?", xml_attributes(self, a)),
        BUILTIN("striptags", "*", unsupported("striptags")),
        BUILTIN("urlize", "*", unsupported("urlize")),
        BUILTIN("wordwrap", "*", unsupported("wordwrap")),
    };
    t["count"] = t["length"];
    t["d"] = t["default"];
    t["e"] = t["escape"];
    return t;
  }();
  return table;
}

}  // namespace

const Builtin* find_filter(std::string_view name) {
  const auto it = filters().find(name);
  return it == filters().end() ? nullptr : &it->second;
}

}  // namespace t2l::jinja
