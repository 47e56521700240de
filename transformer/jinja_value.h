// Python's values, as far as templates see them: immutable, shared by reference, with Python's ideas of truth,
// equality, order, and printing. Internal to transformer/jinja_*.cpp and chat_template.cpp.
//
// What makes hostile templates harmless is here too: every value made and every comparison is charged to the Meter of
// the render that runs on this thread, and containers know how deeply they nest, so that no recursion goes far.
#pragma once
#include <concepts>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "tensor/check.h"

namespace t2l::jinja {

__extension__ typedef __int128 Integer;  // Python's are unbounded; what does not fit is an error

// ---- limits ---------------------------------------------------------------------------------------------------------

constexpr size_t max_source_bytes = size_t{1} << 20;
constexpr size_t max_value_bytes = size_t{1} << 26;  // of one string, list or text rendered
constexpr int max_value_depth = 100;                 // lists in lists
constexpr int max_syntax_depth = 200;                // where CPython, too, refuses parentheses
constexpr int max_run_depth = 600;                   // recursion: nodes within nodes, through macros and loops

// What one render may still spend. Charges without a render (a template's constants) are free.
class Meter {
 public:
  Meter();
  ~Meter();
  Meter(const Meter&) = delete;
  Meter& operator=(const Meter&) = delete;

  static void steps(size_t n);  // work, about one for 10 ns
  static void scan(size_t bytes) { steps(bytes / 64 + 1); }
  static void bytes(size_t n);  // before memory is taken; never given back

  class Depth {  // of recursion
   public:
    Depth();
    ~Depth();
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;
  };

 private:
  static thread_local Meter* current_;  // used in one file only: g++ 12's UBSan takes its place elsewhere for null
  Meter* outer_;
  size_t steps_ = 20'000'000, bytes_ = size_t{1} << 29;
  int depth_ = 0;
};

size_t product(size_t a, size_t b);  // saturated: the charge for it is refused

// ---- values ---------------------------------------------------------------------------------------------------------

class Value;
class Object;
struct Dict;
using Items = std::vector<Value>;

struct Undefined {
  std::shared_ptr<const std::string> why;  // what an attempt to use it says
};
struct None {};
struct Text {
  std::string text;  // valid UTF-8
  bool ascii, safe;  // safe: markup, not to be escaped again
};
struct Sequence {
  Items items;
  int depth;
  bool group = false;  // a pair made by groupby, with names
};
struct List {
  std::shared_ptr<const Sequence> p;
};
struct Tuple {
  std::shared_ptr<const Sequence> p;
};

enum class Kind : uint8_t { Undefined, None, Bool, Int, Float, String, List, Tuple, Dict, Object };

class Value {
 public:
  Value() = default;  // undefined
  Value(None x) : data_(x) {}
  Value(bool x) : data_(x) {}
  Value(Integer x) : data_(x) {}
  template <std::integral I>
  Value(I x) : data_(Integer{x}) {}
  Value(double x) : data_(x) {}
  Value(std::string text, bool safe = false);
  Value(std::string_view text) : Value(std::string(text)) {}
  Value(const char* text) : Value(std::string(text)) {}
  Value(Dict dict);
  Value(Object* object) : data_(object) {}  // which the interpreter owns
  static Value list(Items items);
  static Value tuple(Items items, bool group = false);
  static Value undefined(std::string why) { return Value(Undefined{std::make_shared<std::string>(std::move(why))}); }

  Kind kind() const { return static_cast<Kind>(data_.index()); }
  bool is(Kind k) const { return kind() == k; }
  bool is_undefined() const { return is(Kind::Undefined); }
  bool is_none() const { return is(Kind::None); }
  bool is_string() const { return is(Kind::String); }
  bool is_sequence() const { return is(Kind::List) || is(Kind::Tuple); }
  bool is_integer() const { return is(Kind::Int) || is(Kind::Bool); }
  bool is_number() const { return is_integer() || is(Kind::Float); }

  const Text& text() const { return *std::get<std::shared_ptr<const Text>>(data_); }
  const std::string& string() const { return text().text; }
  const Sequence& sequence() const { return is(Kind::List) ? *std::get<List>(data_).p : *std::get<Tuple>(data_).p; }
  const Items& items() const { return sequence().items; }
  const Dict& dict() const { return *std::get<std::shared_ptr<const Dict>>(data_); }
  Object* object() const { return std::get<Object*>(data_); }
  Integer integer() const { return is(Kind::Bool) ? Integer{std::get<bool>(data_)} : std::get<Integer>(data_); }
  double real() const { return is(Kind::Float) ? std::get<double>(data_) : static_cast<double>(integer()); }
  const void* identity() const;  // of a container or an object; else null
  int depth() const;

