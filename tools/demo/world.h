// The small world: tasks on short lists of numbers and letters, with descriptions in English, in which Text-to-LoRA can
// be trained from nothing in minutes. A task is a primitive ("keep the first three items") or two of them in a row,
// each with its parameters; the tasks are split into those to train on, to choose settings by, and to report.
//
// Everything is a function of the seed, on every machine.
#pragma once
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tools/demo/world_language.h"

namespace t2l::world {

using Item = int;  // a number below 32, or the character code of a letter or mark
using List = std::vector<Item>;

inline bool is_number(Item x) { return x < 32; }
inline bool is_letter(Item x) { return x >= 'A'; }
std::string text_of(const List& list);  // "3 a 7 c"

// What kinds of primitives may follow each other is a matter of their kinds.
enum class Kind : uint8_t {
  Position,   // chooses and moves items by where they stand
  Filter,     // keeps items by what they are
  Order,      // sorts
  OfNumbers,  // changes each number by itself
  OfLetters,  // changes each letter by itself
  Summary,    // one item that says something of the list
};

struct Primitive {
  std::string family;  // "replace"
  List parameters;     // {'a', 'e'}
  Kind kind;
  std::function<List(const List&)> apply;
  std::vector<std::string> phrases;  // patterns of the imperative: world_language.h
  std::string formula;               // what revealed inputs call it: "swap a e"
  Item favourite = 0;                // an item that inputs should have often; 0: none

  std::string name() const;  // "replace-a-e"
};

// All of them, with every value of their parameters.
std::vector<Primitive> make_primitives();

struct Row {
  std::string input, output;
};

struct Task {
  std::string name;  // also its folder: "0042.first-3.replace-a-e"
  std::vector<Primitive> steps;
  bool revealed = false;                  // inputs begin with a formula: "head 3 , swap a e : 3 a 7 c b"
  std::vector<std::string> descriptions;  // of a training task: to train with
  std::vector<std::string> unseen;        // of a training task that is also reported: never trained with
  std::vector<Row> train, test;           // no input is in both

  List apply(const List& input) const;
};

struct Options {
  uint64_t seed = 0;
  // Many tasks with few rows teach composition; from fewer tasks a base model that is trained long learns those by
  // heart.
  int tasks = 8192, rows = 48, test_rows = 100, descriptions = 20;
  int revealed_every = 5;  // compositions: one of so many is revealed by its inputs
};

struct World {
  Options options;
  std::vector<Task> train;                            // with `unseen` and `test` for those that are also reported
  std::vector<Task> valid, compositions, parameters;  // held out; the last two are for the report
  std::map<std::string, std::vector<std::string>> held_out;  // "valid", "test": primitives, by name, never trained on
  std::set<std::string> words;                               // of training tasks: inputs, outputs and descriptions
};

// Error if the options leave no room for the tasks that are asked for.
World make_world(const Options& options);

// How many of `inputs` the two tasks answer alike.
size_t agreement(const Task& a, const Task& b, const std::vector<List>& inputs);
// Inputs as rows of the task have them.
std::vector<List> sample_inputs(const Task& task, int count, uint64_t seed);

struct BaseShape {
  int hidden = 96, layers = 4, head_dim = 16, intermediate = 256;
};

// DIR/train, valid, test/{compositions,parameters,seen}: a folder for each task; DIR/base: the base model's config and
// tokenizer; DIR/world.json: what there is.
void write_world(const World& world, const BaseShape& base, const std::string& dir);

}  // namespace t2l::world
