#include "transformer/jinja_interpreter.h"

#include <algorithm>

#include "tensor/file.h"

namespace t2l::jinja {

Value* Scope::find(int symbol) {
  Meter::steps(variables.size() / 16);
  const auto it = std::find_if(variables.begin(), variables.end(), [&](const auto& v) { return v.first == symbol; });
  return it == variables.end() ? nullptr : &it->second;
}

void Scope::set(int symbol, Value value) {
  if (Value* old = find(symbol)) {
    *old = std::move(value);
  } else {
    Meter::bytes(sizeof variables[0]);
    variables.emplace_back(symbol, std::move(value));
  }
}

class Interpreter::Inner {
 public:
  explicit Inner(Interpreter& in) : Inner(in, in.scope_) {}
  Inner(Interpreter& in, Scope* parent) : in_(in), outer_(in.scope_), own_(new Scope{parent}) {
    in.scope_ = own_.get();
  }
  ~Inner() {
    in_.scope_ = outer_;
    if (own_->kept) in_.kept_scopes_.push_back(std::move(own_));
  }
  Inner(const Inner&) = delete;
  Inner& operator=(const Inner&) = delete;
  void clear() {  // for the next turn of a loop
    if (!own_->kept) return own_->variables.clear();
    in_.kept_scopes_.push_back(std::move(own_));
    own_.reset(new Scope{in_.kept_scopes_.back()->parent});
    in_.scope_ = own_.get();
  }

 private:
  Interpreter& in_;
  Scope* outer_;
  std::unique_ptr<Scope> own_;
};

namespace {

// Sets a variable for as long as it lives.
template <class T>
class Restore {
 public:
  Restore(T& variable, T value) : variable_(variable), old_(std::exchange(variable, std::move(value))) {}
  ~Restore() { variable_ = std::move(old_); }
  Restore(const Restore&) = delete;
  Restore& operator=(const Restore&) = delete;

 private:
  T& variable_;
  T old_;
};

std::string described(const Value& object) {
  return object.is_none() ? "None" : fmt::format("'{} object'", object.type());
}

}  // namespace

// ---- loops ----------------------------------------------------------------------------------------------------------

struct Loop : Object {
  Loop(Interpreter& in_, const Node& n, const Value& iterable, int depth_, Scope* s)
      : in(in_), node(n), scope(s), depth0(depth_), cursor(iterable) {
    if (!n.children[2]) known_length = jinja::length(iterable);
  }
  const char* type() const override { return "LoopContext"; }
  bool callable() const override { return true; }
  Value call(Arguments& a) override {
    const Bound b = bind("loop", "iterable", a);
    if (!node.flag) fail("the loop must have the 'recursive' marker to be called");
    return in.recurse(*this, *b[0]);
  }
  std::optional<size_t> length() const override { return known_length; }
  bool truth() const override { return true; }
  std::optional<Value> attribute(const std::string& name) override;

  bool pull(Value& v);  // the next item that passes the condition
  bool advance() {
    Value next;
    if (taken < ahead.size()) {
      next = std::move(ahead[taken++]);
    } else if (!pull(next)) {
      return false;
    }
    before = std::exchange(current, std::move(next));
    ++index;
    return true;
  }
  bool peek() {
    Value v;
    if (taken < ahead.size()) return true;
    if (!pull(v)) return false;
    ahead = {std::move(v)};
    taken = 0;
    return true;
  }
  size_t total() {
    if (known_length) return *known_length;
    for (Value v; pull(v);) {
      Meter::bytes(sizeof v);
      ahead.push_back(std::move(v));
    }
    return *(known_length = index + ahead.size() - taken);
  }

