// Python's three ways to write values: the % operator, the specifications of str.format, and json.dumps.
#include <algorithm>
#include <cmath>

#include "tensor/file.h"
#include "transformer/jinja_text.h"
#include "transformer/jinja_value.h"

namespace t2l::jinja {
namespace {

constexpr size_t max_width = max_value_bytes, max_precision = 1000;

// "[[fill]align][sign][#][0][width][,][.precision][type]"
struct Specification {
  char32_t fill = ' ';
  char align = 0;  // < > ^ =, or none
  char sign = '-';
  bool alternate = false;
  char grouping = 0;
  size_t width = 0;
  std::optional<size_t> precision;
  char type = 0;
};

size_t read_size(std::string_view s, size_t& at, size_t most, const char* what) {
  size_t n = 0;
  for (; at < s.size() && s[at] >= '0' && s[at] <= '9'; ++at) {
    n = n * 10 + static_cast<size_t>(s[at] - '0');
    if (n > most) fail("a format's {} is more than {}", what, most);
  }
  return n;
}

std::string digits_of(Integer x, int base) {  // of its magnitude
  std::string out;
  do {
    const int digit = static_cast<int>(x % base);
    out += "0123456789abcdef"[digit < 0 ? -digit : digit];
    x /= base;
  } while (x != 0);
  std::reverse(out.begin(), out.end());
  return out;
}

// The magnitude of x as the type e, f, g or % writes it.
std::string digits_of(double x, char type, size_t precision, bool alternate) {
  const double magnitude = std::fabs(x);
  const bool upper_case = type == 'E' || type == 'F' || type == 'G';
  std::string out;
  if (!std::isfinite(x)) {
    out = std::isnan(x) ? "nan" : "inf";
  } else {
    const std::string format =
        fmt::format("{{:{}.{}{}}}", alternate ? "#" : "", precision, static_cast<char>(type == '%' ? 'f' : type | 32));
    out = fmt::format(fmt::runtime(format), type == '%' ? magnitude * 100 : magnitude);
  }
  if (upper_case) out = upper(out);
  if (type == '%') out += '%';
  return out;
}

std::string group_thousands(const std::string& digits, char comma) {
  const size_t whole = std::min(digits.find_first_not_of("0123456789"), digits.size());
  std::string out;
  for (size_t i = 0; i < whole; ++i) {
    if (i && (whole - i) % 3 == 0) out += comma;
    out += digits[i];
  }
  return out + digits.substr(whole);
}

// Sign or prefix, digits, padded as the specification says; numbers stand to the right by default.
std::string lay_out(const std::string& head, const std::string& body, const Specification& s, char default_align) {
  const char align = s.align ? s.align : default_align;
  if (align == '=') return head + pad(body, s.width > head.size() ? s.width - head.size() : 0, s.fill, 2);
  const std::string all = head + body;
  if (align != '^') return pad(all, s.width, s.fill, align == '<' ? 0 : 2);
  const size_t n = code_points(all), missing = s.width > n ? s.width - n : 0;
  return pad(pad(all, n + missing / 2, s.fill, 2), s.width, s.fill, 0);
}

std::string sign_of(bool negative, char sign) { return negative ? "-" : sign == '-' ? "" : std::string(1, sign); }

std::string format_integer(Integer x, const Specification& s) {
  const int base = s.type == 'x' || s.type == 'X' ? 16 : s.type == 'o' ? 8 : s.type == 'b' ? 2 : 10;
  std::string head = sign_of(x < 0, s.sign), body = digits_of(x, base);
  if (s.alternate && base != 10) head += std::string("0") + s.type;
  if (s.type == 'X') body = upper(body);
  if (s.grouping) body = group_thousands(body, s.grouping);
  return lay_out(head, body, s, '>');
}

std::string format_float(double x, const Specification& s) {
  std::string body;
  if (s.type) {
    body = digits_of(x, s.type, s.precision.value_or(6), s.alternate);
  } else if (s.precision) {  // as g, but with one digit behind the point at least
    body = digits_of(x, 'g', std::max<size_t>(*s.precision, 1), s.alternate);
    if (body.find_first_of(".en") == body.npos) body += ".0";
  } else {
    body = repr(std::fabs(x));
  }
  if (s.grouping) body = group_thousands(body, s.grouping);
  return lay_out(sign_of(std::signbit(x) && !std::isnan(x), s.sign), body, s, '>');
}

Specification parse_specification(std::string_view text) {
  Specification s;
  size_t at = 0;
  const auto is_align = [&](size_t i) {
    return i < text.size() && std::string_view("<>^=").find(text[i]) != View::npos;
  };
  size_t second = 0;
  const char32_t first = text.empty() ? ' ' : next_code_point(text, second);
  if (second && is_align(second)) {
    s.fill = first;
    s.align = text[second];
    at = second + 1;
  } else if (is_align(0)) {
    s.align = text[at++];
  }
  const auto next_is = [&](std::string_view set) { return at < text.size() && set.find(text[at]) != View::npos; };
  if (next_is("+- ")) s.sign = text[at++];
  if (next_is("#")) s.alternate = ++at;
  if (next_is("0")) {
    ++at;
    if (!s.align) s.fill = '0', s.align = '=';
  }
  s.width = read_size(text, at, max_width, "width");
  if (next_is(",_")) s.grouping = text[at++];
  if (next_is(".")) {
    const size_t begin = ++at;
    s.precision = read_size(text, at, max_precision, "precision");
    if (at == begin) fail("a format's precision is missing");
  }
  if (at < text.size()) s.type = text[at++];
  if (at != text.size()) fail("invalid format specification '{}'", printable(text));
  return s;
}

}  // namespace

std::string format_value(const Value& v, std::string_view spec) {
  if (spec.empty()) return to_string(v);
  Specification s = parse_specification(spec);
  const auto among = [&](std::string_view types) { return !s.type || types.find(s.type) != View::npos; };
  if (v.is_integer() && !(v.is(Kind::Bool) && !s.type) && among("bcdoxXn")) {
    if (s.precision) fail("a precision is not allowed for integers");
    if (s.type == 'n') s.type = 'd';
    if (s.type != 'c') return format_integer(v.integer(), s);
    if (v.integer() < 0 || v.integer() > 0x10FFFF || (v.integer() >> 11) == 0x1B) fail("no character has this number");
    std::string c;
    append_code_point(c, static_cast<char32_t>(v.integer()));
    return lay_out("", c, s, '<');
  }
  if (v.is_number() && !(v.is(Kind::Bool) && !s.type) && among("eEfFgGn%")) {
    if (s.type == 'n') s.type = 'g';
    if (s.type == 'g' || s.type == 'G') s.precision = std::max<size_t>(s.precision.value_or(6), 1);
    return format_float(v.real(), s);
  }
  if (v.is_string() || v.is(Kind::Bool)) {
    if (s.type && s.type != 's') fail("format code '{}' does not fit a string", s.type);
    if (s.align == '=' && s.fill != '0') fail("alignment '=' does not fit a string");
    if (s.align == '=') s.align = '<';
    if (s.grouping || s.alternate || s.sign != '-') fail("sign, '#' and ',' do not fit a string");
    const std::string text = to_string(v);
    return lay_out("", s.precision ? text.substr(0, offset_of(text, *s.precision)) : text, s, '<');
  }
  fail("unsupported format '{}' for '{}'", printable(spec), v.type());
}

std::string format_percent(const std::string& format, const Value& arguments) {
  const Items single = arguments.is(Kind::Tuple) ? Items() : Items{arguments};
  const Items& given = arguments.is(Kind::Tuple) ? arguments.items() : single;
  size_t used = 0;
  bool named = false;
  const auto next = [&]() -> const Value& {
    if (used == given.size()) fail("not enough arguments for the format string");
    return given[used++];
  };
  std::string out;
  for (size_t i = 0; i < format.size();) {
    if (format[i] != '%') {
      out += format[i++];
      continue;
    }
    const auto more = [&] {
      if (++i >= format.size()) fail("incomplete format");
      return format[i];
    };
    char c = more();
    const Value* value = nullptr;
    if (c == '(') {
      const size_t begin = i + 1;
      for (int open = 1; open;) open += (c = more()) == '(' ? 1 : c == ')' ? -1 : 0;
      if (!arguments.is(Kind::Dict)) fail("format requires a mapping");
      const std::string key = format.substr(begin, i - begin);
      value = arguments.dict().find(Value(key));
      if (!value) fail("the format's key '{}' is missing", printable(key));
      named = true;
      c = more();
    }
    Specification s;
    bool left = false, zero = false;
    for (; std::string_view("-+ #0").find(c) != View::npos; c = more()) {
      left |= c == '-';
      zero |= c == '0';
      s.alternate |= c == '#';
      if (c == '+' || (c == ' ' && s.sign != '+')) s.sign = c;
    }
    const auto size = [&](size_t most, const char* what) {
      if (c != '*') {
        const size_t n = read_size(format, i, most, what);
        if (i >= format.size()) fail("incomplete format");
        c = format[i];
        return n;
      }
      Integer n = to_int(next(), what);
      if (n < 0 && most == max_width) left = true, n = -n;
      if (n > static_cast<Integer>(most)) fail("a format's {} is more than {}", what, most);
      c = more();
      return static_cast<size_t>(std::max<Integer>(n, 0));
    };
    s.width = size(max_width, "width");
    if (c == '.') {
      c = more();
      s.precision = size(max_precision, "precision");
    }
    if (c == 'h' || c == 'l' || c == 'L') c = more();
    ++i;
    if (c == '%') {
      out += '%';
      continue;
    }
    if (!value) value = &next();
    const Value& v = *value;
    s.align = left ? '<' : 0;
    if (c == 's' || c == 'r' || c == 'a') {
      if (c == 'a') fail("%a is not supported; use %r");
      const std::string text = c == 's' ? to_string(v) : repr(v);
      out += lay_out("", s.precision ? text.substr(0, offset_of(text, *s.precision)) : text, s, '>');
    } else if (c == 'c') {
      if (v.is_string() ? *length(v) != 1
                        : !v.is_integer() || v.integer() < 0 || v.integer() > 0x10FFFF || (v.integer() >> 11) == 0x1B)
        fail("%c requires a character");
      std::string text = v.is_string() ? v.string() : "";
      if (!v.is_string()) append_code_point(text, static_cast<char32_t>(v.integer()));
      out += lay_out("", text, s, '>');
    } else {
      const bool integral = std::string_view("diuoxX").find(c) != View::npos;
      if (!integral && std::string_view("eEfFgG").find(c) == View::npos)
        fail("unsupported format character '{}'", printable({&c, 1}));
      if (!v.is_number() || ((c == 'o' || c == 'x' || c == 'X') && !v.is_integer()))
        fail("%{} needs a number, not '{}'", c, v.defined().type());
      if (zero && !left) s.fill = '0', s.align = '=';
      s.type = c == 'i' || c == 'u' ? 'd' : c;
      if (integral && s.precision) {
        const Integer n = v.is_integer() ? v.integer() : truncated(v.real());
        std::string digits = digits_of(n, c == 'o' ? 8 : c == 'x' || c == 'X' ? 16 : 10);
        if (c == 'X') digits = upper(digits);
        digits.insert(0, *s.precision > digits.size() ? *s.precision - digits.size() : 0, '0');
        out += lay_out(sign_of(n < 0, s.sign) + (s.alternate && s.type != 'd' ? std::string("0") + c : ""), digits, s,
                       '>');
      } else if (integral) {
        out += format_integer(v.is_integer() ? v.integer() : truncated(v.real()), s);
      } else {
        if ((c | 32) == 'g') s.precision = std::max<size_t>(s.precision.value_or(6), 1);
        out += format_float(v.real(), s);
      }
    }
    if (out.size() > max_value_bytes) break;
  }
  Meter::bytes(out.size());
  const bool may_ignore = named || arguments.is(Kind::Dict) || arguments.is(Kind::List) || arguments.is_undefined();
  if (used < given.size() && !(may_ignore && !arguments.is(Kind::Tuple)))
    fail("not all arguments are used by the format string");
  return out;
}

// ---- JSON -----------------------------------------------------------------------------------------------------------

namespace {

class JsonWriter {
 public:
  explicit JsonWriter(const JsonStyle& style)
      : style_(style), comma_(style.comma.value_or(style.indent ? "," : ", ")), colon_(style.colon.value_or(": ")) {}

