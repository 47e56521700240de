// Recursive descent, one function for each precedence, as Jinja's own parser is built: `~` binds tighter than + and -,
// `**` to the left, unary minus tighter than `**`, filters and tests tighter than all but those.
#include <algorithm>
#include <array>
#include <unordered_map>

#include "tensor/file.h"
#include "transformer/jinja_syntax.h"
#include "transformer/tokenizer_unicode.h"

namespace t2l::jinja {
namespace {

using Names = std::initializer_list<std::string_view>;

class Parser {
 public:
  Parser(std::vector<Token> tokens, const std::string& where) : where_(where), tokens_(std::move(tokens)) {}

  Syntax run() {
    Syntax out;
    out.body = statements({});
    out.symbols = std::move(symbols_);
    return out;
  }

 private:
  // ---- tokens ----
  [[noreturn]] void wrong(int line, const std::string& what) const { fail("{}:{}: {}", where_, line, what); }
  const Token& now() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token take() { return at_ + 1 < tokens_.size() ? std::move(tokens_[at_++]) : tokens_[at_]; }
  bool is(Token::Type type, std::string_view text) const { return now().type == type && now().text == text; }
  bool sign(std::string_view s) const { return is(Token::Sign, s); }
  bool name(std::string_view s) const { return is(Token::Name, s); }
  bool skip(Token::Type type, std::string_view text) { return is(type, text) && (++at_, true); }
  bool skip_sign(std::string_view s) { return skip(Token::Sign, s); }
  bool skip_name(std::string_view s) { return skip(Token::Name, s); }
  static std::string describe(const Token& t) {
    switch (t.type) {
      case Token::Data: return "text";
      case Token::BlockBegin: return "'{%'";
      case Token::BlockEnd: return "'%}'";
      case Token::VariableBegin: return "'{{'";
      case Token::VariableEnd: return "'}}'";
      case Token::String: return "a string";
      case Token::Number: return "a number";
      case Token::End: return "the end of the template";
      default: return "'" + printable(t.text) + "'";
    }
  }
  void expect(Token::Type type, const char* what) {
    if (now().type != type) wrong(now().line, fmt::format("expected {}, found {}", what, describe(now())));
    take();
  }
  void expect_sign(std::string_view s) {
    if (!skip_sign(s)) wrong(now().line, fmt::format("expected '{}', found {}", s, describe(now())));
  }
  void expect_name(std::string_view s) {
    if (!skip_name(s)) wrong(now().line, fmt::format("expected '{}', found {}", s, describe(now())));
  }
  std::string any_name() {
    if (now().type != Token::Name) wrong(now().line, "expected a name, found " + describe(now()));
    return take().text;
  }
  // A name of the form a.b.c, of filters and tests.
  std::string dotted_name() {
    std::string s = any_name();
    while (skip_sign(".")) s += "." + any_name();
    return s;
  }

  // ---- nodes ----
  int symbol(const std::string& s) {
    const auto [it, fresh] = numbers_.emplace(s, static_cast<int>(symbols_.size()));
    if (fresh) symbols_.push_back(s);
    return it->second;
  }
  static NodePtr make(Node::Kind kind, int line) {
    auto node = std::make_unique<Node>();
    node->kind = kind;
    node->line = line;
    return node;
  }
  void add(Node& node, NodePtr child) const {
    if (child && (node.depth = std::max(node.depth, child->depth + 1)) > max_syntax_depth)
      wrong(node.line, fmt::format("expressions and blocks within each other, more than {} levels", max_syntax_depth));
    node.children.push_back(std::move(child));
  }
  template <class... C>
  NodePtr make(Node::Kind kind, int line, C... children) const {
    NodePtr node = make(kind, line);
    (add(*node, std::move(children)), ...);
    return node;
  }
  static NodePtr constant(int line, Value v) {
    NodePtr node = make(Node::Constant, line);
    node->value = std::move(v);
    return node;
  }

  struct Descent {  // guards the parser's own recursion
    explicit Descent(Parser& p) : parser(p) {
      if (++p.descent_ > 4 * max_syntax_depth)  // a bracket takes three
        p.wrong(p.now().line,
                fmt::format("expressions and blocks within each other, more than {} levels", max_syntax_depth));
    }
    ~Descent() { --parser.descent_; }
    Parser& parser;
  };