  Interpreter& in;
  const Node& node;
  Scope* scope;  // where the loop stands
  int depth0;
  Cursor cursor;
  Items ahead = {};  // read before their turn, for loop.last or loop.length
  size_t taken = 0;
  std::optional<size_t> known_length = {};
  size_t index = 0;  // from 1
  Value before = {}, current = {};
  std::optional<Value> last_changed = {};
};

bool Loop::pull(Value& v) {
  const Node* condition = node.children[2].get();
  while (cursor.next(v)) {
    if (!condition) return true;
    Restore at(in.scope_, scope);
    Interpreter::Inner inner(in);
    in.assign(*node.children[0], v);
    if (!in.eval(*condition).truth()) continue;
    v = in.eval(*node.children[0]);  // a tuple where the target is one, as loop.previtem shows
    return true;
  }
  return false;
}

std::optional<Value> Loop::attribute(const std::string& name) {
  if (name == "index") return index;
  if (name == "index0") return index - 1;
  if (name == "first") return index == 1;
  if (name == "last") return !peek();
  if (name == "length") return total();
  if (name == "revindex") return total() - index + 1;
  if (name == "revindex0") return total() - index;
  if (name == "depth") return depth0 + 1;
  if (name == "depth0") return depth0;
  if (name == "previtem") return index == 1 ? Value::undefined("there is no previous item") : before;
  if (name == "nextitem") return peek() ? ahead[taken] : Value::undefined("there is no next item");
  if (name == "cycle")
    return in.make<Function>("cycle", [this](Arguments& a) {
      if (a.positional.empty()) fail("loop.cycle() has no items to cycle through");
      return a.positional[(index - 1) % a.positional.size()];
    });
  if (name == "changed")
    return in.make<Function>("changed", [this](Arguments& a) {
      Value now = Value::tuple(a.positional);
      const bool changed = !last_changed || !equal(*last_changed, now);
      last_changed = std::move(now);
      return Value(changed);
    });
  return {};
}

Interpreter::Flow Interpreter::exec_loop(const Node& n, const Value& iterable, int depth) {
  std::optional<Loop> local;
  Loop& loop = n.uses_loop || n.flag ? *make<Loop>(*this, n, iterable, depth, scope_)
                                     : local.emplace(*this, n, iterable, depth, scope_);
  if (n.flag || (n.uses_loop && n.children[2]))
    keep(scope_);  // a namespace may hold `loop` longer than this scope lives
  Inner inner(*this);
  bool completed = false;  // as in Jinja: what `break` or `continue` cut short does not keep `else` away
  while (loop.advance()) {
    if (loop.index > 1) inner.clear();
    if (n.uses_loop || n.flag) scope_->set(loop_symbol_, Value(&loop));
    assign(*n.children[0], loop.current);
    const Flow flow = exec(*n.children[3]);
    completed |= flow == Flow::Normal;
    if (flow == Flow::Break) break;
  }
  if (completed || !n.children[4]) return Flow::Normal;
  inner.clear();
  return exec(*n.children[4]);
}

Value Interpreter::recurse(Loop& loop, const Value& iterable) {
  Meter::Depth guard;
  std::string text;
  Restore out(out_, &text);
  Restore at(scope_, loop.scope);
  exec_loop(loop.node, iterable, loop.depth0 + 1);
  return {std::move(text), autoescape_};
}

// ---- macros ---------------------------------------------------------------------------------------------------------

std::optional<Value> Macro::attribute(const std::string& attribute) {
  if (attribute == "name") return name;
  if (attribute == "catch_kwargs") return node.uses_kwargs;
  if (attribute == "catch_varargs") return node.uses_varargs;
  if (attribute == "caller") return node.uses_caller;
  return {};
}

Value Interpreter::call_macro(Macro& macro, Arguments& a) {
  Meter::Depth guard;
  const Node& n = macro.node;
  const auto take_named = [&](const std::string& name) -> std::optional<Value> {
    const auto it = std::find_if(a.named.begin(), a.named.end(), [&](const auto& x) { return x.first == name; });
    if (it == a.named.end()) return {};
    Value v = std::move(it->second);
    a.named.erase(it);
    return v;
  };
  const Inner inner(*this, macro.scope);
  Restore escapes(autoescape_, macro.autoescape);
  const size_t count = n.parameters.size(), first_default = count - (n.children.size() - 1);
  std::vector<std::optional<Value>> given(count);
  for (size_t i = 0; i < count; ++i)
    given[i] =
        i < a.positional.size() ? a.positional[i] : take_named(syntax_.symbols[static_cast<size_t>(n.parameters[i])]);
  if (n.uses_caller) {
    std::optional<Value> caller = take_named("caller");
    scope_->set(caller_symbol_, caller && !caller->is_none() ? *caller : Value::undefined("there is no caller here"));
  }
  if (n.uses_kwargs) {
    Dict rest;
    for (auto& [name, value] : a.named) rest.set(Value(name), value);
    scope_->set(kwargs_symbol_, std::move(rest));
  } else if (!a.named.empty()) {
    fail("the macro '{}' takes no argument '{}'", printable(macro.name), printable(a.named[0].first));
  }
  if (n.uses_varargs) {
    const auto rest = a.positional.begin() + static_cast<ptrdiff_t>(std::min(count, a.positional.size()));
    scope_->set(varargs_symbol_, Value::tuple(Items(rest, a.positional.end())));
  } else if (a.positional.size() > count) {
    fail("the macro '{}' takes at most {} arguments", printable(macro.name), count);
  }
  for (size_t i = 0; i < count; ++i) {  // in order: a default may use the parameters before it
    const auto& name = syntax_.symbols[static_cast<size_t>(n.parameters[i])];
    scope_->set(n.parameters[i], given[i] ? *given[i]
                                 : i < first_default
                                     ? Value::undefined(fmt::format("the parameter '{}' was not given", name))
                                     : eval(*n.children[1 + i - first_default]));
  }
  Flow flow;
  return capture(*n.children[0], flow);
}

// ---- statements -----------------------------------------------------------------------------------------------------

Interpreter::Interpreter(const Syntax& syntax, const Dict& variables)
    : syntax_(syntax), context_(syntax.symbols.size()), has_context_(syntax.symbols.size()) {
  for (size_t i = 0; i < syntax.symbols.size(); ++i) {
    const std::string& name = syntax.symbols[i];
    const int number = static_cast<int>(i);
    if (name == "loop") loop_symbol_ = number;
    if (name == "caller") caller_symbol_ = number;
    if (name == "varargs") varargs_symbol_ = number;
    if (name == "kwargs") kwargs_symbol_ = number;
    if (const Value* given = variables.find(Value(name))) {
      context_[i] = *given;
    } else {
      context_[i] = find_global(*this, name);
    }
    has_context_[i] = !context_[i].is_undefined();
  }
}

std::string Interpreter::run() {
  std::string text;
  Restore out(out_, &text);
  exec(*syntax_.body);
  return text;
}

void Interpreter::write(std::string_view text) {
  Meter::bytes(text.size());
  if (out_->size() + text.size() > max_value_bytes) fail("the text grows beyond {} MiB", max_value_bytes >> 20);
  out_->append(text);
}

void Interpreter::print(const Value& v) {
  if (v.is_string() && (!autoescape_ || v.text().safe)) return write(v.string());
  if (!v.is_undefined()) write(autoescape_ ? escape(to_string(v)) : to_string(v));
}

// A scope that outlives its block, and all around it, because a macro refers to it.
void Interpreter::keep(Scope* scope) {
  for (; scope && !scope->kept; scope = scope->parent) {
    Meter::bytes(sizeof(Scope));
    scope->kept = true;
  }
}

Value Interpreter::capture(const Node& n, Flow& flow) {
  std::string text;
  {
    Restore out(out_, &text);
    flow = exec(n);
  }
  return {std::move(text), autoescape_};
}

Interpreter::Flow Interpreter::exec(const Node& n) {
  Meter::Depth guard;
  Meter::steps(1);
  line_ = n.line;
  Flow flow = Flow::Normal;
  switch (n.kind) {
    case Node::Body: return exec_body(n);
    case Node::Text: write(n.value.string()); break;
    case Node::Output: print(eval(*n.children[0])); break;
    case Node::If: return exec_if(n);
    case Node::For: return exec_loop(n, eval(*n.children[1]), 0);
    case Node::Set: assign(*n.children[0], eval(*n.children[1])); break;
    case Node::SetBlock: exec_set_block(n, flow); break;
    case Node::Macro: {
      keep(scope_);
      const std::string& name = syntax_.symbols[static_cast<size_t>(n.symbol)];
      scope_->set(n.symbol, make<Macro>(*this, n, name, scope_, autoescape_));
      break;
    }
    case Node::CallBlock: exec_call_block(n); break;
    case Node::FilterBlock: return exec_filter_block(n);
    case Node::With: return exec_with(n);
    case Node::Block: return exec_block(n);
    case Node::Autoescape: return exec_autoescape(n);
    case Node::Generation: {
      const Inner inner(*this);
      return exec(*n.children[0]);
    }
    case Node::Break: return Flow::Break;
    case Node::Continue: return Flow::Continue;
    case Node::Refused: fail("{}", n.value.string());
    default: T2L_CHECK(false, "no statement: {}", static_cast<int>(n.kind));
  }
  return flow;
}

Interpreter::Flow Interpreter::exec_body(const Node& n) {
  for (const NodePtr& statement : n.children)
    if (const Flow flow = exec(*statement); flow != Flow::Normal) return flow;
  return Flow::Normal;
}

Interpreter::Flow Interpreter::exec_if(const Node& n) {
  const size_t pairs = n.children.size() / 2;
  for (size_t i = 0; i < pairs; ++i)
    if (eval(*n.children[2 * i]).truth()) return exec(*n.children[2 * i + 1]);
  return n.children.size() % 2 ? exec(*n.children.back()) : Flow::Normal;
}

Interpreter::Flow Interpreter::exec_with(const Node& n) {
  Items values;
  for (size_t i = 2; i < n.children.size(); i += 2) values.push_back(eval(*n.children[i]));
  const Inner inner(*this);
  for (size_t i = 0; i < values.size(); ++i) assign(*n.children[1 + 2 * i], values[i]);
  return exec(*n.children[0]);
}

void Interpreter::exec_set_block(const Node& n, Flow& flow) {
  Value text;
  {
    const Inner inner(*this);
    text = capture(*n.children[2], flow);
    if (flow != Flow::Normal) return;
    if (n.children[1]) {
      Restore piped(piped_, static_cast<const Value*>(&text));
      Value filtered = eval(*n.children[1]);
      text = std::move(filtered);
    }
  }
  assign(*n.children[0], std::move(text));
}

void Interpreter::exec_call_block(const Node& n) {
  keep(scope_);
  const Value caller = make<Macro>(*this, *n.children[1], "", scope_, autoescape_);
  print(eval_call(*n.children[0], &caller));
}

Interpreter::Flow Interpreter::exec_filter_block(const Node& n) {
  const Inner inner(*this);
  Flow flow;
  const Value text = capture(*n.children[1], flow);
  if (flow != Flow::Normal) return flow;
  Restore piped(piped_, &text);
  const Value filtered = eval(*n.children[0]);
  if (!filtered.is_string()) fail("the filter of a block must make a string, not '{}'", filtered.type());
  print(filtered);
  return flow;
}

Interpreter::Flow Interpreter::exec_autoescape(const Node& n) {
  const Inner inner(*this);
  Restore escapes(autoescape_, eval(*n.children[0]).truth());
  return exec(*n.children[1]);
}

// A block that nothing overrides: its body, which sees the variables of the whole template only, unless scoped.
Interpreter::Flow Interpreter::exec_block(const Node& n) {
  const Inner inner(*this, n.flag ? scope_ : &root_);
  return exec(*n.children[0]);
}

namespace {

struct Namespace : Object {
  const char* type() const override { return "Namespace"; }
  std::string repr() const override;
  bool truth() const override { return true; }
  Dict values;
};

std::string Namespace::repr() const {
  Meter::Depth guard;
  std::string out = "<Namespace {";
  for (size_t i = 0; i < values.size(); ++i) {
    const auto& [key, value] = values.entries()[i];
    out += (i ? ", " : "") + jinja::repr(key) + ": " + jinja::repr(value);
  }
  return out + "}>";
}

}  // namespace

void Interpreter::assign(const Node& target, Value value) {
  Meter::steps(1);
  if (target.kind == Node::Name) return scope_->set(target.symbol, std::move(value));
  if (target.kind == Node::Member) {
    const Value space = eval_name(target.symbol);
    auto* names = space.is(Kind::Object) ? dynamic_cast<Namespace*>(space.object()) : nullptr;
    if (!names) fail("cannot assign attribute on non-namespace object");
    return names->values.set(target.value, std::move(value));
  }
  const size_t count = target.children.size();
  Items items;
  Cursor cursor(value);
  for (Value v; items.size() <= count && cursor.next(v);) items.push_back(std::move(v));
  if (items.size() != count)
    fail("{} values to unpack: {} expected", items.size() < count ? "not enough" : "too many", count);
  for (size_t i = 0; i < count; ++i) assign(*target.children[i], std::move(items[i]));
}

// ---- expressions ----------------------------------------------------------------------------------------------------

Value Interpreter::eval(const Node& n) {
  Meter::Depth guard;
  Meter::steps(1);
  line_ = n.line;
  switch (n.kind) {
    case Node::Constant: return n.value;
    case Node::Name: return eval_name(n.symbol);
    case Node::ListOf:
    case Node::TupleOf: {
      Items items;
      for (const NodePtr& c : n.children) items.push_back(eval(*c));
      return n.kind == Node::ListOf ? Value::list(std::move(items)) : Value::tuple(std::move(items));
    }
    case Node::DictOf: return eval_dict(n);
    case Node::Concat: return eval_concat(n);
    case Node::And: {
      Value left = eval(*n.children[0]);
      return left.truth() ? eval(*n.children[1]) : left;
    }
    case Node::Or: {
      Value left = eval(*n.children[0]);
      return left.truth() ? left : eval(*n.children[1]);
    }
    case Node::Not: return !eval(*n.children[0]).truth();
    case Node::Negate: return negate(eval(*n.children[0]));
    case Node::Positive: return positive(eval(*n.children[0]));
    case Node::Binary: {
      const Value left = eval(*n.children[0]);
      return apply(n.operation, left, eval(*n.children[1]));
    }
    case Node::Compare: return eval_compare(n);
    case Node::Choice:
      if (eval(*n.children[0]).truth()) return eval(*n.children[1]);
      if (n.children[2]) return eval(*n.children[2]);
      return Value::undefined("the inline 'if' is false and has no 'else'");
    case Node::Attribute: return attribute(eval(*n.children[0]), n.value);
    case Node::Item: return eval_item(n);
    case Node::Call: return eval_call(n);
    case Node::Filter: return eval_filter(n);
    case Node::Test: return eval_test(n);
    default: fail("a slice stands where it cannot");
  }
}

Value Interpreter::eval_name(int symbol) {
  for (Scope* s = scope_; s; s = s->parent)
    if (const Value* v = s->find(symbol)) return *v;
  if (has_context_[static_cast<size_t>(symbol)]) return context_[static_cast<size_t>(symbol)];
  return Value::undefined(fmt::format("'{}' is undefined", printable(syntax_.symbols[static_cast<size_t>(symbol)])));
}

Value Interpreter::eval_dict(const Node& n) {
  Dict dict;
  for (size_t i = 0; i < n.children.size(); i += 2) {
    Value key = eval(*n.children[i]);
    dict.set(std::move(key), eval(*n.children[i + 1]));
  }
  return dict;
}

Value Interpreter::eval_concat(const Node& n) {
  Items parts;
  bool safe = false;
  for (const NodePtr& c : n.children) {
    parts.push_back(eval(*c));
    safe |= autoescape_ && parts.back().is_string() && parts.back().text().safe;
  }
  std::string out;
  for (const Value& v : parts) {
    const bool plain = v.is_string() && (!safe || v.text().safe);
    const std::string other = plain ? "" : safe ? escape(to_string(v)) : to_string(v);
    const std::string& text = plain ? v.string() : other;
    Meter::bytes(out.size() + text.size());
    out += text;
  }
  return {std::move(out), safe};
}

bool Interpreter::eval_compare(const Node& n) {
  Value left = eval(*n.children[0]);
  for (size_t i = 0; i < n.comparisons.size(); ++i) {
    Value right = eval(*n.children[i + 1]);
    bool holds = false;
    switch (n.comparisons[i]) {
      case Node::Eq: holds = equal(left, right); break;
      case Node::Ne: holds = !equal(left, right); break;
      case Node::Lt: holds = less(left, right, "<"); break;
      case Node::Gt: holds = less(right, left, ">"); break;
      case Node::Le: holds = less(left, right, "<=") || equal(left, right); break;
      case Node::Ge: holds = less(right, left, ">=") || equal(left, right); break;
      case Node::In: holds = contains(right, left); break;
      case Node::NotIn: holds = !contains(right, left); break;
    }
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

Value Interpreter::eval_item(const Node& n) {
  const Value object = eval(*n.children[0]);
  const Node& key = *n.children[1];
  if (key.kind != Node::SliceOf) return item(object, eval(key));
  std::array<Value, 3> bound;
  for (size_t i = 0; i < 3; ++i) bound[i] = key.children[i] ? eval(*key.children[i]) : Value(None{});
  object.defined();
  if (!object.is_string() && !object.is_sequence()) fail("{} cannot be sliced", described(object));
  return subscript(object, clip_slice(bound[0], bound[1], bound[2], *length(object)));
}

Arguments Interpreter::eval_arguments(const Node& n) {
  Arguments a;
  const size_t count = n.children.size() - n.star - n.double_star, first_named = count - n.names.size();
  for (size_t i = 1; i < first_named; ++i) a.positional.push_back(eval(*n.children[i]));
  for (size_t i = first_named; i < count; ++i) a.named.emplace_back(n.names[i - first_named], eval(*n.children[i]));
  if (n.star)
    for (Value& v : to_items(eval(*n.children[count]))) a.positional.push_back(std::move(v));
  if (n.double_star) {
    const Value more = eval(*n.children.back());
    if (!more.is(Kind::Dict)) fail("the argument behind ** must be a mapping, not '{}'", more.type());
    if (more.dict().size() > 1000) fail("a call with more than 1000 named arguments");
    for (const Dict::Entry& entry : more.dict().entries()) {
      if (!entry.first.is_string()) fail("keywords must be strings");
      const std::string& name = entry.first.string();
      if (std::any_of(a.named.begin(), a.named.end(), [&](const auto& x) { return x.first == name; }))
        fail("the argument '{}' is given twice", printable(name));
      a.named.emplace_back(name, entry.second);
    }
  }
  return a;
}

Value Interpreter::eval_call(const Node& n, const Value* caller) {
  const Node& callee = *n.children[0];
  if (callee.kind == Node::Attribute) {  // a method, without an object that stands for it bound
    const Value self = eval(*callee.children[0]);
    if (const Builtin* method = find_method(self, callee.value.string())) {
      Arguments a = eval_arguments(n);
      if (caller) a.named.emplace_back("caller", *caller);
      line_ = n.line;
      return method->run(*this, self, bind(callee.value.string().c_str(), method->parameters, a));
    }
    const Value function = attribute(self, callee.value);
    Arguments a = eval_arguments(n);
    if (caller) a.named.emplace_back("caller", *caller);
    line_ = n.line;
    return call(function, a);
  }
  const Value function = eval(callee);
  Arguments a = eval_arguments(n);
  if (caller) a.named.emplace_back("caller", *caller);
  line_ = n.line;
  return call(function, a);
}

Value Interpreter::eval_filter(const Node& n) {
  const Value input = n.children[0] ? eval(*n.children[0]) : *piped_;
  Arguments a = eval_arguments(n);
  line_ = n.line;
  return filter(n.value.string(), input, a);
}

bool Interpreter::eval_test(const Node& n) {
  const Value input = eval(*n.children[0]);
  Arguments a = eval_arguments(n);
  line_ = n.line;
  return test(n.value.string(), input, a);
}

Value Interpreter::filter(const std::string& name, const Value& input, Arguments& arguments) {
  const Builtin* f = find_filter(name);
  if (!f) fail("there is no filter named '{}'", printable(name));
  return f->run(*this, input, bind(name.c_str(), f->parameters, arguments));
}

bool Interpreter::test(const std::string& name, const Value& input, Arguments& arguments) {
  const Builtin* t = find_test(name);
  if (!t) fail("there is no test named '{}'", printable(name));
  return t->run(*this, input, bind(name.c_str(), t->parameters, arguments)).truth();
}

Value Interpreter::call(const Value& callee, Arguments& arguments) {
  Meter::Depth guard;
  callee.defined();
  if (!callee.is(Kind::Object)) fail("'{}' object is not callable", callee.type());
  return callee.object()->call(arguments);
}

// What Python's getattr() finds; the sandbox's objection is a value that is undefined.
std::optional<Value> Interpreter::own_attribute(const Value& object, const std::string& name) {
  if (name.starts_with("__") || is_forbidden_method(object, name))
    return Value::undefined(fmt::format("the attribute '{}' of {} is unsafe", printable(name), described(object)));
  if (const Builtin* method = find_method(object, name))
    return make<Function>(name, [this, method, object, name](Arguments& a) {
      return method->run(*this, object, bind(name.c_str(), method->parameters, a));
    });
  if (object.is(Kind::Tuple) && object.sequence().group && (name == "grouper" || name == "list"))
    return object.items()[name == "list"];
  if (!object.is(Kind::Object)) return {};
  if (const auto* names = dynamic_cast<const Namespace*>(object.object())) {
    const Value* v = names->values.find(Value(name));
    return v ? std::optional<Value>(*v) : std::nullopt;
  }
  return object.object()->attribute(name);
}

Value Interpreter::attribute(const Value& object, const Value& name) {
  object.defined();
  if (std::optional<Value> own = own_attribute(object, name.string())) return *own;
  if (object.is(Kind::Dict))
    if (const Value* v = object.dict().find(name)) return *v;
  return Value::undefined(fmt::format("{} has no attribute '{}'", described(object), printable(name.string())));
}

Value Interpreter::item(const Value& object, const Value& key) {
  object.defined();
  const bool indexable = object.is_string() || object.is_sequence();
  if (object.is(Kind::Dict)) {
    const bool hashable = !key.is(Kind::List) && !key.is(Kind::Dict);
    if (const Value* v = hashable ? object.dict().find(key) : nullptr) return *v;
  } else if (key.is_integer() && (indexable || object.is(Kind::Object))) {
    const auto n = length(object);
    const Integer i = key.integer() < 0 && n ? key.integer() + static_cast<Integer>(*n) : key.integer();
    if (n && i >= 0 && i < static_cast<Integer>(*n)) {
      const auto at = static_cast<size_t>(i);
      if (object.is_sequence()) return object.items()[at];
      if (object.is_string()) return subscript(object, {static_cast<int64_t>(at), 1, 1});
      Value v;
      if (object.object()->indexable() && object.object()->next(at, v)) return v;
    }
  }
  if (key.is_string())
    if (std::optional<Value> own = own_attribute(object, key.string())) return *own;
  return Value::undefined(key.is_string()
                              ? fmt::format("{} has no attribute '{}'", described(object), printable(key.string()))
                              : fmt::format("{} has no element {}", described(object), printable(repr(key))));
}

Bound bind(const char* function, const char* parameters, Arguments& arguments) {
  Bound b{{}, arguments};
  if (*parameters == '*') return b;
  size_t count = 0, used = 0;
  for (std::string_view rest = parameters; !rest.empty(); ++count) {
    const size_t space = std::min(rest.find(' '), rest.size());
    std::string_view name = rest.substr(0, space);
    rest.remove_prefix(std::min(space + 1, rest.size()));
    const bool optional = name.ends_with('?');
    if (optional) name.remove_suffix(1);
    if (count < arguments.positional.size()) b.at[count] = &arguments.positional[count];
    for (const auto& [given, value] : arguments.named) {
      if (given != name) continue;
      if (b.at[count]) fail("{}() has two values for '{}'", function, name);
      b.at[count] = &value;
      ++used;
    }
    if (!b.at[count] && !optional) fail("{}() needs the argument '{}'", function, name);
  }
  if (arguments.positional.size() > count) fail("{}() takes at most {} arguments", function, count);
  if (used < arguments.named.size()) fail("{}() does not take all of the arguments named here", function);
  return b;
}

Value make_namespace(Interpreter& in, const Dict& values) {
  auto* n = in.make<Namespace>();
  n->values = values;
  return n;
}

}  // namespace t2l::jinja