  std::string take() { return std::move(out_); }

  void write(const Value& v, size_t level) {
    Meter::Depth guard;
    Meter::steps(1);
    switch (v.kind()) {
      case Kind::None: return add("null");
      case Kind::Bool: return add(v.truth() ? "true" : "false");
      case Kind::Int: return add(repr(v.integer()));
      case Kind::Float: return add(number(v.real()));
      case Kind::String: return write_string(v.string());
      case Kind::List:
      case Kind::Tuple: {
        if (v.items().empty()) return add("[]");
        add("[");
        bool first = true;
        for (const Value& item : v.items()) {
          begin_item(std::exchange(first, false), level + 1);
          write(item, level + 1);
        }
        end_items(level);
        return add("]");
      }
      case Kind::Dict: return write_dict(v.dict(), level);
      default: fail("tojson: an object of type '{}' has no JSON", v.type());
    }
  }

 private:
  static std::string number(double x) {
    return std::isfinite(x) ? repr(x) : std::isnan(x) ? "NaN" : x < 0 ? "-Infinity" : "Infinity";
  }

  void write_dict(const Dict& dict, size_t level) {
    if (dict.size() == 0) return add("{}");
    std::vector<const Dict::Entry*> entries;
    for (const auto& e : dict.entries()) entries.push_back(&e);
    if (style_.sort)
      std::stable_sort(entries.begin(), entries.end(),
                       [](const auto* x, const auto* y) { return less(x->first, y->first); });
    add("{");
    bool first = true;
    for (const auto* e : entries) {
      begin_item(std::exchange(first, false), level + 1);
      write_key(e->first);
      add(colon_);
      write(e->second, level + 1);
    }
    end_items(level);
    add("}");
  }

