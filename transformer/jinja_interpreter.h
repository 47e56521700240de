// Runs a template: a walk over its syntax tree, with Python's scopes and Jinja's rules of what a template may touch.
// Internal to transformer/jinja_*.cpp and chat_template.cpp.
#pragma once
#include <array>
#include <unordered_map>

#include "transformer/jinja_syntax.h"

namespace t2l::jinja {

class Interpreter;

// The arguments of a built-in function by the order of its parameters; null where none was given.
struct Bound {
  std::array<const Value*, 6> at{};
  Arguments& all;

  const Value* operator[](size_t i) const { return at[i]; }
  bool truth(size_t i, bool fallback = false) const { return at[i] ? at[i]->truth() : fallback; }
  Value or_none(size_t i) const { return at[i] ? *at[i] : Value(None{}); }
};
// Parameters as "name name? name?", where ? may be left out and -name cannot be named by the caller; or "*", for a
// function that looks at all arguments itself.
struct Builtin {
  const char* parameters;
  Value (*run)(Interpreter& in, const Value& self, const Bound& arguments);
};
using Table = std::unordered_map<std::string_view, Builtin>;
// An entry in a table of them, whose value is the expression at the end.
#define BUILTIN(name, parameters, ...)                                             \
  {                                                                                \
    name, {                                                                        \
      parameters,                                                                  \
          []([[maybe_unused]] Interpreter& in, [[maybe_unused]] const Value& self, \
             [[maybe_unused]] const Bound& a) -> Value { return __VA_ARGS__; }     \
    }                                                                              \
  }

Bound bind(const char* function, const char* parameters, Arguments& arguments);

const Builtin* find_filter(std::string_view name);
const Builtin* find_test(std::string_view name);
const Builtin* find_method(const Value& self, std::string_view name);
bool is_forbidden_method(const Value& self, std::string_view name);  // it would change self
Value make_namespace(Interpreter& in, const Dict& values);
Value find_global(Interpreter& in, const std::string& name);  // undefined if there is none

struct Function : Object {
  Function(std::string name_, std::function<Value(Arguments&)> f) : name(std::move(name_)), run(std::move(f)) {}
  const char* type() const override { return "builtin_function_or_method"; }
  std::string repr() const override { return "<built-in function " + name + ">"; }
  bool callable() const override { return true; }
  Value call(Arguments& a) override { return run(a); }
  std::string name;
  std::function<Value(Arguments&)> run;
};

// Yields values once, when they are asked for.
struct Generator : Object {
  explicit Generator(std::function<bool(Value&)> f) : step(std::move(f)) {}
  const char* type() const override { return "generator"; }
  bool iterable() const override { return true; }
  bool next(size_t, Value& v) override {
    Meter::Depth depth;
    return step(v);
  }
  std::function<bool(Value&)> step;
};

// The variables of one block. Macros keep the scopes they were defined in.
struct Scope {
  Scope* parent;
  std::vector<std::pair<int, Value>> variables = {};
  bool kept = false;

  Value* find(int symbol);
  void set(int symbol, Value value);
};

struct Macro;
struct Loop;

class Interpreter {
 public:
  Interpreter(const Syntax& syntax, const Dict& variables);
  std::string run();
  int line() const { return line_; }

  // Of the sandbox: obj.name, which prefers attributes, and obj[key], which prefers items. Undefined if there is none.
  Value attribute(const Value& object, const Value& name);
  Value item(const Value& object, const Value& key);
  std::optional<Value> own_attribute(const Value& object, const std::string& name);
  Value call(const Value& callee, Arguments& arguments);
  Value filter(const std::string& name, const Value& input, Arguments& arguments);
  bool test(const std::string& name, const Value& input, Arguments& arguments);
  Value call_macro(Macro& macro, Arguments& arguments);
  Value recurse(Loop& loop, const Value& iterable);

  // An object that lives as long as the render.
  template <class T, class... A>
  T* make(A&&... a) {
    Meter::bytes(sizeof(T) + 64);
    auto object = std::make_unique<T>(std::forward<A>(a)...);
    T* p = object.get();
    objects_.push_back(std::move(object));
    return p;
  }
  Value generate(std::function<bool(Value&)> step) { return make<Generator>(std::move(step)); }
  uint32_t random() { return random_ = random_ * 1664525 + 1013904223; }

 private:
  friend struct Loop;
  enum class Flow : uint8_t { Normal, Break, Continue };
  class Inner;  // a scope within the current one, for a while

  Value eval(const Node& n);
  Value eval_name(int symbol);
  Value eval_dict(const Node& n);
  Value eval_concat(const Node& n);
  bool eval_compare(const Node& n);
  Value eval_item(const Node& n);
  Value eval_call(const Node& n, const Value* caller = nullptr);
  Value eval_filter(const Node& n);
  bool eval_test(const Node& n);
  Arguments eval_arguments(const Node& n);

  Flow exec(const Node& n);
  Flow exec_body(const Node& n);
  Flow exec_if(const Node& n);
  Flow exec_with(const Node& n);
  void exec_set_block(const Node& n, Flow& flow);
  void exec_call_block(const Node& n);
  Flow exec_filter_block(const Node& n);
  Flow exec_autoescape(const Node& n);
  Flow exec_block(const Node& n);
  Flow exec_loop(const Node& n, const Value& iterable, int depth);
  Value capture(const Node& n, Flow& flow);  // what it prints
  void print(const Value& v);
  void write(std::string_view text);
  void assign(const Node& target, Value value);
  void keep(Scope* scope);

  const Syntax& syntax_;
  std::vector<Value> context_;  // by symbol: what the caller gave, and Jinja's globals
  std::vector<bool> has_context_;
  std::vector<std::unique_ptr<Object>> objects_;
  std::vector<std::unique_ptr<Scope>> kept_scopes_;
  Scope root_{nullptr};
  Scope* scope_ = &root_;
  std::string* out_ = nullptr;
  const Value* piped_ = nullptr;  // the text of a filter block
  bool autoescape_ = false;
  uint32_t random_ = 1;
  int line_ = 1;
  int loop_symbol_ = -1, caller_symbol_ = -1, varargs_symbol_ = -1, kwargs_symbol_ = -1;
};

struct Macro : Object {
  Macro(Interpreter& in_, const Node& n, std::string name_, Scope* s, bool escapes)
      : in(in_), node(n), name(std::move(name_)), scope(s), autoescape(escapes) {}
  const char* type() const override { return "Macro"; }
  std::string repr() const override {
    return "<Macro " + (name.empty() ? "anonymous" : jinja::repr(Value(name))) + ">";
  }
  bool callable() const override { return true; }
  Value call(Arguments& a) override { return in.call_macro(*this, a); }
  std::optional<Value> attribute(const std::string& attribute) override;
  Interpreter& in;
  const Node& node;
  std::string name;  // empty: of a call block
  Scope* scope;
  bool autoescape;
};

}  // namespace t2l::jinja
