// Arithmetic, numbers out of text, and slices. Integers have 127 bits and floats are doubles; what does not fit is an
// error, never a wrong number.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "transformer/jinja_text.h"
#include "transformer/jinja_value.h"

namespace t2l::jinja {
namespace {

constexpr const char* operator_names[] = {"+", "-", "*", "/", "//", "%", "**"};

[[noreturn]] void overflow() { fail("an integer of more than 127 bits"); }

Integer floor_div(Integer a, Integer b) {
  if (b == -1) return a == std::numeric_limits<Integer>::min() ? (overflow(), 0) : -a;
  const Integer q = a / b;
  return q - (a % b != 0 && (a < 0) != (b < 0));
}

Value power(Integer base, Integer exponent) {
  if (exponent < 0) {
    if (base == 0) fail("0 cannot be raised to a negative power");
    return std::pow(static_cast<double>(base), static_cast<double>(exponent));
  }
  Integer result = 1;
  for (Integer square = base; exponent; exponent >>= 1) {
    if ((exponent & 1) && __builtin_mul_overflow(result, square, &result)) overflow();
    if (exponent > 1 && __builtin_mul_overflow(square, square, &square)) overflow();
  }
  return result;
}

Value apply_integers(Operator op, Integer a, Integer b) {
  Integer r = 0;
  if ((op == Operator::Div || op == Operator::FloorDiv || op == Operator::Mod) && b == 0) fail("division by zero");
  switch (op) {
    case Operator::Add: return __builtin_add_overflow(a, b, &r) ? (overflow(), r) : r;
    case Operator::Sub: return __builtin_sub_overflow(a, b, &r) ? (overflow(), r) : r;
    case Operator::Mul: return __builtin_mul_overflow(a, b, &r) ? (overflow(), r) : r;
    case Operator::Div: return static_cast<double>(static_cast<long double>(a) / static_cast<long double>(b));
    case Operator::FloorDiv: return floor_div(a, b);
    case Operator::Mod: return b == -1 ? Integer{0} : a - floor_div(a, b) * b;
    case Operator::Pow: return power(a, b);
  }
  return r;
}

Value apply_floats(Operator op, double a, double b) {
  switch (op) {
    case Operator::Add: return a + b;
    case Operator::Sub: return a - b;
    case Operator::Mul: return a * b;
    case Operator::Div:
      if (b == 0) fail("division by zero");
      return a / b;
    case Operator::FloorDiv:
    case Operator::Mod: {  // as CPython's float_divmod
      if (b == 0) fail("division by zero");
      double mod = std::fmod(a, b), div = (a - mod) / b;
      if (mod != 0 && (b < 0) != (mod < 0)) mod += b, div -= 1;
      if (mod == 0) mod = std::copysign(0., b);
      if (op == Operator::Mod) return mod;
      if (div == 0) return std::copysign(0., a / b);
      const double floor = std::floor(div);
      return div - floor > 0.5 ? floor + 1 : floor;
    }
    case Operator::Pow: {
      if (a == 0 && b < 0) fail("0 cannot be raised to a negative power");
      const double r = std::pow(a, b);
      if (std::isnan(r) && !std::isnan(a) && !std::isnan(b)) fail("complex numbers are not supported");
      if (std::isinf(r) && std::isfinite(a) && std::isfinite(b)) fail("a result too large for a float");
      return r;
    }
  }
  return 0.;
}

Value repeat(const Value& v, Integer times) {
  const auto n = times < 0 ? size_t{0} : times > Integer{1} << 40 ? size_t{1} << 40 : static_cast<size_t>(times);
  if (v.is_string()) {
    Meter::bytes(product(n, v.string().size()));
    std::string out;
    if (!v.string().empty())
      for (size_t i = 0; i < n; ++i) out += v.string();
    return {std::move(out), v.text().safe};
  }
  Meter::bytes(product(product(n, v.items().size()), sizeof(Value)));
  Items out;
  if (!v.items().empty())
    for (size_t i = 0; i < n; ++i) out.insert(out.end(), v.items().begin(), v.items().end());
  return v.is(Kind::List) ? Value::list(std::move(out)) : Value::tuple(std::move(out));
}

}  // namespace

Value apply(Operator op, const Value& a, const Value& b) {
  if (op == Operator::Mod && a.is_string()) return {format_percent(a.string(), b), a.text().safe};
  a.defined();
  b.defined();
  if (a.is_integer() && b.is_integer()) return apply_integers(op, a.integer(), b.integer());
  if (a.is_number() && b.is_number()) return apply_floats(op, a.real(), b.real());
  if (op == Operator::Add && a.is_string() && b.is_string()) {
    const bool safe = a.text().safe || b.text().safe;
    Meter::bytes(a.string().size() + b.string().size());
    return {(safe && !a.text().safe ? escape(a.string()) : a.string()) +
                (safe && !b.text().safe ? escape(b.string()) : b.string()),
            safe};
  }
  if (op == Operator::Add && a.is_sequence() && a.kind() == b.kind()) {
    Items items = to_items(a);
    items.insert(items.end(), b.items().begin(), b.items().end());
    return a.is(Kind::List) ? Value::list(std::move(items)) : Value::tuple(std::move(items));
  }
  if (op == Operator::Mul && (a.is_string() || a.is_sequence()) && b.is_integer()) return repeat(a, b.integer());
  if (op == Operator::Mul && (b.is_string() || b.is_sequence()) && a.is_integer()) return repeat(b, a.integer());
  fail("unsupported operands of {}: '{}' and '{}'", operator_names[static_cast<int>(op)], a.type(), b.type());
}

Value negate(const Value& v) {
  if (v.is_integer()) return apply_integers(Operator::Sub, 0, v.integer());
  if (v.is(Kind::Float)) return -v.real();
  fail("unsupported operand of unary -: '{}'", v.defined().type());
}

Value positive(const Value& v) {
  if (v.is_integer()) return v.integer();
  if (v.is(Kind::Float)) return v;
  fail("unsupported operand of unary +: '{}'", v.defined().type());
}

Integer to_int(const Value& v, const char* what) {
  if (!v.is_integer()) fail("{} must be an integer, not '{}'", what, v.defined().type());
  return v.integer();
}

Integer truncated(double x) {
  if (std::isnan(x)) fail("cannot convert NaN to an integer");
  if (!(std::fabs(x) < std::ldexp(1., 127))) overflow();
  return static_cast<Integer>(x);
}

std::optional<Integer> parse_int(std::string_view text, int base) {
  View s = strip(text, {});
  const bool negative = s.starts_with('-');
  if (negative || s.starts_with('+')) s.remove_prefix(1);
  const auto prefix = [&](char c, int b) {
    const bool has = s.size() >= 2 && s[0] == '0' && (s[1] | 32) == c && (base == 0 || base == b);
    if (has) {
      s.remove_prefix(2);
      if (s.starts_with('_')) s.remove_prefix(1);
      base = b;
    }
    return has;
  };
  if (!prefix('x', 16) && !prefix('o', 8) && !prefix('b', 2) && base == 0) {
    base = 10;
    if (s.starts_with('0') && s.find_first_not_of("0_") != View::npos) return {};
  }
  if (s.empty() || s.front() == '_' || s.back() == '_' || s.find("__") != View::npos) return {};
  Integer value = 0;
  for (const char c : s) {
    if (c == '_') continue;
    const int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'z' ? (c | 32) - 'a' + 10 : 99;
    if (digit >= base) return {};
    if (__builtin_mul_overflow(value, Integer{base}, &value) || __builtin_add_overflow(value, Integer{digit}, &value))
      overflow();
  }
  return negative ? -value : value;
}

std::optional<double> parse_float(std::string_view text) {
  std::string s(strip(text, {}));
  for (size_t i = 0; (i = s.find('_', i)) != s.npos;) {  // only between digits
    const auto digit = [&](size_t at) { return at < s.size() && s[at] >= '0' && s[at] <= '9'; };
    if (i == 0 || !digit(i - 1) || !digit(i + 1)) return {};
    s.erase(i, 1);
  }
  const bool negative = s.starts_with('-');
  if (negative || s.starts_with('+')) s.erase(0, 1);
  if (s.empty() || s[0] == '-') return {};
  for (char& c : s) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c | 32 : c);
  if (s[0] == 'n' && s != "nan") return {};  // from_chars also reads nan(...)
  double value = 0;
  const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), value);
  if (end != s.data() + s.size() || error == std::errc::invalid_argument) return {};
  if (error == std::errc::result_out_of_range) value = std::strtod(s.c_str(), nullptr);  // infinite, or 0
  return negative ? -value : value;
}

