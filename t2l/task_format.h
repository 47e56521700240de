// A task as the official code describes it (tasks/NAME/metadata.yaml): descriptions, and templates in Python's format
// language that make a conversation of a row of its data.
//
//   row -> fields of its family (preprocessing.py) -> system, user and assistant text
#pragma once
#include <variant>

#include "tensor/json.h"

namespace t2l {

// Python's str(): what a field contributes to a text. Error for lists and objects, which a template must index.
std::string python_str(const Json& value);

// str.format() with named fields: {field}, {field[3]}, {field[key]}, in any depth, {{ and }}.
class FormatString {
 public:
  FormatString() = default;
  static FormatString parse(std::string_view text);  // Error that names the place in it
  std::string format(const Json& row) const;         // Error for a field that the row lacks

 private:
  using Step = std::variant<std::string, int64_t>;  // the key of an object, or the index of a list
  struct Piece {
    std::string text;        // stands before the field
    std::vector<Step> path;  // empty: only text
    std::string name;        // as it was written
  };
  std::vector<Piece> pieces_;
};

// Rows of a file, as `datasets` slices them: train, train[:500], valid[10%:90%], test[-20:].
struct RowRange {
  struct Bound {
    int64_t value = 0;
    bool percent = false;
    int64_t row(int64_t rows) const;
  };
  std::string split = "train";
  Bound begin, end{100, true};

  static RowRange parse(const std::string& text);  // Error
};

struct Conversation {
  std::string system, user, assistant;
  std::string response;  // the assistant's text without what templates put around it
};

struct TaskFormat {
  std::string family;  // what its name begins with decides how rows are read: lol_, arc_, ...
  std::vector<std::string> descriptions;
  FormatString system, user, prefill, postfill;
  std::string response_field;
  RowRange rows;      // to train on: ds_kwargs.split
  int64_t level = 0;  // how hard it is, for pretraining's curriculum; our own key

  // Error, naming file and key.
  static TaskFormat parse(const Json& metadata, const std::string& name, const std::string& where);
  // Of a Super-NaturalInstructions task: its definitions are its descriptions, and its rows are
  // instances(), one for each of its Instances, in the fields of the lol_ family.
  static TaskFormat of_instructions(const Json& task, const std::string& where);
  static Json instance(const Json& task, size_t i, const std::string& where);

  // Error, without a place, for a row that does not fit.
  Conversation format(Json row) const;
};

}  // namespace t2l
