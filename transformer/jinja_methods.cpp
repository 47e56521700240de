// The methods of str, list, tuple and dict, those that would change them apart.
#include <algorithm>

#include "tensor/file.h"
#include "transformer/jinja_interpreter.h"
#include "transformer/jinja_text.h"

namespace t2l::jinja {
namespace {

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
    const auto it =
        std::find_if(a.all.named.begin(), a.all.named.end(), [&](const auto& x) { return x.first == first; });
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
    if (bracket && i < field.size() && field[i] != '.' && field[i] != '[')
      fail("a format's ']' must be followed by '.' or '['");
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

Value count_in(const Value& self, const Bound& a) {
  const auto range = range_of(self, a);
  return range ? count(range->second, text_of(*a[0], "what is counted")) : size_t{0};
}

Value format_method(Interpreter& in, const Value& self, const Bound& a) {
  size_t automatic = 0;
  return format_fields(in, self.string(), a, automatic, 0);
}

const Table& string_methods() {
  static const Table table = {
      BUILTIN("capitalize", "", capitalize(self.string())),
      BUILTIN("casefold", "", fold(self.string())),
      BUILTIN("center", "-width -fill?", padded(self, a, 1)),
      BUILTIN("count", "-sub -start? -end?", count_in(self, a)),
      BUILTIN("endswith", "-suffix -start? -end?", begins_or_ends(self, a, true)),
      BUILTIN("expandtabs", "tabsize?", expand_tabs(self, a)),
      BUILTIN("find", "-sub -start? -end?", find_in(self, a, false)),
      BUILTIN("format", "*", format_method(in, self, a)),
      BUILTIN("index", "-sub -start? -end?", index_in(self, a, false)),
      BUILTIN("isalnum", "", all_are(self, is_alnum)),
      BUILTIN("isalpha", "", all_are(self, is_alpha)),
      BUILTIN("isascii", "", self.text().ascii),
      BUILTIN("isdecimal", "", all_are(self, is_decimal)),
      BUILTIN("isdigit", "", all_are(self, is_digit)),
      BUILTIN("islower", "", is_lower(self.string())),
      BUILTIN("isnumeric", "", all_are(self, is_numeric_value)),
      BUILTIN("isprintable", "", self.string().empty() || all_are(self, is_printable).truth()),
      BUILTIN("isspace", "", all_are(self, is_python_space)),
      BUILTIN("istitle", "", is_title(self.string())),
      BUILTIN("isupper", "", is_upper(self.string())),
      BUILTIN("join", "-iterable", join_method(self, a)),
      BUILTIN("ljust", "-width -fill?", padded(self, a, 0)),
      BUILTIN("lower", "", lower(self.string())),
      BUILTIN("lstrip", "-chars?", strip_method(self, a, true, false)),
      BUILTIN("partition", "-sep", partition(self, a, false)),
      BUILTIN("removeprefix", "-prefix", remove_affix(self, a, false)),
      BUILTIN("removesuffix", "-suffix", remove_affix(self, a, true)),
      BUILTIN("replace", "-old -new -count?", replace_method(self, a)),
      BUILTIN("rfind", "-sub -start? -end?", find_in(self, a, true)),
      BUILTIN("rindex", "-sub -start? -end?", index_in(self, a, true)),
      BUILTIN("rjust", "-width -fill?", padded(self, a, 2)),
      BUILTIN("rpartition", "-sep", partition(self, a, true)),
      BUILTIN("rsplit", "sep? maxsplit?", split_method(self, a, true)),
      BUILTIN("rstrip", "-chars?", strip_method(self, a, false, true)),
      BUILTIN("split", "sep? maxsplit?", split_method(self, a, false)),
      BUILTIN("splitlines", "keepends?", views(split_lines(self.string(), a.truth(0)))),
      BUILTIN("startswith", "-prefix -start? -end?", begins_or_ends(self, a, false)),
      BUILTIN("strip", "-chars?", strip_method(self, a, true, true)),
      BUILTIN("swapcase", "", swap_case(self.string())),
      BUILTIN("title", "", title(self.string())),
      BUILTIN("upper", "", upper(self.string())),
      BUILTIN("zfill", "-width", zfill(self, a)),
  };
  return table;
}

// ---- list, tuple, dict ----------------------------------------------------------------------------------------------

bool same(const Value& a, const Value& b) { return (a.identity() && a.identity() == b.identity()) || equal(a, b); }

Value count_items(const Value& self, const Bound& a) {
  return std::count_if(self.items().begin(), self.items().end(), [&](const Value& v) { return same(v, *a[0]); });
}

Value index_of_item(const Value& self, const Bound& a) {
  const Slice s = clip_slice(a.or_none(1), a.or_none(2), Value(None{}), self.items().size());
  for (size_t i = 0; i < s.count; ++i)
    if (same(self.items()[static_cast<size_t>(s.start) + i], *a[0])) return static_cast<size_t>(s.start) + i;
  fail("the value is not in the list");
}

const Table& sequence_methods() {
  static const Table table = {
      BUILTIN("count", "-value", count_items(self, a)),
      BUILTIN("index", "-value -start? -stop?", index_of_item(self, a)),
  };
  return table;
}

// What keys(), values() and items() give.
struct DictView : Object {
  enum What { Keys, Values, Items };
  DictView(const Value& d, What w) : dict(d), what(w) {}
  const char* type() const override {
    return what == Keys ? "dict_keys" : what == Values ? "dict_values" : "dict_items";
  }
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

Value get(const Value& self, const Bound& a) {
  const Value* v = self.dict().find(*a[0]);
  return v ? *v : a.or_none(1);
}

const Table& dict_methods() {
  static const Table table = {
      BUILTIN("copy", "", self),  // nothing ever changes either of the two
      BUILTIN("get", "-key -default?", get(self, a)),
      BUILTIN("items", "", in.make<DictView>(self, DictView::Items)),
      BUILTIN("keys", "", in.make<DictView>(self, DictView::Keys)),
      BUILTIN("values", "", in.make<DictView>(self, DictView::Values)),
  };
  return table;
}

}  // namespace

const Builtin* find_method(const Value& self, std::string_view name) {
  const Table* table = self.is_string()      ? &string_methods()
                       : self.is_sequence()  ? &sequence_methods()
                       : self.is(Kind::Dict) ? &dict_methods()
                                             : nullptr;
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

}  // namespace t2l::jinja