Slice clip_slice(const Value& start, const Value& stop, const Value& step, size_t n) {
  const auto bound = [](const Value& v, Integer fallback, Integer least, Integer most, Integer size) {
    if (v.is_none()) return fallback;
    if (!v.is_integer()) fail("slice indices must be integers or none, not '{}'", v.type());
    Integer x = v.integer();
    if (x < 0) x = x < -size ? least : x + size;
    return std::clamp(x, least, most);
  };
  const Integer size = static_cast<Integer>(n);
  const Integer by =
      step.is_none() ? 1 : std::clamp(to_int(step, "a slice's step"), -(Integer{1} << 62), Integer{1} << 62);
  if (by == 0) fail("slice step cannot be zero");
  const Integer from = by > 0 ? bound(start, 0, 0, size, size) : bound(start, size - 1, -1, size - 1, size);
  const Integer to = by > 0 ? bound(stop, size, 0, size, size) : bound(stop, -1, -1, size - 1, size);
  const Integer span = by > 0 ? to - from : from - to, stride = by > 0 ? by : -by;
  return {static_cast<int64_t>(from), static_cast<int64_t>(by),
          span <= 0 ? 0 : static_cast<size_t>((span + stride - 1) / stride)};
}

Value subscript(const Value& v, const Slice& s) {
  const auto at = [&](size_t i) { return static_cast<size_t>(s.start + static_cast<int64_t>(i) * s.step); };
  if (v.is_string()) {
    const std::string& text = v.string();
    Meter::scan(text.size());
    if (v.text().ascii && s.step == 1) return {text.substr(s.count ? at(0) : 0, s.count), v.text().safe};
    Meter::bytes(s.step == 1 || v.text().ascii ? s.count : product(text.size(), 4));
    std::string out;
    if (v.text().ascii) {
      for (size_t i = 0; i < s.count; ++i) out += text[at(i)];
    } else if (s.step == 1) {
      const size_t begin = offset_of(text, s.count ? at(0) : 0);
      out = text.substr(begin, offset_of(View(text).substr(begin), s.count));
    } else {
      std::u32string points;
      for_code_points(text, [&](char32_t c) { points += c; });
      for (size_t i = 0; i < s.count; ++i) append_code_point(out, points[at(i)]);
    }
    return {std::move(out), v.text().safe};
  }
  Meter::bytes(product(s.count, sizeof(Value)));
  Items out;
  out.reserve(s.count);
  for (size_t i = 0; i < s.count; ++i) out.push_back(v.items()[at(i)]);
  return v.is(Kind::List) ? Value::list(std::move(out)) : Value::tuple(std::move(out));
}

}  // namespace t2l::jinja