  // ---- expressions ----
  NodePtr expression(bool with_condition = true) {
    Descent guard(*this);
    const int line = now().line;
    NodePtr e = disjunction();
    while (with_condition && skip_name("if")) {
      NodePtr condition = disjunction(), otherwise;
      if (skip_name("else")) otherwise = expression();
      e = make(Node::Choice, line, std::move(condition), std::move(e), std::move(otherwise));
    }
    return e;
  }

  NodePtr disjunction() {
    NodePtr e = conjunction();
    for (int line = now().line; skip_name("or"); line = now().line)
      e = make(Node::Or, line, std::move(e), conjunction());
    return e;
  }

  NodePtr conjunction() {
    NodePtr e = negation();
    for (int line = now().line; skip_name("and"); line = now().line)
      e = make(Node::And, line, std::move(e), negation());
    return e;
  }

  NodePtr negation() {
    Descent guard(*this);
    const int line = now().line;
    return skip_name("not") ? make(Node::Not, line, negation()) : comparison();
  }

  NodePtr comparison() {
    static constexpr std::array<std::string_view, 6> signs = {"==", "!=", "<", "<=", ">", ">="};
    const int line = now().line;
    NodePtr first = sum(), node;
    for (;;) {
      Node::Comparison c;
      if (const auto* s = std::find(signs.begin(), signs.end(), now().text);
          now().type == Token::Sign && s != signs.end()) {
        c = static_cast<Node::Comparison>(s - signs.begin());
        take();
      } else if (skip_name("in")) {
        c = Node::In;
      } else if (name("not") && ahead().type == Token::Name && ahead().text == "in") {
        at_ += 2;
        c = Node::NotIn;
      } else {
        return node ? std::move(node) : std::move(first);
      }
      if (!node) node = make(Node::Compare, line, std::move(first));
      add(*node, sum());
      node->comparisons.push_back(c);
    }
  }

  // left-associative: operand, then any of the signs and another one
  template <class F>
  NodePtr binary(std::initializer_list<std::pair<std::string_view, Operator>> signs, F operand) {
    NodePtr e = operand();
    for (;;) {
      const auto* s = std::find_if(signs.begin(), signs.end(), [&](const auto& x) { return sign(x.first); });
      if (s == signs.end()) return e;
      const int line = take().line;
      e = make(Node::Binary, line, std::move(e), operand());
      e->operation = s->second;
    }
  }

  NodePtr sum() {
    return binary({{"+", Operator::Add}, {"-", Operator::Sub}}, [this] { return concatenation(); });
  }

  NodePtr concatenation() {
    NodePtr e = factor();
    if (!sign("~")) return e;
    NodePtr node = make(Node::Concat, now().line, std::move(e));
    while (skip_sign("~")) add(*node, factor());
    return node;
  }

  NodePtr factor() {
    return binary({{"*", Operator::Mul}, {"/", Operator::Div}, {"//", Operator::FloorDiv}, {"%", Operator::Mod}},
                  [this] {
                    return binary({{"**", Operator::Pow}}, [this] { return unary(true); });
                  });
  }

  NodePtr unary(bool with_filters) {
    Descent guard(*this);
    const int line = now().line;
    NodePtr e = skip_sign("-")   ? make(Node::Negate, line, unary(false))
                : skip_sign("+") ? make(Node::Positive, line, unary(false))
                                 : primary();
    e = postfix(std::move(e));
    return with_filters ? filters_and_tests(std::move(e)) : std::move(e);
  }

