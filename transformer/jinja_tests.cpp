// Jinja's tests: what stands behind `is`.
#include "transformer/jinja_interpreter.h"
#include "transformer/jinja_text.h"

namespace t2l::jinja {
namespace {

Value remainder_is(const Value& self, const Value& divisor, int expected) {
  return equal(apply(Operator::Mod, self, divisor), Value(expected));
}

bool is_same(const Value& x, const Value& y) {
  if (x.kind() != y.kind()) return false;
  return x.identity() ? x.identity() == y.identity() : equal(x, y);
}

const Table& tests() {
  static const Table table = [] {
    Table t = {
        BUILTIN("odd", "", remainder_is(self, 2, 1)),
        BUILTIN("even", "", remainder_is(self, 2, 0)),
        BUILTIN("divisibleby", "num", remainder_is(self, *a[0], 0)),
        BUILTIN("defined", "", !self.is_undefined()),
        BUILTIN("undefined", "", self.is_undefined()),
        BUILTIN("filter", "", compare_keys(self, self) == 0 && self.is_string() && find_filter(self.string())),
        BUILTIN("test", "", compare_keys(self, self) == 0 && self.is_string() && find_test(self.string())),
        BUILTIN("none", "", self.is_none()),
        BUILTIN("boolean", "", self.is(Kind::Bool)),
        BUILTIN("false", "", self.is(Kind::Bool) && !self.truth()),
        BUILTIN("true", "", self.is(Kind::Bool) && self.truth()),
        BUILTIN("integer", "", self.is(Kind::Int)),
        BUILTIN("float", "", self.is(Kind::Float)),
        BUILTIN("lower", "", is_lower(to_string(self))),
        BUILTIN("upper", "", is_upper(to_string(self))),
        BUILTIN("string", "", self.is_string()),
        BUILTIN("mapping", "", self.is(Kind::Dict)),
        BUILTIN("number", "", self.is_number()),
        BUILTIN("sequence", "", self.is(Kind::Object) ? self.object()->indexable() : length(self).has_value()),
        BUILTIN("iterable", "", self.is(Kind::Object) ? self.object()->iterable() : length(self).has_value()),
        BUILTIN("callable", "", self.is_undefined() || (self.is(Kind::Object) && self.object()->callable())),
        BUILTIN("sameas", "other", is_same(self, *a[0])),
        BUILTIN("escaped", "", self.is_string() && self.text().safe),
        BUILTIN("in", "seq", contains(*a[0], self)),
        BUILTIN("eq", "-other", equal(self, *a[0])),
        BUILTIN("ne", "-other", !equal(self, *a[0])),
        BUILTIN("gt", "-other", less(*a[0], self, ">")),
        BUILTIN("ge", "-other", less(*a[0], self, ">=") || equal(self, *a[0])),
        BUILTIN("lt", "-other", less(self, *a[0], "<")),
        BUILTIN("le", "-other", less(self, *a[0], "<=") || equal(self, *a[0])),
    };
    for (const auto& [name, other] : {std::pair("equalto", "eq"),
                                      {"==", "eq"},
                                      {"!=", "ne"},
                                      {">", "gt"},
                                      {"greaterthan", "gt"},
                                      {">=", "ge"},
                                      {"<", "lt"},
                                      {"lessthan", "lt"},
                                      {"<=", "le"}})
      t[name] = t[other];
    return t;
  }();
  return table;
}

}  // namespace

const Builtin* find_test(std::string_view name) {
  const auto it = tests().find(name);
  return it == tests().end() ? nullptr : &it->second;
}

}  // namespace t2l::jinja
