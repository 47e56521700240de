#include "tensor/file.h"
#include "transformer/jinja_interpreter.h"

namespace t2l::jinja {
namespace {

// Where a node stands: `lenient` under an if, where an unknown filter only fails when it is reached.
struct Place {
  bool lenient = false, in_loop = false, under_for = false;
  Place strict() const { return {false, in_loop, under_for}; }
  Place function() const { return {false, false, under_for}; }  // a body that becomes a function of its own
};

class Checker {
 public:
  Checker(const Syntax& syntax, const std::string& where) : where_(where) {
    for (size_t i = 0; i < syntax.symbols.size(); ++i)
      if (syntax.symbols[i] == "loop") loop_ = static_cast<int>(i);
  }

  void check(Node& n, Place place) {
    switch (n.kind) {
      case Node::Filter:
      case Node::Test: {
        const bool filter = n.kind == Node::Filter;
        const std::string& name = n.value.string();
        if (!place.lenient && !(filter ? find_filter(name) : find_test(name)))
          wrong(n, fmt::format("there is no {} named '{}'", filter ? "filter" : "test", printable(name)));
        break;
      }
      case Node::Name:
        if (n.symbol == loop_)
          for (Node* f : loops_) f->uses_loop = true;
        break;
      case Node::If:
      case Node::Choice: place.lenient = true; break;
      case Node::For: return check_for(n, place);
      case Node::Set: check_target(*n.children[0], place); break;
      case Node::SetBlock:
        check_target(*n.children[0], place);
        place = place.strict();
        break;
      case Node::With:
        for (size_t i = 2; i < n.children.size(); i += 2) check(*n.children[i], place);
        return check(*n.children[0], place.strict());
      case Node::FilterBlock:
      case Node::Autoescape: place = place.strict(); break;
      case Node::Macro:
      case Node::Block:
      case Node::Generation: place = place.function(); break;
      case Node::Break:
      case Node::Continue:
        if (!place.in_loop) wrong(n, "'break' and 'continue' stand in loops only");
        break;
      default: break;
    }
    for (const NodePtr& child : n.children)
      if (child) check(*child, place);
  }

 private:
  [[noreturn]] void wrong(const Node& n, const std::string& what) const { fail("{}:{}: {}", where_, n.line, what); }

  void check_for(Node& n, Place place) {
    check(*n.children[1], place);
    loops_.push_back(&n);
    place.under_for = true;
    check_target(*n.children[0], place);
    if (n.children[2]) check(*n.children[2], place.strict());
    check(*n.children[3], {false, true, true});
    loops_.pop_back();
    if (n.children[4]) check(*n.children[4], place.strict());
  }

  void check_target(const Node& target, Place place) const {
    if (place.under_for && target.kind == Node::Name && target.symbol == loop_)
      wrong(target, "cannot assign to 'loop' in a loop");
    for (const NodePtr& t : target.children) check_target(*t, place);
  }

  const std::string& where_;
  int loop_ = -2;
  std::vector<Node*> loops_;
};

}  // namespace

void check(Syntax& syntax, const std::string& where) { Checker(syntax, where).check(*syntax.body, {}); }

}  // namespace t2l::jinja