  NodePtr primary(bool with_member = false) {
    const int line = now().line;
    if (now().type == Token::Name) {
      const std::string s = take().text;
      if (s == "true" || s == "True") return constant(line, true);
      if (s == "false" || s == "False") return constant(line, false);
      if (s == "none" || s == "None") return constant(line, None{});
      NodePtr node = make(Node::Name, line);
      node->symbol = symbol(s);
      if (with_member && skip_sign(".")) {
        node->kind = Node::Member;
        node->value = Value(any_name());
      } else {
        mention(s);
      }
      return node;
    }
    if (now().type == Token::String) {
      std::string s;
      while (now().type == Token::String) s += take().value.string();
      return constant(line, std::move(s));
    }
    if (now().type == Token::Number) return constant(line, take().value);
    if (skip_sign("(")) {
      NodePtr e = tuple({.in_parentheses = true});
      expect_sign(")");
      return e;
    }
    if (skip_sign("[")) return sequence(Node::ListOf, "]");
    if (skip_sign("{")) return sequence(Node::DictOf, "}");
    wrong(line, "unexpected " + describe(now()));
  }

  NodePtr sequence(Node::Kind kind, std::string_view end) {
    NodePtr node = make(kind, now().line);
    while (!sign(end)) {
      if (!node->children.empty()) {
        expect_sign(",");
        if (sign(end)) break;
      }
      add(*node, expression());
      if (kind == Node::DictOf) {
        expect_sign(":");
        add(*node, expression());
      }
    }
    expect_sign(end);
    return node;
  }

  struct TupleRules {
    bool simple = false, with_condition = true, in_parentheses = false, with_member = false;
    std::string_view end_name = {};
  };
  // One expression, or several with commas between, which make a tuple.
  NodePtr tuple(TupleRules rules) {
    const int line = now().line;
    const auto ends = [&] {
      return now().type == Token::VariableEnd || now().type == Token::BlockEnd || sign(")") ||
             (!rules.end_name.empty() && name(rules.end_name));
    };
    NodePtr node = make(Node::TupleOf, line);
    bool comma = false;
    while (!ends()) {
      add(*node, rules.simple ? primary(rules.with_member) : expression(rules.with_condition));
      if (!sign(",")) break;
      take();
      comma = true;
    }
    if (comma) return node;
    if (!node->children.empty()) return std::move(node->children[0]);
    if (!rules.in_parentheses) wrong(line, "expected an expression, found " + describe(now()));
    return node;
  }

  NodePtr postfix(NodePtr e) {
    for (;;) {
      const int line = now().line;
      if (skip_sign(".")) {
        const Token t = take();
        if (t.type == Token::Name) {
          e = make(Node::Attribute, line, std::move(e));
          e->value = Value(t.text);
        } else if (t.type == Token::Number && t.value.is(Kind::Int)) {
          e = make(Node::Item, line, std::move(e), constant(line, t.value));
        } else {
          wrong(t.line, "expected a name or a number behind '.', found " + describe(t));
        }
      } else if (skip_sign("[")) {
        e = make(Node::Item, line, std::move(e), subscripts());
      } else if (sign("(")) {
        e = make(Node::Call, line, std::move(e));
        arguments(*e);
      } else {
        return e;
      }
    }
  }

  NodePtr subscripts() {
    NodePtr several = make(Node::TupleOf, now().line);
    while (!sign("]")) {
      if (!several->children.empty()) expect_sign(",");
      add(*several, one_subscript());
    }
    take();
    if (several->children.size() != 1) return several;
    return std::move(several->children[0]);
  }

  NodePtr one_subscript() {
    NodePtr first, stop, step;
    const int line = now().line;
    if (!sign(":")) {
      first = expression();
      if (!sign(":")) return first;
    }
    take();
    const auto ends = [&] { return sign(":") || sign("]") || sign(","); };
    if (!ends()) stop = expression();
    if (skip_sign(":") && !ends()) step = expression();
    return make(Node::SliceOf, line, std::move(first), std::move(stop), std::move(step));
  }