  const char* type() const;  // Python's name of it
  bool truth() const;
  // Error if it is undefined: says why.
  const Value& defined() const;

 private:
  explicit Value(Undefined u) : data_(std::move(u)) {}
  explicit Value(List l) : data_(std::move(l)) {}
  explicit Value(Tuple t) : data_(std::move(t)) {}

  std::variant<Undefined, None, bool, Integer, double, std::shared_ptr<const Text>, List, Tuple,
               std::shared_ptr<const Dict>, Object*>
      data_;
};

// A total order of keys under which two are alike if Python's == says so. Error if one cannot be a key.
int compare_keys(const Value& a, const Value& b);

// In the order of insertion. Built, then wrapped into a Value and never changed.
struct Dict {
  using Entry = std::pair<Value, Value>;

  const Value* find(const Value& key) const;
  void set(Value key, Value value);
  void set(const char* key, Value value) { set(Value(key), std::move(value)); }
  const std::vector<Entry>& entries() const { return entries_; }
  size_t size() const { return entries_.size(); }
  int depth() const { return depth_; }

 private:
  struct Less {
    bool operator()(const Value& a, const Value& b) const { return compare_keys(a, b) < 0; }
  };
  std::vector<Entry> entries_;
  std::map<Value, size_t, Less> index_;  // only where there are many
  int depth_ = 1;
};

struct Arguments {
  Items positional;
  std::vector<std::pair<std::string, Value>> named;
};

// What is none of the above: functions, ranges, generators, namespaces. The interpreter owns it to the end of a render,
// so that objects may refer to each other in circles.
class Object {
 public:
  virtual ~Object() = default;
  virtual const char* type() const = 0;
  virtual std::string repr() const { return "<" + std::string(type()) + " object>"; }
  virtual bool truth() const { return !length() || *length(); }
  virtual std::optional<size_t> length() const { return {}; }
  virtual bool iterable() const { return false; }
  virtual bool next(size_t, Value&) { return false; }  // item i; asked for in order, beginning with 0
  virtual bool indexable() const { return false; }     // next() may be asked in any order
  virtual std::optional<Value> attribute(const std::string&) { return {}; }
  virtual bool callable() const { return false; }
  virtual Value call(Arguments&);
};

// Walks over anything that can be iterated over, which it keeps alive.
class Cursor {
 public:
  explicit Cursor(Value iterable);  // Error if it cannot be
  bool next(Value& item);

 private:
  Value from_;
  size_t at_ = 0;
};
Items to_items(const Value& iterable);
std::optional<size_t> length(const Value& v);  // none where Python's len() fails

// ---- Python's operations --------------------------------------------------------------------------------------------

std::string to_string(const Value& v);  // str()
std::string repr(const Value& v);
std::string repr(double x);
std::string repr(Integer x);
bool equal(const Value& a, const Value& b);
bool less(const Value& a, const Value& b, const char* operation = "<");  // Error if there is no order
bool contains(const Value& container, const Value& item);

enum class Operator : uint8_t { Add, Sub, Mul, Div, FloorDiv, Mod, Pow };
Value apply(Operator op, const Value& a, const Value& b);
Value negate(const Value& v);
Value positive(const Value& v);
Integer to_int(const Value& v, const char* what);  // of a Bool or an Int; else Error
Integer truncated(double x);                       // int(x)
// The value the text spells, as int(text, base) and float(text) read it.
std::optional<Integer> parse_int(std::string_view text, int base);
std::optional<double> parse_float(std::string_view text);
// Start, stop and step of a slice over n items, clipped; absent bounds are none.
struct Slice {
  int64_t start, step;
  size_t count;
};
Slice clip_slice(const Value& start, const Value& stop, const Value& step, size_t n);
Value subscript(const Value& v, const Slice& s);

std::string format_percent(const std::string& format, const Value& arguments);
std::string escape(std::string_view text);  // for HTML
// json.dumps
struct JsonStyle {
  bool ascii = false, sort = false;
  std::optional<std::string> indent;
  std::optional<std::string> comma, colon;
};
std::string to_json(const Value& v, const JsonStyle& style);
// {:spec} of str.format
std::string format_value(const Value& v, std::string_view spec);

}  // namespace t2l::jinja
