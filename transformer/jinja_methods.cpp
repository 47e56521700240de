// The methods of str, list, tuple and dict that do not change them, and Jinja's global functions.
#include <sys/time.h>

#include <algorithm>
#include <ctime>
#include <unordered_map>

#include "tensor/file.h"
#include "transformer/jinja_interpreter.h"
#include "transformer/jinja_text.h"

namespace t2l::jinja {
namespace {

using Table = std::unordered_map<std::string_view, Builtin>;

const std::string& text_of(const Value& v, const char* what) {
  if (!v.is_string()) fail("{} must be a string, not '{}'", what, v.defined().type());
  return v.string();
}

// Python's optional count or limit: all where it is absent or negative.
size_t limit_of(const Value* v) {
  if (!v) return ~size_t{0};
  const Integer n = to_int(*v, "a limit");
  return n < 0 || n > Integer{1} << 40 ? ~size_t{0} : static_cast<size_t>(n);
}

size_t width_of(const Value& v) {
  const Integer n = to_int(v, "a width");
  return n < 0 ? 0 : static_cast<size_t>(std::min(n, Integer{1} << 40));
}

Value views(const std::vector<View>& pieces) {
  Items out;
  for (const View p : pieces) out.emplace_back(p);
  return Value::list(std::move(out));
}

// ---- str ------------------------------------------------------------------------------------------------------------

Value strip_method(const Value& self, const Bound& a, bool left, bool right) {
  std::optional<View> set;
  if (a[0] && !a[0]->is_none()) set = text_of(*a[0], "what is stripped");
  return strip(self.string(), set, left, right);
}

Value split_method(const Value& self, const Bound& a, bool from_right) {
  std::optional<View> separator;
  if (a[0] && !a[0]->is_none()) separator = text_of(*a[0], "a separator");
  if (separator && separator->empty()) fail("empty separator");
  return views(split(self.string(), separator, limit_of(a[1]), from_right));
}

// The part of self that [start, end) selects: its first byte and length.
std::optional<std::pair<size_t, View>> range_of(const Value& self, const Bound& a) {
  if (!a[1] && !a[2]) return {{0, self.string()}};
  const size_t n = *length(self);
  const Slice s = clip_slice(a.or_none(1), a.or_none(2), Value(None{}), n);
  const Value start = a.or_none(1);
  if (start.is_integer() && start.integer() > static_cast<Integer>(n)) return {};
  const size_t begin = offset_of(self.string(), static_cast<size_t>(s.start));
  const View rest = View(self.string()).substr(begin);
  return {{begin, rest.substr(0, offset_of(rest, s.count))}};
}

Value find_in(const Value& self, const Bound& a, bool last) {
  const std::string& needle = text_of(*a[0], "what is looked for");
  const auto range = range_of(self, a);
  if (!range) return -1;
  const size_t at = last ? find_last(range->second, needle) : find(range->second, needle);
  return at == View::npos ? Value(-1) : Value(code_points(View(self.string()).substr(0, range->first + at)));
}

Value index_in(const Value& self, const Bound& a, bool last) {
  Value at = find_in(self, a, last);
  if (at.integer() < 0) fail("substring not found");
  return at;
}

Value begins_or_ends(const Value& self, const Bound& a, bool ends) {
  const auto range = range_of(self, a);
  const auto fits = [&](const Value& v) {
    const std::string& s = text_of(v, "a prefix or suffix");
    return range && (ends ? range->second.ends_with(s) : range->second.starts_with(s));
  };
  if (!a[0]->is(Kind::Tuple)) return fits(*a[0]);
  return std::any_of(a[0]->items().begin(), a[0]->items().end(), fits);
}

Value partition(const Value& self, const Bound& a, bool last) {
  const std::string &s = self.string(), &separator = text_of(*a[0], "a separator");
  if (separator.empty()) fail("empty separator");
  const size_t at = last ? find_last(s, separator) : find(s, separator);
  if (at == View::npos) return last ? Value::tuple({"", "", self}) : Value::tuple({self, "", ""});
  return Value::tuple({s.substr(0, at), separator, s.substr(at + separator.size())});
}

template <class F>
Value all_are(const Value& self, F f) {
  bool all = !self.string().empty();
  for_code_points(self.string(), [&](char32_t c) { all = all && f(c); });
  return all;
}

Value padded(const Value& self, const Bound& a, int left) {
  const std::string fill = a[1] ? text_of(*a[1], "the fill character") : " ";
  if (code_points(fill) != 1) fail("the fill character must be one character");
  size_t at = 0;
  return pad(self.string(), width_of(*a[0]), next_code_point(fill, at), left);
}

Value zfill(const Value& self, const Bound& a) {
  const std::string& s = self.string();
  const size_t n = *length(self), width = width_of(*a[0]), missing = width > n ? width - n : 0;
  Meter::bytes(missing + s.size());
  const size_t sign = s.starts_with('-') || s.starts_with('+');
  return s.substr(0, sign) + std::string(missing, '0') + s.substr(sign);
}

Value expand_tabs(const Value& self, const Bound& a) {
  const size_t size = a[0] ? width_of(*a[0]) : 8;
  Meter::bytes(product(static_cast<size_t>(std::count(self.string().begin(), self.string().end(), '\t')), size));
  std::string out;
  size_t column = 0;
  for_code_points(self.string(), [&](char32_t c) {
    if (c == '\t') {
      const size_t n = size ? size - column % size : 0;
      out.append(n, ' ');
      column += n;
    } else {
      append_code_point(out, c);
      column = c == '\n' || c == '\r' ? 0 : column + 1;
    }
  });
  return out;
}

Value join_method(const Value& self, const Bound& a) {
  std::string out;
  Cursor cursor(*a[0]);
  bool first = true;
  for (Value v; cursor.next(v); first = false) {
    if (!v.is_string()) fail("join() takes strings, found '{}'", v.type());
    Meter::bytes(self.string().size() + v.string().size());
    if (!first) out += self.string();
    out += v.string();
  }
  return out;
}

Value replace_method(const Value& self, const Bound& a) {
  return replace(self.string(), text_of(*a[0], "what is replaced"), text_of(*a[1], "a replacement"), limit_of(a[2]));
}

Value remove_affix(const Value& self, const Bound& a, bool suffix) {
  const std::string &s = self.string(), &affix = text_of(*a[0], "a prefix or suffix");
  if (suffix) return s.ends_with(affix) ? s.substr(0, s.size() - affix.size()) : s;
  return s.starts_with(affix) ? s.substr(affix.size()) : s;
}

// A field of str.format: "name.attribute[item]" of the arguments.
Value field_value(Interpreter& in, const std::string& field, const Bound& a, size_t& automatic) {
  const size_t end = std::min(field.find_first_of(".["), field.size());
  const std::string first = field.substr(0, end);
  Value v;
  if (first.empty() || first.find_first_not_of("0123456789") == first.npos) {
    const size_t i = first.empty() ? automatic++ : first.size() < 9 ? std::stoul(first) : ~size_t{0};
    if (i >= a.all.positional.size()) fail("the format needs more arguments");
    v = a.all.positional[i];
  } else {
    const auto it = std::find_if(a.all.named.begin(), a.all.named.end(), [&](const auto& x) { return x.first == first; });
    if (it == a.all.named.end()) fail("the format needs the argument '{}'", printable(first));
    v = it->second;
  }
  for (size_t i = end; i < field.size();) {
    const bool bracket = field[i] == '[';
    const size_t stop = bracket ? field.find(']', i) : std::min(field.find_first_of(".[", i + 1), field.size());
    if (stop == field.npos) fail("a format's '[' has no ']'");
    const std::string name = field.substr(i + 1, stop - i - 1);
    if (name.empty()) fail("a format names an empty attribute");
    const bool number = bracket && name.size() < 9 && name.find_first_not_of("0123456789") == name.npos;
    Value next = !bracket ? in.attribute(v, Value(name)) : in.item(v, number ? Value(std::stol(name)) : Value(name));
    v = std::move(next);
    i = stop + bracket;
    if (bracket && i < field.size() && field[i] != '.' && field[i] != '[') fail("a format's ']' must be followed by '.' or '['");
  }
  return v;
}

std::string format_fields(Interpreter& in, const std::string& format, const Bound& a, size_t& automatic, int depth) {
  std::string out;
  for (size_t i = 0; i < format.size();) {
    const char c = format[i++];
    if ((c == '{' || c == '}') && i < format.size() && format[i] == c) {
      out += c;
      ++i;
    } else if (c == '}') {
      fail("a single '}}' in a format");
    } else if (c != '{') {
      out += c;
    } else {
      size_t end = i;
      for (int open = 1; open; ++end) {
        if (end == format.size()) fail("a format's '{{' has no '}}'");
        open += (format[end] == '{') - (format[end] == '}');
      }
      const std::string inside = format.substr(i, end - 1 - i);
      i = end;
      const size_t stop = std::min(inside.find_first_of("!:"), inside.size());
      Value v = field_value(in, inside.substr(0, stop), a, automatic);
      size_t spec = stop;
      if (spec < inside.size() && inside[spec] == '!') {
        const char conversion = spec + 1 < inside.size() ? inside[spec + 1] : ' ';
        if (conversion != 's' && conversion != 'r') fail("a format's conversion must be !s or !r");
        v = conversion == 'r' ? Value(repr(v)) : Value(to_string(v));
        spec += 2;
        if (spec < inside.size() && inside[spec] != ':') fail("expected ':' behind a format's conversion");
      }
      std::string how = spec < inside.size() ? inside.substr(spec + 1) : "";
      if (how.find('{') != how.npos) {
        if (depth) fail("a format within a format within a format");
        how = format_fields(in, how, a, automatic, depth + 1);
      }
      out += format_value(v, how);
    }
    if (out.size() > max_value_bytes) break;
  }
  Meter::bytes(out.size());
  return out;
}

const Table& string_methods() {
  static const Table table = {
      {"capitalize", {"", BUILTIN { return capitalize(self.string()); }}},
      {"casefold", {"", BUILTIN { return fold(self.string()); }}},
      {"center", {"-width -fill?", BUILTIN { return padded(self, a, 1); }}},
      {"count", {"-sub -start? -end?", BUILTIN {
         const auto range = range_of(self, a);
         return range ? count(range->second, text_of(*a[0], "what is counted")) : size_t{0};
       }}},
      {"endswith", {"-suffix -start? -end?", BUILTIN { return begins_or_ends(self, a, true); }}},
      {"expandtabs", {"tabsize?", BUILTIN { return expand_tabs(self, a); }}},
      {"find", {"-sub -start? -end?", BUILTIN { return find_in(self, a, false); }}},
      {"format", {"*", BUILTIN {
         size_t automatic = 0;
         return format_fields(in, self.string(), a, automatic, 0);
       }}},
      {"index", {"-sub -start? -end?", BUILTIN { return index_in(self, a, false); }}},
      {"isalnum", {"", BUILTIN { return all_are(self, is_alnum); }}},
      {"isalpha", {"", BUILTIN { return all_are(self, is_alpha); }}},
      {"isascii", {"", BUILTIN { return self.text().ascii; }}},
      {"isdecimal", {"", BUILTIN { return all_are(self, is_decimal); }}},
      {"isdigit", {"", BUILTIN { return all_are(self, is_digit); }}},
      {"islower", {"", BUILTIN { return is_lower(self.string()); }}},
      {"isnumeric", {"", BUILTIN { return all_are(self, is_numeric_value); }}},
      {"isprintable", {"", BUILTIN { return self.string().empty() || all_are(self, is_printable).truth(); }}},
      {"isspace", {"", BUILTIN { return all_are(self, is_python_space); }}},
      {"istitle", {"", BUILTIN { return is_title(self.string()); }}},
      {"isupper", {"", BUILTIN { return is_upper(self.string()); }}},
      {"join", {"-iterable", BUILTIN { return join_method(self, a); }}},
      {"ljust", {"-width -fill?", BUILTIN { return padded(self, a, 0); }}},
      {"lower", {"", BUILTIN { return lower(self.string()); }}},
      {"lstrip", {"-chars?", BUILTIN { return strip_method(self, a, true, false); }}},
      {"partition", {"-sep", BUILTIN { return partition(self, a, false); }}},
      {"removeprefix", {"-prefix", BUILTIN { return remove_affix(self, a, false); }}},
      {"removesuffix", {"-suffix", BUILTIN { return remove_affix(self, a, true); }}},
      {"replace", {"-old -new -count?", BUILTIN { return replace_method(self, a); }}},
      {"rfind", {"-sub -start? -end?", BUILTIN { return find_in(self, a, true); }}},
      {"rindex", {"-sub -start? -end?", BUILTIN { return index_in(self, a, true); }}},
      {"rjust", {"-width -fill?", BUILTIN { return padded(self, a, 2); }}},
      {"rpartition", {"-sep", BUILTIN { return partition(self, a, true); }}},
      {"rsplit", {"sep? maxsplit?", BUILTIN { return split_method(self, a, true); }}},
      {"rstrip", {"-chars?", BUILTIN { return strip_method(self, a, false, true); }}},
      {"split", {"sep? maxsplit?", BUILTIN { return split_method(self, a, false); }}},
      {"splitlines", {"keepends?", BUILTIN { return views(split_lines(self.string(), a.truth(0))); }}},
      {"startswith", {"-prefix -start? -end?", BUILTIN { return begins_or_ends(self, a, false); }}},
      {"strip", {"-chars?", BUILTIN { return strip_method(self, a, true, true); }}},
      {"swapcase", {"", BUILTIN { return swap_case(self.string()); }}},
      {"title", {"", BUILTIN { return title(self.string()); }}},
      {"upper", {"", BUILTIN { return upper(self.string()); }}},
      {"zfill", {"-width", BUILTIN { return zfill(self, a); }}},
  };
  return table;
}

// ---- list, tuple, dict ----------------------------------------------------------------------------------------------

bool same(const Value& a, const Value& b) { return (a.identity() && a.identity() == b.identity()) || equal(a, b); }

const Table& sequence_methods() {
  static const Table table = {
      {"count", {"-value", BUILTIN {
         return std::count_if(self.items().begin(), self.items().end(), [&](const Value& v) { return same(v, *a[0]); });
       }}},
      {"index", {"-value -start? -stop?", BUILTIN {
         const Slice s = clip_slice(a.or_none(1), a.or_none(2), Value(None{}), self.items().size());
         for (size_t i = 0; i < s.count; ++i)
           if (same(self.items()[static_cast<size_t>(s.start) + i], *a[0])) return static_cast<size_t>(s.start) + i;
         fail("the value is not in the list");
       }}},
  };
  return table;
}

// What keys(), values() and items() give.
struct DictView : Object {
  enum What { Keys, Values, Items };
  DictView(const Value& d, What w) : dict(d), what(w) {}
  const char* type() const override { return what == Keys ? "dict_keys" : what == Values ? "dict_values" : "dict_items"; }
  std::string repr() const override {
    jinja::Items all;
    Value v;
    for (size_t i = 0; i < dict.dict().size(); ++i) all.push_back(at(i));
    return fmt::format("{}({})", type(), jinja::repr(Value::list(std::move(all))));
  }
  std::optional<size_t> length() const override { return dict.dict().size(); }
  bool iterable() const override { return true; }
  bool next(size_t i, Value& v) override {
    if (i >= dict.dict().size()) return false;
    v = at(i);
    return true;
  }
  Value at(size_t i) const {
    const auto& [key, value] = dict.dict().entries()[i];
    return what == Keys ? key : what == Values ? value : Value::tuple({key, value});
  }
  Value dict;
  What what;
};

const Table& dict_methods() {
  static const Table table = {
      {"copy", {"", BUILTIN { return self; }}},  // nothing ever changes either of the two
      {"get", {"-key -default?", BUILTIN {
         const Value* v = self.dict().find(*a[0]);
         return v ? *v : a.or_none(1);
       }}},
      {"items", {"", BUILTIN { return in.make<DictView>(self, DictView::Items); }}},
      {"keys", {"", BUILTIN { return in.make<DictView>(self, DictView::Keys); }}},
      {"values", {"", BUILTIN { return in.make<DictView>(self, DictView::Values); }}},
  };
  return table;
}

}  // namespace

const Builtin* find_method(const Value& self, std::string_view name) {
  const Table* table = self.is_string() ? &string_methods() : self.is_sequence() ? &sequence_methods() : self.is(Kind::Dict) ? &dict_methods() : nullptr;
  if (!table) return nullptr;
  if (self.is(Kind::List) && name == "copy") table = &dict_methods();
  const auto it = table->find(name);
  return it == table->end() ? nullptr : &it->second;
}

bool is_forbidden_method(const Value& self, std::string_view name) {
  const auto among = [&](std::initializer_list<std::string_view> names) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  if (self.is(Kind::List)) return among({"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"});
  return self.is(Kind::Dict) && among({"clear", "fromkeys", "pop", "popitem", "setdefault", "update"});
}

// ---- global functions -----------------------------------------------------------------------------------------------

namespace {

struct Range : Object {
  Range(Integer a, Integer b, Integer s, size_t n) : start(a), stop(b), step(s), count(n) {}
  const char* type() const override { return "range"; }
  std::string repr() const override {
    const std::string s = fmt::format("range({}, {}", start, stop);
    return step == 1 ? s + ")" : fmt::format("{}, {})", s, step);
  }
  std::optional<size_t> length() const override { return count; }
  bool iterable() const override { return true; }
  bool indexable() const override { return true; }
  bool next(size_t i, Value& v) override {
    if (i >= count) return false;
    v = start + static_cast<Integer>(i) * step;
    return true;
  }
  Integer start, stop, step;
  size_t count;
};

Value make_range(Interpreter& in, const Bound& a) {
  Integer bound[3] = {0, 0, 1};
  for (size_t i = 0; i < 3; ++i) {
    if (!a[i]) continue;
    bound[i] = to_int(*a[i], "a range's bound");
    if (bound[i] > Integer{1} << 62 || bound[i] < -(Integer{1} << 62)) fail("a range's bound of more than 62 bits");
  }
  auto [start, stop, step] = bound;
  if (!a[1]) stop = std::exchange(start, 0);
  if (step == 0) fail("a range's step must not be zero");
  const Integer span = step > 0 ? stop - start : start - stop, stride = step > 0 ? step : -step;
  const Integer n = span <= 0 ? 0 : (span + stride - 1) / stride;
  if (n > 100'000) fail("a range of more than 100000 numbers");  // Jinja's sandbox has the same limit
  return in.make<Range>(start, stop, step, static_cast<size_t>(n));
}

Dict make_dict(const Arguments& a) {
  Dict out;
  if (a.positional.size() > 1) fail("dict() takes at most one argument without a name");
  if (!a.positional.empty() && a.positional[0].is(Kind::Dict)) {
    for (const auto& [key, value] : a.positional[0].dict().entries()) out.set(key, value);
  } else if (!a.positional.empty()) {
    Cursor pairs(a.positional[0]);
    for (Value pair; pairs.next(pair);) {
      const Items two = to_items(pair);
      if (two.size() != 2) fail("dict() takes pairs of a key and a value");
      out.set(two[0], two[1]);
    }
  }
  for (const auto& [key, value] : a.named) out.set(Value(key), value);
  return out;
}

struct Cycler : Object {
  Cycler(Interpreter& in_, Items i) : in(in_), items(std::move(i)) {}
  const char* type() const override { return "Cycler"; }
  std::optional<Value> attribute(const std::string& name) override {
    if (name == "current") return items[at];
    if (name == "next") return Value(in.make<Function>("next", [this](Arguments&) {
      const Value v = items[at];
      at = (at + 1) % items.size();
      return v;
    }));
    if (name == "reset") return Value(in.make<Function>("reset", [this](Arguments&) {
      at = 0;
      return Value(None{});
    }));
    return {};
  }
  Interpreter& in;
  Items items;
  size_t at = 0;
};

Value now(const std::string& format) {
  if (format.size() > 256) fail("a time format of {} bytes", format.size());
  if (format.empty()) return "";
  timeval t{};
  gettimeofday(&t, nullptr);
  tm local{};
  localtime_r(&t.tv_sec, &local);
  const std::string full = replace(format, "%f", fmt::format("{:06}", t.tv_usec), 100) + "\x01";  // so that it is never empty
  char buffer[4096];
  const size_t n = std::strftime(buffer, sizeof buffer, full.c_str(), &local);
  if (n == 0) fail("a time of more than 4096 bytes");
  return std::string(buffer, n - 1);
}

const Table& global_functions() {
  static const Table table = {
      {"range", {"-start -stop? -step?", BUILTIN { return make_range(in, a); }}},
      {"dict", {"*", BUILTIN { return make_dict(a.all); }}},
      {"namespace", {"*", BUILTIN { return make_namespace(in, make_dict(a.all)); }}},
      {"cycler", {"*", BUILTIN {
         if (a.all.positional.empty() || !a.all.named.empty()) fail("cycler() needs items to cycle through");
         return in.make<Cycler>(in, a.all.positional);
       }}},
      {"joiner", {"sep?", BUILTIN {
         return in.make<Function>("joiner", [separator = a[0] ? *a[0] : Value(", "), first = true](Arguments&) mutable {
           return std::exchange(first, false) ? Value("") : separator;
         });
       }}},
      {"lipsum", {"*", BUILTIN { fail("lipsum() is not supported"); }}},
      {"raise_exception", {"message", BUILTIN { fail("{}", to_string(*a[0])); }}},
      {"strftime_now", {"format", BUILTIN { return now(text_of(*a[0], "a time format")); }}},
  };
  return table;
}

}  // namespace

Value find_global(Interpreter& in, const std::string& name) {
  const auto it = global_functions().find(name);
  if (it == global_functions().end()) return {};
  return in.make<Function>(name, [&in, name, f = &it->second](Arguments& a) {
    return f->run(in, Value(), bind(name.c_str(), f->parameters, a));
  });
}

}  // namespace t2l::jinja