  // "(", positional arguments, name=value, *list, **dict, ")"
  void arguments(Node& node) {
    const int line = now().line;
    NodePtr star, double_star;
    expect_sign("(");
    const auto demand = [&](bool ordered) {
      if (!ordered) wrong(line, "arguments of a call stand in the wrong order");
    };
    for (bool first = true; !sign(")"); first = false) {
      if (!first) {
        expect_sign(",");
        if (sign(")")) break;
      }
      if (skip_sign("*")) {
        demand(!star && !double_star);
        star = expression();
      } else if (skip_sign("**")) {
        demand(!double_star);
        double_star = expression();
      } else if (now().type == Token::Name && ahead().type == Token::Sign && ahead().text == "=") {
        demand(!double_star);
        node.names.push_back(take().text);
        take();
        if (std::count(node.names.begin(), node.names.end(), node.names.back()) > 1)
          wrong(line, fmt::format("the argument '{}' is given twice", printable(node.names.back())));
        if (node.names.size() > 64) wrong(line, "a call with more than 64 named arguments");
        add(node, expression());
      } else {
        demand(!star && !double_star && node.names.empty());
        add(node, expression());
      }
    }
    take();
    node.star = star != nullptr;
    node.double_star = double_star != nullptr;
    if (star) add(node, std::move(star));
    if (double_star) add(node, std::move(double_star));
  }

  NodePtr filters_and_tests(NodePtr e) {
    for (;;) {
      if (sign("|")) {
        e = filters(std::move(e));
      } else if (name("is")) {
        e = test(std::move(e));
      } else if (sign("(")) {
        e = make(Node::Call, now().line, std::move(e));
        arguments(*e);
      } else {
        return e;
      }
    }
  }

  NodePtr one_filter(NodePtr input) {
    NodePtr node = make(Node::Filter, now().line, std::move(input));
    node->value = Value(dotted_name());
    if (sign("(")) arguments(*node);
    return node;
  }
  NodePtr filters(NodePtr input) {
    while (skip_sign("|")) input = one_filter(std::move(input));
    return input;
  }

  NodePtr test(NodePtr input) {
    const int line = take().line;
    const bool negated = skip_name("not");
    NodePtr node = make(Node::Test, line, std::move(input));
    node->value = Value(dotted_name());
    const Token& t = now();
    if (sign("(")) {
      arguments(*node);
    } else if (t.type == Token::String || t.type == Token::Number || sign("[") || sign("{") ||
               (t.type == Token::Name && t.text != "else" && t.text != "or" && t.text != "and")) {
      if (name("is")) wrong(line, "tests cannot be chained with 'is'");
      add(*node, postfix(primary()));
    }
    return negated ? make(Node::Not, line, std::move(node)) : std::move(node);
  }

  // ---- statements ----
  NodePtr statements(Names ends) {
    Descent guard(*this);
    NodePtr body = make(Node::Body, now().line);
    for (;;) {
      const int line = now().line;
      switch (now().type) {
        case Token::End:
          if (ends.size())
            wrong(line, fmt::format("the template ends where '{{% {} %}}' is expected", *std::prev(ends.end())));
          return body;
        case Token::Data: {
          NodePtr text = make(Node::Text, line);
          text->value = Value(take().text);
          add(*body, std::move(text));
          break;
        }
        case Token::VariableBegin:
          take();
          add(*body, make(Node::Output, line, tuple({})));
          expect(Token::VariableEnd, "'}}'");
          break;
        default:
          expect(Token::BlockBegin, "'{%'");
          if (now().type == Token::Name && std::find(ends.begin(), ends.end(), now().text) != ends.end()) return body;
          statement(*body);
          expect(Token::BlockEnd, "'%}'");
      }
    }
  }

  // The body of a block: behind its tag, up to one of the tags `ends`, whose name is the current token then.
  NodePtr block(Names ends) {
    skip_sign(":");
    expect(Token::BlockEnd, "'%}'");
    return statements(ends);
  }
  NodePtr whole_block(std::string_view end) {
    NodePtr body = block({end});
    take();
    return body;
  }

  void statement(Node& body) {
    const int line = now().line;
    const std::string tag = any_name();
    if (tag == "if") return add(body, if_statement(line));
    if (tag == "for") return add(body, for_statement(line));
    if (tag == "set") return add(body, set_statement(line));
    if (tag == "macro") return add(body, macro(line));
    if (tag == "call") return add(body, call_block(line));
    if (tag == "filter") {
      NodePtr filter = filters(one_filter(nullptr));
      return add(body, make(Node::FilterBlock, line, std::move(filter), whole_block("endfilter")));
    }
    if (tag == "with") return add(body, with(line));
    if (tag == "block") return add(body, named_block(line));
    if (tag == "autoescape") {
      NodePtr condition = expression();
      return add(body, make(Node::Autoescape, line, std::move(condition), whole_block("endautoescape")));
    }
    if (tag == "generation") return add(body, make(Node::Generation, line, whole_block("endgeneration")));
    if (tag == "break") return add(body, make(Node::Break, line));
    if (tag == "continue") return add(body, make(Node::Continue, line));
    if (tag == "print") {
      for (bool first = true; now().type != Token::BlockEnd; first = false) {
        if (!first) expect_sign(",");
        add(body, make(Node::Output, line, expression()));
      }
      return;
    }
    if (tag == "include" || tag == "extends" || tag == "import" || tag == "from")
      return add(body, other_template(line, tag));
    wrong(line, fmt::format("unknown tag '{}'", printable(tag)));
  }