  void write_key(const Value& key) {
    switch (key.kind()) {
      case Kind::String: return write_string(key.string());
      case Kind::None: return add("\"null\"");
      case Kind::Bool: return add(key.truth() ? "\"true\"" : "\"false\"");
      case Kind::Int: return add("\"" + repr(key.integer()) + "\"");
      case Kind::Float: return add("\"" + number(key.real()) + "\"");
      default: fail("tojson: a key must be a string, a number, a truth value or none, not '{}'", key.type());
    }
  }

  void write_string(std::string_view s) {
    std::string quoted = "\"";
    for (size_t at = 0; at < s.size();) {
      const char32_t c = next_code_point(s, at);
      static constexpr std::string_view special = "\"\\\n\r\t\f\b", letter = "\"\\nrtfb";
      if (const size_t k = c < 0x80 ? special.find(static_cast<char>(c)) : View::npos; k != View::npos) {
        quoted += '\\';
        quoted += letter[k];
      } else if (c < 0x20 || (style_.ascii && c >= 0x80)) {
        const auto n = static_cast<uint32_t>(c);
        quoted += n < 0x10000 ? fmt::format("\\u{:04x}", n)
                              : fmt::format("\\u{:04x}\\u{:04x}", 0xD7C0 + (n >> 10), 0xDC00 + (n & 0x3FF));
      } else {
        append_code_point(quoted, c);
      }
    }
    add(quoted + '"');
  }

  void begin_item(bool first, size_t level) {
    if (!first) add(comma_);
    new_line(level);
  }
  void end_items(size_t level) { new_line(level); }
  void new_line(size_t level) {
    if (!style_.indent) return;
    Meter::bytes(product(level, style_.indent->size()) + 1);
    add("\n");
    for (size_t i = 0; i < level; ++i) add(*style_.indent);
  }
  void add(std::string_view s) {
    Meter::bytes(s.size());
    out_ += s;
    if (out_.size() > max_value_bytes) Meter::bytes(out_.size());  // says so
  }

  const JsonStyle& style_;
  std::string comma_, colon_, out_;
};

}  // namespace

std::string to_json(const Value& v, const JsonStyle& style) {
  JsonWriter writer(style);
  writer.write(v, 0);
  return writer.take();
}

}  // namespace t2l::jinja
