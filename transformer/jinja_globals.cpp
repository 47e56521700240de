// Jinja's global functions, and those that transformers adds.
#include <sys/time.h>

#include <ctime>

#include "transformer/jinja_interpreter.h"
#include "transformer/jinja_text.h"

namespace t2l::jinja {
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
    if (name == "next")
      return Value(in.make<Function>("next", [this](Arguments&) {
        const Value v = items[at];
        at = (at + 1) % items.size();
        return v;
      }));
    if (name == "reset")
      return Value(in.make<Function>("reset", [this](Arguments&) {
        at = 0;
        return Value(None{});
      }));
    return {};
  }
  Interpreter& in;
  Items items;
  size_t at = 0;
};

Value now(const Value& given) {
  if (!given.is_string()) fail("a time format must be a string, not '{}'", given.defined().type());
  const std::string& format = given.string();
  if (format.size() > 256) fail("a time format of {} bytes", format.size());
  if (format.empty()) return "";
  timeval t{};
  gettimeofday(&t, nullptr);
  tm local{};
  localtime_r(&t.tv_sec, &local);
  const std::string full =
      replace(format, "%f", fmt::format("{:06}", t.tv_usec), 100) + "\x01";  // so that it is never empty
  char buffer[4096];
  const size_t n = std::strftime(buffer, sizeof buffer, full.c_str(), &local);
  if (n == 0) fail("a time of more than 4096 bytes");
  return std::string(buffer, n - 1);
}

Value make_cycler(Interpreter& in, const Bound& a) {
  if (a.all.positional.empty() || !a.all.named.empty()) fail("cycler() needs items to cycle through");
  return in.make<Cycler>(in, a.all.positional);
}

Value make_joiner(Interpreter& in, const Bound& a) {
  return in.make<Function>("joiner", [separator = a[0] ? *a[0] : Value(", "), first = true](Arguments&) mutable {
    return std::exchange(first, false) ? Value("") : separator;
  });
}

[[noreturn]] Value refuse(const std::string& why) { fail("{}", why); }

const Table& global_functions() {
  static const Table table = {
      BUILTIN("range", "-start -stop? -step?", make_range(in, a)),
      BUILTIN("dict", "*", make_dict(a.all)),
      BUILTIN("namespace", "*", make_namespace(in, make_dict(a.all))),
      BUILTIN("cycler", "*", make_cycler(in, a)),
      BUILTIN("joiner", "sep?", make_joiner(in, a)),
      BUILTIN("lipsum", "*", refuse("lipsum() is not supported")),
      BUILTIN("raise_exception", "message", refuse(to_string(*a[0]))),
      BUILTIN("strftime_now", "format", now(*a[0])),
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