  // `if`, `elif` ... are one node, however many.
  NodePtr if_statement(int line) {
    NodePtr node = make(Node::If, line);
    for (;;) {
      add(*node, tuple({.with_condition = false}));
      add(*node, block({"elif", "else", "endif"}));
      const std::string next = take().text;
      if (next == "endif") return node;
      if (next == "elif") continue;
      add(*node, whole_block("endif"));
      return node;
    }
  }

  NodePtr for_statement(int line) {
    NodePtr target = assign_target({.simple = true, .end_name = "in"});
    expect_name("in");
    NodePtr iterable = tuple({.with_condition = false, .end_name = "recursive"}), condition, otherwise;
    if (skip_name("if")) condition = expression();
    const bool recursive = skip_name("recursive");
    NodePtr body = block({"endfor", "else"});
    if (take().text == "else") otherwise = whole_block("endfor");
    NodePtr node = make(Node::For, line, std::move(target), std::move(iterable), std::move(condition), std::move(body),
                        std::move(otherwise));
    node->flag = recursive;
    return node;
  }

  NodePtr set_statement(int line) {
    NodePtr target = assign_target({.simple = true, .with_member = true});
    if (skip_sign("=")) return make(Node::Set, line, std::move(target), tuple({}));
    NodePtr filter = sign("|") ? filters(nullptr) : nullptr;
    return make(Node::SetBlock, line, std::move(target), std::move(filter), whole_block("endset"));
  }

  NodePtr assign_target(TupleRules rules) {
    NodePtr target = tuple(rules);
    check_target(*target);
    return target;
  }
  void check_target(const Node& target) const {
    if (target.kind == Node::TupleOf) {
      for (const NodePtr& t : target.children) check_target(*t);
    } else if (target.kind != Node::Name && target.kind != Node::Member) {
      wrong(target.line, "what is assigned to must be a name");
    }
  }
  int name_target() {
    const int line = now().line;
    const std::string s = any_name();
    if (s == "true" || s == "True" || s == "false" || s == "False" || s == "none" || s == "None")
      wrong(line, fmt::format("cannot assign to '{}'", s));
    return symbol(s);
  }

  // "(a, b=1)" of a macro
  void signature(Node& node) {
    expect_sign("(");
    while (!sign(")")) {
      if (!node.parameters.empty()) expect_sign(",");
      const int line = now().line, parameter = name_target();
      if (std::count(node.parameters.begin(), node.parameters.end(), parameter))
        wrong(line, "two parameters of one name");
      if (node.parameters.size() == 64) wrong(line, "a macro with more than 64 parameters");
      node.parameters.push_back(parameter);
      if (skip_sign("=")) {
        add(node, expression());
      } else if (node.children.size() > 1) {
        wrong(line, "a parameter without a default behind one that has one");
      }
    }
    take();
  }

  NodePtr macro(int line) {
    NodePtr node = make(Node::Macro, line, NodePtr());
    node->symbol = name_target();
    signature(*node);
    macro_body(*node, "endmacro");
    return node;
  }

