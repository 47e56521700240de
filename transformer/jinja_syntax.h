// From a template's source to its syntax tree, by the grammar of Jinja 3.1 with trim_blocks, lstrip_blocks, loop
// controls and the `generation` tag. Internal to transformer/jinja_*.cpp.
#pragma once
#include "transformer/jinja_value.h"

namespace t2l::jinja {

struct Token {
  enum Type : uint8_t { Data, BlockBegin, BlockEnd, VariableBegin, VariableEnd, Name, String, Number, Sign, End };
  Type type;
  int line;
  std::string text;  // also of an operator
  Value value;       // of a literal
};
// Error, as "where:line: what", for what is no token.
std::vector<Token> tokenize(std::string_view source, const std::string& where);

struct Node;
using NodePtr = std::unique_ptr<Node>;

// What the children are is noted at each kind; those in [brackets] may be null.
struct Node {
  enum Kind : uint8_t {
    // expressions
    Constant,   // value
    Name,       // symbol
    ListOf,     // items
    TupleOf,    // items
    DictOf,     // key, value, key, value ...
    Concat,     // operands
    And,        // left, right
    Or,         // left, right
    Not,        // operand
    Negate,     // operand
    Positive,   // operand
    Binary,     // left, right; operation
    Compare,    // first, then an operand for each of `comparisons`
    Choice,     // condition, if so, [if not]
    Attribute,  // object; value is the name
    Item,       // object, key
    SliceOf,    // [start], [stop], [step]; only as a key
    Call,       // callee, arguments
    Filter,     // [input: null is the text of a block], arguments; value is the name
    Test,       // input, arguments; value is the name
    // statements
    Text,         // value
    Output,       // expression
    If,           // condition, body, condition, body ..., [body]
    For,          // target, iterable, [condition], body, [else]; flag: recursive
    Set,          // target, expression
    SetBlock,     // target, [filter], body
    Macro,        // body, defaults of the last parameters; symbol
    CallBlock,    // call, macro
    FilterBlock,  // filter, body
    With,         // body, target, expression, target, expression ...
    Block,        // body; symbol; flag: scoped
    Autoescape,   // expression, body
    Generation,   // body
    Break,
    Continue,
    Refused,  // value says why
    Body,     // statements
    // targets, beside Name and TupleOf
    Member,  // symbol of a namespace; value is the name
  };
  enum Comparison : uint8_t { Eq, Ne, Lt, Le, Gt, Ge, In, NotIn };

  Kind kind;
  int line;
  int depth = 1;
  int symbol = -1;
  bool flag = false;
  bool uses_loop = false;  // of a For: its body may ask for `loop`
  Operator operation{};
  Value value;
  std::vector<NodePtr> children;
  std::vector<Comparison> comparisons;
  // Arguments of a call, filter or test are the children behind the first: positional ones, then those named here, then
  // *list and **dict where flagged.
  std::vector<std::string> names;
  bool star = false, double_star = false;
  // Of a macro.
  std::vector<int> parameters;
  bool uses_caller = false, uses_varargs = false, uses_kwargs = false;
};

struct Syntax {
  NodePtr body;
  std::vector<std::string> symbols;  // by number
};
Syntax parse(std::string_view source, const std::string& where);
// What Jinja's compiler refuses though it is well-formed: filters and tests that do not exist, save under an `if`;
// `break` outside of loops; assignments to `loop` in one. Notes which loops use `loop`.
void check(Syntax& syntax, const std::string& where);

}  // namespace t2l::jinja