  void macro_body(Node& node, std::string_view end) {
    open_macros_.push_back(&node);
    NodePtr body = whole_block(end);
    open_macros_.pop_back();
    const auto has = [&](const char* s) {
      const auto it = numbers_.find(s);
      return it != numbers_.end() && std::count(node.parameters.begin(), node.parameters.end(), it->second) > 0;
    };
    node.uses_kwargs &= !has("kwargs");
    node.uses_varargs &= !has("varargs");
    if (node.uses_caller && has("caller")) {
      const auto k =
          std::find(node.parameters.begin(), node.parameters.end(), symbol("caller")) - node.parameters.begin();
      if (static_cast<size_t>(k) + node.children.size() - 1 < node.parameters.size())
        wrong(node.line, "a macro's parameter 'caller' needs a default");
      node.uses_caller = false;
    }
    symbol("caller"), symbol("varargs"), symbol("kwargs");
    node.depth = std::max(node.depth, body->depth + 1);
    node.children[0] = std::move(body);
    if (node.depth > max_syntax_depth) wrong(node.line, "blocks within each other, too many levels");
  }

  void mention(const std::string& s) {
    if (open_macros_.empty() || (s != "caller" && s != "varargs" && s != "kwargs")) return;
    for (Node* m : open_macros_)
      (s == "caller" ? m->uses_caller : s == "varargs" ? m->uses_varargs : m->uses_kwargs) = true;
  }

  NodePtr call_block(int line) {
    NodePtr caller = make(Node::Macro, line, NodePtr());
    caller->symbol = symbol("caller");
    if (sign("(")) signature(*caller);
    NodePtr call = expression();
    if (call->kind != Node::Call) wrong(line, "expected a call behind '{% call'");
    macro_body(*caller, "endcall");
    return make(Node::CallBlock, line, std::move(call), std::move(caller));
  }

  NodePtr with(int line) {
    NodePtr node = make(Node::With, line, NodePtr());
    while (now().type != Token::BlockEnd) {
      if (node->children.size() > 1) expect_sign(",");
      add(*node, assign_target({.simple = true}));
      expect_sign("=");
      add(*node, expression());
    }
    NodePtr body = whole_block("endwith");
    node->depth = std::max(node->depth, body->depth + 1);
    node->children[0] = std::move(body);
    if (node->depth > max_syntax_depth) wrong(line, "blocks within each other, too many levels");
    return node;
  }

  NodePtr named_block(int line) {
    const std::string block_name = any_name();
    const bool scoped = skip_name("scoped"), required = skip_name("required");
    if (std::count(blocks_.begin(), blocks_.end(), block_name) || blocks_.size() == 64)
      wrong(line, fmt::format("the block '{}' is defined twice", printable(block_name)));
    blocks_.push_back(block_name);
    NodePtr node = make(Node::Block, line, whole_block("endblock"));
    if (required) node = refused(line, fmt::format("the required block '{}' is not defined", printable(block_name)));
    node->flag = scoped;
    skip_name(block_name);
    return node;
  }

  static NodePtr refused(int line, std::string why) {
    NodePtr node = make(Node::Refused, line);
    node->value = Value(std::move(why));
    return node;
  }

  // Parsed, as an error in it counts, and refused where it is reached: there are no other templates.
  NodePtr other_template(int line, const std::string& tag) {
    expression();
    const auto context = [&] {
      const bool has = (name("with") || name("without")) && ahead().text == "context";
      if (has) at_ += 2;
      return has;
    };
    if (tag == "include") {
      if (name("ignore") && ahead().text == "missing") at_ += 2;
      context();
    } else if (tag == "import") {
      expect_name("as");
      name_target();
      context();
    } else if (tag == "from") {
      expect_name("import");
      for (bool first = true; first || skip_sign(","); first = false) {
        if (context()) break;
        name_target();
        if (skip_name("as")) name_target();
        if (context()) break;
      }
    }
    return refused(line, fmt::format("'{}': a chat template stands alone, there is no other to load", tag));
  }

  const std::string& where_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int descent_ = 0;
  std::vector<std::string> symbols_, blocks_;
  std::unordered_map<std::string, int> numbers_;
  std::vector<Node*> open_macros_;
};

}  // namespace

Syntax parse(std::string_view source, const std::string& where) {
  if (source.size() > max_source_bytes)
    fail("{}: a template of {} bytes; at most {} are taken", where, source.size(), max_source_bytes);
  std::string storage;
  return Parser(tokenize(to_valid_utf8(source, storage), where), where).run();
}

}  // namespace t2l::jinja
